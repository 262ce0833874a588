"""The part of `vag benchmark data` with several cameras: speed, size and memory of clip files, beside LeRobotDataset.

Frames are raw at the size for training, and JPEG at the size as recorded. Windows hold all cameras.
"""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recipes.side_by_side import MEBIBYTE, Reader, build_quietly, compare, measured, memory_status, one_core
from recipes.study_schema import BenchmarkDataConfig
from toolkit.base.engine import one_process
from toolkit.base.errors import UserError
from toolkit.base.progress import progress
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_layout import camera_keys, picture_bytes, picture_size, read_info
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.reporting.benchmark_results import Ratio, Row
from vag_core.config import GeneratorConfig

SHAPE = 480, 640  # of the pictures of the generated dataset
FPS = 30
WINDOWS = 8  # read by every reader in a round
PASSES = 40  # how often the reader of small raw frames goes over these in a round, to be measurable
COMPARED = 16  # pictures whose coding is measured
DECODED = 2  # episodes that LeRobot decodes in a round
REMEMBERED = 100  # windows read while memory is watched; peaks are of the first tenth, and of all

NOTES = {
    "cameras": "textured pictures with moving objects and the noise of a sensor, in AV1 by LeRobot's settings, unless "
    "dataset= gives another. raw: all cameras on a canvas of image_size for each; jpeg: of the size as recorded. "
    "LeRobotDataset, in one process as clip files here, always decodes them as recorded",
    "build": "lerobot_one_core decodes whole episodes by LeRobot's decode_video_frames, without its conversion to "
    "floats; raw and jpeg are built by a process on each core, whose start counts; a set is small here",
    "latents": "of all frames, by the default tokenizer; the cache holds those of one window an episode",
    "memory_of_cameras": "anonymous memory (RssAnon) of a process that reads JPEG windows one after the other",
}


def measure(config: BenchmarkDataConfig, scratch: Path) -> tuple[list[Row], list[Ratio]]:
    """Rows and ratios of four suites: windows, building, sizes, memory."""
    dataset = Path(config.dataset or scratch / "cameras")
    if not config.dataset:
        write_textured(dataset, config.camera_episodes, config.camera_steps)
    info = read_info(dataset)
    sizes = {key: picture_size(info, key) for key in camera_keys(info)}
    height, width = (max(sides) for sides in zip(*sizes.values(), strict=True))
    canvases = {"raw": Canvas(sizes, (config.image_size, config.image_size)), "jpeg": Canvas(sizes, (height, width))}
    name = f"{len(sizes)}x{height}x{width}"

    paths = {kind: scratch / f"{kind}.h5" for kind in canvases}
    builds = _builds(dataset, canvases, paths)
    *ours, theirs = builds
    pairs = [(kind, theirs) for kind in ours]
    rows, ratios = compare(builds, min(3, config.repeats), f"build_of_{name}", "pictures_per_second", pairs)

    stores = {kind: ClipStore.open(path) for kind, path in paths.items()}
    readers = _readers(config, stores, dataset, list(sizes))
    pairs = [(kind, "lerobot") for kind in stores]
    suite = f"windows_{config.num_frames}x{name}"
    more, others = compare(readers, min(5, config.repeats), suite, "windows_per_second", pairs)
    source = picture_bytes(dataset, info, list(sizes))
    sizes_rows = _sizes(config, stores, dataset, f"size_of_{name}", source)
    return [*rows, *more, *sizes_rows, *_memory(config, paths["jpeg"], f"memory_of_{name}")], [*ratios, *others]


