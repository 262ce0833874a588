"""`vag benchmark data`: how fast training windows are read, side by side with LeRobotDataset, and with how much memory.

All readers give the same windows in the same process and take turns, so that a slow moment of the machine meets
each of them.
"""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import numpy as np

from recipes import benchmark_cameras
from recipes.side_by_side import MEBIBYTE, Reader, build_quietly, compare, measured, memory_status
from recipes.study_schema import BenchmarkDataConfig
from toolkit.base.engine import one_process
from toolkit.base.errors import UserError
from toolkit.base.files import scratch_folder
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.base.typed_json import to_json
from toolkit.data.cache import open_clips
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore, ClipTable, create_clips
from toolkit.data.episode import ACTION, IMAGE, STATE, Episode
from toolkit.data.formats.lerobot_layout import camera_keys, picture_size, read_info
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.reporting.benchmark_record import write_record
from toolkit.reporting.benchmark_results import BenchmarkDataResult, Ratio, Row

EPISODES, LENGTH = 20, 64  # of the generated dataset, and how many episodes of a given one are read
RECORDED_SHAPE = 480, 640  # of the pictures whose decoding is timed; robots record about so large
WINDOWS = 64  # read by every reader in a round
PASSES = 40  # how often the fast readers go over these windows in a round, to be measurable
LARGE_WINDOWS = 6000  # read from the large file
SPARE = 64 << 20  # bytes of further anonymous memory that reading the large file may take


def run(config: BenchmarkDataConfig, run: Run) -> BenchmarkDataResult:
    """Write `record.json` and `record.md`; print the record as one line."""
    load = os.getloadavg()[1]
    with scratch_folder(run.directory / "scratch") as scratch:
        rows, comparisons, backend = _measure(config, run, scratch)
    changed = {k: v for k, v in vars(config).items() if v != getattr(BenchmarkDataConfig, k)}
    words = [f"{key}={value}" for key, value in changed.items() if key not in ("out", "overwrite")]
    notes = {
        "low_and_high": "25th and 75th percentile over the rounds; of memory, the one value measured",
        "readers": "clip_store gives frames, states, actions and padding masks of the windows; the others, to their "
        f"advantage, frames alone. LeRobotDataset gives one window at a time, the others {config.batch_size}",
        "load_before": f"{load:.1f} processes running on {os.cpu_count()} cores, mean of five minutes",
        "video_decoder_of_lerobot": backend,
        "memory": "anonymous memory (RssAnon) while random windows of a sparse file are read, under a limit "
        f"(RLIMIT_DATA) of {SPARE // MEBIBYTE} MiB more than before; mapped pages of the file can be reclaimed",
        **benchmark_cameras.NOTES,
    }
    record = write_record(run.directory, "data", " ".join(["vag benchmark data", *words]), rows, comparisons, notes)
    print(json.dumps(to_json(record)), flush=True)
    return BenchmarkDataResult(rows=rows, comparisons=comparisons)