def _builds(dataset: Path, canvases: dict[str, Canvas], paths: dict[str, Path]) -> dict[str, Reader]:
    """Builders of both kinds of clip file, on all cores and on one, and LeRobot's decoder on one."""

    def build(kind: str, workers: int) -> int:
        canvas = canvases[kind]
        return build_quietly(dataset, canvas, workers, kind == "jpeg", paths[kind]) * len(canvas.cameras)

    def on_one_core(work: Reader) -> Reader:
        def read() -> int:
            with one_core():
                return work()

        return read

    cores = len(os.sched_getaffinity(0))
    return {
        **{kind: partial(build, kind, cores) for kind in canvases},
        **{f"{kind}_one_core": on_one_core(partial(build, kind, 1)) for kind in canvases},
        "lerobot_one_core": on_one_core(partial(_decode, _lerobot(dataset), list(canvases["raw"].cameras))),
    }


def _decode(dataset: Any, cameras: list[str]) -> int:
    """LeRobot's decoder, an episode at a time and without its conversion to floats."""
    from lerobot.datasets.video_utils import decode_video_frames

    count, meta = 0, dataset.meta
    for episode in range(min(DECODED, meta.total_episodes)):
        row = meta.episodes[episode]
        for camera in cameras:
            start = row[f"videos/{camera}/from_timestamp"]
            times = [start + step / meta.fps for step in range(row["length"])]
            path = Path(dataset.root) / meta.get_video_file_path(episode, camera)
            count += len(decode_video_frames(path, times, 0.5 / meta.fps, return_uint8=True))
    return count


def _lerobot(dataset: Path, **options: Any) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset(f"local/{dataset.name}", root=dataset, **options)


def _readers(
    config: BenchmarkDataConfig, stores: dict[str, ClipStore], dataset: Path, cameras: list[str]
) -> dict[str, Reader]:
    """Readers of the same random windows, which all give pictures of all cameras."""
    store = stores["raw"]
    rng = np.random.default_rng(config.seed)
    long = np.flatnonzero(store.episode_lengths >= config.num_frames)
    if not len(long):
        raise UserError(f"{dataset}: no episode has num_frames={config.num_frames} steps; give a smaller number")
    episodes = rng.choice(long, WINDOWS)
    starts = rng.integers(store.episode_lengths[episodes] - config.num_frames + 1)
    times = [step / store.fps for step in range(config.num_frames)]
    whole = _lerobot(dataset, delta_timestamps=dict.fromkeys(cameras, times))

    def raw() -> int:
        for _ in range(PASSES):
            store.generator_batch(episodes, starts, config.num_frames)
        return PASSES * WINDOWS

    def jpeg() -> int:
        for index in range(WINDOWS):
            stores["jpeg"].generator_batch(episodes[index : index + 1], starts[index : index + 1], config.num_frames)
        return WINDOWS

    def lerobot() -> int:
        for row in (store.episode_starts[episodes] + starts).tolist():
            whole[row]
        return WINDOWS

    return {"raw": raw, "jpeg": jpeg, "lerobot": lerobot}


def _sizes(
    config: BenchmarkDataConfig, stores: dict[str, ClipStore], dataset: Path, suite: str, source: int
) -> list[Row]:
    """What clip files, and latents of every frame, take, in all and for each byte of the source; the JPEGs' PSNR."""
    n = len(stores["raw"].frames)
    rows = measured("source", suite, n, megabytes=source / 1e6, times_the_source=1)
    for kind, store in stores.items():
        size = store.path.stat().st_size
        rows += measured(kind, suite, n, megabytes=size / 1e6, times_the_source=size / source)
        stride = GeneratorConfig().tokenizer.spatial_stride
        shape = GeneratorConfig(image_size=[-(-side // stride) * stride for side in store.canvas.size]).latent_shape
        encoded = 4 * math.prod(shape) / GeneratorConfig().num_frames * n
        rows += measured(f"latents_of_{kind}", suite, n, megabytes=encoded / 1e6, times_the_source=encoded / source)
    store, whole = stores["jpeg"], _lerobot(dataset)
    errors = []
    for row in np.linspace(0, n - 1, min(n, COMPARED)).astype(int):
        item, pictures = whole[int(row)], store.canvas.take_apart(store.frames[row : row + 1])
        for camera, picture in pictures.items():
            recorded = (item[camera].permute(1, 2, 0).numpy() * 255).round()
            errors.append(np.square(picture[0] - recorded).mean())
    psnr = 10 * math.log10(255**2 / max(1e-9, float(np.mean(errors))))
    return rows + measured("jpeg", suite, len(errors), psnr_to_source=psnr)


def _memory(config: BenchmarkDataConfig, path: Path, suite: str) -> list[Row]:
    with one_process("benchmark data") as call:  # without LeRobot in it
        first, most = call(read_and_watch, path, config.num_frames, config.seed)
    peaks = {"peak_mib_of_first_tenth": first / MEBIBYTE, "peak_mib": most / MEBIBYTE}
    return measured("jpeg", suite, REMEMBERED, **peaks)


def read_and_watch(path: Path, num_frames: int, seed: int) -> tuple[int, int]:
    """Peaks of anonymous memory [byte] over the first tenth of `REMEMBERED` random windows, and over all of them."""
    store = ClipStore.open(path)
    rng = np.random.default_rng(seed)
    peaks = []
    for _ in range(REMEMBERED):
        episodes = rng.integers(store.num_episodes, size=1)
        starts = rng.integers(np.maximum(store.episode_lengths[episodes] - num_frames, 0) + 1)
        batch = store.generator_batch(episodes, starts, num_frames)
        peaks.append(memory_status("RssAnon"))
        del batch
    return max(peaks[: REMEMBERED // 10]), max(peaks)


def write_textured(directory: Path, episodes: int, steps: int) -> None:
    """Three cameras as robots record: textures, two objects that move, one camera that does, noise of a sensor.

    In AV1 with LeRobot's settings, 14 dimensions. A texture has the spectrum 1 / frequency^1.6, by which a picture
    takes about as many bytes as one of a real robot.
    """
    rng = np.random.default_rng(0)
    names = [f"joint_{index}" for index in range(14)]
    with EpisodeWriter(directory, FPS, names, names, codec="av1", crf=None) as writer:
        for seed in progress(range(episodes), description=f"write {directory.name}", unit="ep"):
            views = {
                f"observation.images.{name}": _view(rng, steps, name == "wrist") for name in ("left", "right", "wrist")
            }
            vectors = rng.normal(size=(steps, len(names))).astype(np.float32)
            writer.add(Episode(None, vectors, vectors, "stack the cups", {"seed": seed}, views))


def _view(rng: np.random.Generator, steps: int, moves: bool) -> np.ndarray:
    """(T, H, W, 3) uint8 of one camera."""
    height, width = SHAPE
    far, near = _texture(rng, (height + 128, width + 128)), _texture(rng, SHAPE)
    noise = 2 * rng.standard_normal((4, height + 64, width + 64, 3), np.float32)
    y, x = np.mgrid[:height, :width]
    phases = rng.uniform(0, 6, 6)
    pictures = np.empty((steps, *SHAPE, 3), np.uint8)
    for step, picture in enumerate(pictures):
        top, left = (int(64 + 60 * moves * np.sin(step / 20 + phase)) for phase in phases[:2])
        frame = far[top : top + height, left : left + width].copy()
        for radius, (down, right) in ((60, phases[2:4]), (80, phases[4:])):
            middle = height / 2 + 150 * np.sin(step / 25 + down), width / 2 + 200 * np.cos(step / 31 + right)
            inside = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2
            frame[inside] = near[inside]
        row, column = rng.integers(64, size=2)
        picture[:] = np.clip(frame + noise[step % 4, row : row + height, column : column + width], 0, 255)
    return pictures


def _texture(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) float32 around 127, whose colours are much alike."""
    frequencies = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    frequencies[0, 0] = np.inf
    waves = [np.fft.rfft2(rng.standard_normal(shape)) / frequencies**1.6 for _ in range(4)]
    colours = [np.fft.irfft2(waves[0] + 0.4 * own, s=shape) for own in waves[1:]]
    return np.stack([127 + 45 * colour / colour.std() for colour in colours], axis=-1).astype(np.float32)