def _measure(config: BenchmarkDataConfig, run: Run, scratch: Path) -> tuple[list[Row], list[Ratio], str]:
    video, recorded = Path(config.dataset or scratch / "video"), Path(config.dataset or scratch / "recorded")
    if not config.dataset:
        write_moving_waves(video, EPISODES, (config.image_size, config.image_size))
        write_moving_waves(recorded, EPISODES // 2, RECORDED_SHAPE)
    cameras = {path: camera_keys(read_info(path))[0] for path in (video, recorded)}  # of the suites with one
    store = open_clips(video, config.image_size, [cameras[video]], storage="raw")
    run.add_data(video, store.source_id, store.num_episodes)
    write_image_mode(scratch / "images", store)
    readers, backend = _readers(config, store, video, scratch / "images")
    suite = f"windows_{config.num_frames}x{config.image_size}x{config.image_size}"
    pairs = [("clip_store", name) for name in readers if name != "clip_store"]
    rows, comparisons = compare(readers, config.repeats, suite, "windows_per_second", pairs)

    cores = len(os.sched_getaffinity(0))
    shape = "x".join(map(str, (*picture_size(read_info(recorded), cameras[recorded]), 3)))
    builds: dict[str, Reader] = {
        name: _build(recorded, cameras[recorded], config.image_size, workers, scratch / "built.h5")
        for name, workers in (("parallel_build", cores), ("sequential_build", 1))
    }
    suite, rounds = f"cache_of_{shape}", min(3, config.repeats)
    more, ratios = compare(builds, rounds, suite, "frames_per_second", [("parallel_build", "sequential_build")])
    rows, comparisons = [*rows, *more, *_memory(config, scratch / "large.h5")], [*comparisons, *ratios]
    more, ratios = benchmark_cameras.measure(config, scratch)
    return [*rows, *more], [*comparisons, *ratios], backend


def _readers(config: BenchmarkDataConfig, store: ClipStore, video: Path, images: Path) -> tuple[dict[str, Reader], str]:
    """The four readers of the same windows, and the name of LeRobot's video decoder."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.utils.import_utils import get_safe_default_video_backend

    rng = np.random.default_rng(config.seed)
    long = np.flatnonzero(store.episode_lengths[:EPISODES] >= config.num_frames)
    if not len(long):
        raise UserError(f"{video}: no episode has num_frames={config.num_frames} steps; give a smaller number")
    episodes = rng.choice(long, WINDOWS)
    starts = rng.integers(store.episode_lengths[episodes] - config.num_frames + 1)
    rows = store.episode_starts[episodes] + starts
    parts = [slice(first, first + config.batch_size) for first in range(0, WINDOWS, config.batch_size)]
    steps = [step / store.fps for step in range(config.num_frames)]

    def lerobot(root: Path, camera: str) -> Reader:
        dataset = LeRobotDataset(f"local/{root.name}", root=root, delta_timestamps={camera: steps})

        def read() -> int:
            for row in rows.tolist():
                dataset[row]
            return WINDOWS

        return read

    def clip_store() -> int:
        for _ in range(PASSES):
            for part in parts:
                store.generator_batch(episodes[part], starts[part], config.num_frames)
        return PASSES * WINDOWS

    def numpy_memmap() -> int:
        for _ in range(PASSES):
            for part in parts:
                frames[rows[part, None] + np.arange(config.num_frames)]
        return PASSES * WINDOWS

    frames = np.memmap(images.with_name("frames.raw"), np.uint8, "w+", shape=store.frames.shape)
    frames[:] = store.frames[:]
    readers: dict[str, Reader] = {
        "clip_store": clip_store,
        "numpy_memmap": numpy_memmap,
        "lerobot_video": lerobot(video, *store.canvas.cameras),
        "lerobot_images": lerobot(images, IMAGE),
    }
    return readers, str(get_safe_default_video_backend())


def _build(dataset: Path, camera: str, image_size: int, workers: int, path: Path) -> Reader:
    def read() -> int:
        canvas = Canvas({camera: picture_size(read_info(dataset), camera)}, (image_size, image_size))
        return build_quietly(dataset, canvas, workers, False, path)

    return read


def _memory(config: BenchmarkDataConfig, path: Path) -> list[Row]:
    """Read windows of a file with `large_gigabytes` of frames that take no room on the disk."""
    size = config.image_size
    length = 100
    episodes = max(1, config.large_gigabytes * 10**9 // (size * size * 3 * length))
    blank = np.zeros((episodes * length, 4), np.float32)
    lengths = np.full(episodes, length)
    canvas = Canvas.single((size, size))
    table = ClipTable(blank, blank, lengths, ["none"] * episodes, [{}] * episodes, 20, "large", canvas)
    create_clips(path, table)
    del blank, table
    with one_process("benchmark data") as call:  # without LeRobot in it
        anonymous, mapped, count = call(read_under_limit, path, config.num_frames, config.batch_size, config.seed)
    suite = f"sparse_{config.large_gigabytes}_gb"
    return measured("clip_store", suite, count, anonymous_memory_growth_mib=anonymous, read_mib=mapped)


def read_under_limit(path: Path, num_frames: int, batch_size: int, seed: int) -> tuple[float, float, int]:
    """Growth of anonymous memory [MiB], frames read [MiB] and windows, with no more than `SPARE` bytes to grow by."""
    before = memory_status("RssAnon")
    limit = memory_status("VmData") + SPARE
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    store = ClipStore.open(path)
    rng = np.random.default_rng(seed)
    most, read = 0, 0
    for _ in range(LARGE_WINDOWS // batch_size):
        episodes = rng.integers(store.num_episodes, size=batch_size)
        starts = rng.integers(np.maximum(store.episode_lengths[episodes] - num_frames, 0) + 1)
        read += store.generator_batch(episodes, starts, num_frames)["frames"].nbytes
        most = max(most, memory_status("RssAnon") - before)
    windows = LARGE_WINDOWS // batch_size * batch_size
    return round(most / MEBIBYTE, 1), round(read / MEBIBYTE, 1), windows


def write_moving_waves(directory: Path, episodes: int, shape: tuple[int, int]) -> None:
    """A dataset of `LENGTH` steps an episode, all of whose pixels move: (H, W) = shape."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) * (64 / min(shape))
    with EpisodeWriter(directory, 20, list("xyzg"), list("xyzg")) as writer:
        for seed in progress(range(episodes), description=f"write {directory.name}", unit="ep"):
            phases = rng.uniform(0, 6, 3)
            images = np.empty((LENGTH, *shape, 3), np.uint8)
            for step, image in enumerate(images):
                for channel, phase in enumerate(phases):
                    image[..., channel] = 127 + 100 * np.sin(x / 7 + phase + step / 5) * np.cos(y / 9 + step / 8)
            vectors = rng.normal(size=(LENGTH, 4)).astype(np.float32)
            writer.add(Episode(images, vectors, vectors, "follow the waves", {"seed": seed}))


def write_image_mode(directory: Path, store: ClipStore) -> None:
    """The first `EPISODES` episodes of a store as a LeRobotDataset of encoded pictures."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    arrays = {IMAGE: store.frames, STATE: store.states, ACTION: store.actions}
    features = {key: {"dtype": "float32", "shape": values.shape[1:], "names": None} for key, values in arrays.items()}
    features[IMAGE] |= {"dtype": "image", "names": ["height", "width", "channels"]}  # LeRobot's training asks for them
    dataset = LeRobotDataset.create(f"local/{directory.name}", int(store.fps), features, directory, use_videos=False)
    for episode in progress(range(min(EPISODES, store.num_episodes)), description="write images", unit="ep"):
        first = int(store.episode_starts[episode])
        for row in range(first, first + int(store.episode_lengths[episode])):
            frame = {key: values[row] for key, values in arrays.items()}
            dataset.add_frame({**frame, "task": store.instruction(episode)})
        dataset.save_episode()
    dataset.finalize()


def summary(result: BenchmarkDataResult) -> str:
    ratios = [f"{c.value:.3g} x {c.b}" for c in result.comparisons if c.a == "clip_store"]
    return f"the clip store reads windows at {', '.join(ratios)}"
