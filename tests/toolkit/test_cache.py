"""The clip cache and its windows: built once whatever happens meanwhile, and equal to what a plain reading gives."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.base.errors import UserError
from toolkit.base.manifest import PARTIAL
from toolkit.data import cache, cached_files
from toolkit.data.cache import open_clips, open_merged
from toolkit.data.clips import ClipStore, write_clips
from toolkit.data.episode import ACTION, ACTION_IS_PAD, IMAGE, STATE, Episode
from toolkit.data.formats import lerobot_read, lerobot_write
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.images import resized
from toolkit.data.selection import subset

MakeEpisode = Callable[..., Episode]
ROOT = Path(__file__).parents[2]
property_test = settings(derandomize=True, max_examples=60, deadline=None)


@pytest.fixture
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test alone."""
    directory = tmp_path / "own-cache"
    monkeypatch.setenv("VAG_CACHE", str(directory))
    return directory


@pytest.fixture(scope="module")
def two_videos(tmp_path_factory: pytest.TempPathFactory, moving_square: MakeEpisode) -> Path:
    """A dataset of two video files with several episodes each."""
    path = tmp_path_factory.mktemp("data") / "two-videos"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot_write, "VIDEO_FILE_MB", 0.03)
        with EpisodeWriter(path, 20, ["y", "x"], ["dy", "dx"]) as writer:
            for seed in range(7):
                writer.add(moving_square(seed, length=15 + 3 * seed, size=48))
    return path


def clip_files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.suffix != ".id" and path.is_file())


def test_frames_are_those_of_the_sequential_read(
    two_videos: Path, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of one episode: nearly every one begins inside a video file."""
    assert 1 < len(list(two_videos.rglob("*.mp4"))) < 7
    episodes = list(lerobot_read.read_episodes(two_videos))
    monkeypatch.setattr(cache, "GROUP_VALUES", 1)
    for workers in (1, 2):
        store = open_clips(two_videos, 48, workers=workers)
        assert np.array_equal(store.frames, np.concatenate([episode.images for episode in episodes]))
        assert np.array_equal(store.states, np.concatenate([episode.states for episode in episodes]))
        assert np.array_equal(store.actions, np.concatenate([episode.actions for episode in episodes]))
        assert store.episode_lengths.tolist() == [len(episode) for episode in episodes]
        assert store.metadata == [episode.metadata for episode in episodes]
        assert [store.instruction(k) for k in range(7)] == [episode.task for episode in episodes]
        store.path.unlink()


def test_image_mode_gives_the_recorded_pictures(
    tmp_path: Path, moving_square: MakeEpisode, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    shapes = {IMAGE: ("image", (32, 32, 3)), STATE: ("float32", (2,)), ACTION: ("float32", (2,))}
    features = {key: {"dtype": dtype, "shape": shape, "names": None} for key, (dtype, shape) in shapes.items()}
    dataset = LeRobotDataset.create("local/images", 20, features, root=tmp_path / "images", use_videos=False)
    dataset.meta.update_chunk_settings(data_files_size_in_mb=0.02)
    episodes = [moving_square(seed) for seed in range(4)]
    for episode in episodes:
        for image, state, action in zip(episode.images, episode.states, episode.actions, strict=True):
            dataset.add_frame({IMAGE: image, STATE: state, ACTION: action, "task": episode.task})
        dataset.save_episode()
    dataset.finalize()
    monkeypatch.setattr(cache, "GROUP_VALUES", 1)
    store = open_clips(tmp_path / "images", 32)
    assert np.array_equal(store.frames, np.concatenate([episode.images for episode in episodes]))


def test_clips_of_a_dataset_are_decoded_once_and_resized(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_clips(dataset, 16)
    assert first.frames.shape == (68, 16, 16, 3)
    monkeypatch.setattr(cache, "read_pictures", lambda *_: pytest.fail("decoded again"))
    again = open_clips(dataset, 16)
    assert np.array_equal(first.frames, again.frames)
    assert (again.state_names, again.action_names) == (["y", "x"], ["dy", "dx"])
    assert not open_clips(first.path, 16).action_names
    with pytest.raises(UserError, match="pictures are 16x16 .* expected 32x32"):
        open_clips(first.path, 32)


def start(dataset: Path, log: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).with_name("cache_work.py")), str(dataset), str(log)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_two_processes_build_the_same_cache_at_once(dataset: Path, cache_directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(dataset, log) for _ in range(2)]
    for process in processes:
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint
    assert len(clip_files(cache_directory)) == 1
    assert len(log.read_text().split()) == 1  # the other one waited


def test_a_killed_build_is_swept_and_done_again(dataset: Path, cache_directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(dataset, log)
    deadline = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [name for name in clip_files(cache_directory) if name.endswith(PARTIAL)]
    other = open_clips(dataset, 16)  # another file: what the dead one left goes all the same
    assert clip_files(cache_directory) == [other.path.name]
    whole = open_clips(dataset, 32)
    assert np.array_equal(whole.frames[:17], next(iter(lerobot_read.read_episodes(dataset))).images)
    assert clip_files(cache_directory) == sorted([other.path.name, whole.path.name])


def test_a_build_takes_over_from_one_that_died_at_it(cache_directory: Path) -> None:
    cache_directory.mkdir()
    name = f"{'0' * 16}-x.npy"
    (cache_directory / f".{name}{PARTIAL}").write_bytes(b"half of")
    path = cached_files.cached_file(name, lambda temporary: temporary.write_bytes(b"all") and None)
    assert path.read_bytes() == b"all"
    assert clip_files(cache_directory) == [name]


def test_a_failed_build_leaves_no_file(
    tmp_path: Path, episodes: list[Episode], dataset: Path, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="its metadata says 1000"):
        write_clips(tmp_path / "x.h5", episodes, 1000, 20, "test")
    assert list(tmp_path.iterdir()) == []

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name in ((cache, "write_frames"), (os, "posix_fallocate")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(OSError, match="No space left"):
                open_clips(dataset, 32)
        assert clip_files(cache_directory) == []


def test_a_full_disk_is_told_before_decoding_begins(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        monkeypatch.setenv("VAG_CACHE", str(small))
        monkeypatch.setattr(cache, "read_pictures", lambda *_: pytest.fail("decoded"))
        with pytest.raises(OSError, match="No space left"):
            open_clips(dataset, 32)
        assert clip_files(small) == []
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_a_dataset_that_changes_while_it_is_read_is_refused(
    dataset: Path, tmp_path: Path, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)

    def meddle(*arguments: Any) -> Iterator[np.ndarray]:
        os.utime(copy / "meta/info.json", ns=(0, 0))
        return original(*arguments)

    original = cache.read_pictures
    monkeypatch.setattr(cache, "read_pictures", meddle)
    with pytest.raises(UserError, match="changed while it was read"):
        open_clips(copy, 32)
    assert clip_files(cache_directory) == []


def test_a_dataset_that_changes_while_another_process_builds_is_refused(
    dataset: Path, tmp_path: Path, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the name in the cache, which tells the old content, would be that of the new one."""
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    original = cache.cached_file

    def wait(name: str, build: Callable[[Path], None]) -> Path:
        info = copy / "meta/info.json"
        info.write_text(info.read_text().replace("sawyer", "franka"))
        return original(name, build)  # the other one gave up

    with monkeypatch.context() as patch:
        patch.setattr(cache, "cached_file", wait)
        patch.setattr(cache, "read_pictures", lambda *_: pytest.fail("decoded"))
        with pytest.raises(UserError, match="changed while it was read"):
            open_clips(copy, 32)
    assert clip_files(cache_directory) == []
    assert open_clips(copy, 32).source_id == lerobot_read.dataset_id(copy)


def test_least_recently_used_files_go_first(
    dataset: Path, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [open_clips(dataset, size) for size in (30, 31, 32)]
    foreign = cache_directory / "recording.h5"
    foreign.write_bytes(b"not ours")
    for age, store in enumerate(stores):
        os.utime(store.path, (age, age))
    open_clips(dataset, 30)  # the oldest is used again
    monkeypatch.setenv("VAG_CACHE_GB", str(sum(s.path.stat().st_blocks for s in stores[:2]) * 512 / 1e9 + 60e-6))
    newest = open_clips(dataset, 16)
    kept = sorted([stores[0].path.name, newest.path.name, foreign.name])
    assert clip_files(cache_directory) == kept
    assert stores[1].frames[0].any()  # whoever has a deleted file open keeps its content
    monkeypatch.setenv("VAG_CACHE_GB", "0")
    alone = open_clips(dataset, 20)
    assert clip_files(cache_directory) == sorted([alone.path.name, foreign.name])
    monkeypatch.setenv("VAG_CACHE_GB", "much")
    with pytest.raises(UserError, match="VAG_CACHE_GB=much: expected the size"):
        open_clips(dataset, 20)


def test_the_id_of_a_dataset_is_remembered_until_a_file_changes(
    dataset: Path, tmp_path: Path, cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dataset, copy)
    assert cached_files.remembered_id(copy) == lerobot_read.dataset_id(dataset)
    assert not cache_directory.exists()  # a file this fresh may change again within the same tick of the clock
    monkeypatch.setattr(cached_files, "SETTLED_SECONDS", -1.0)
    assert cached_files.remembered_id(copy) == lerobot_read.dataset_id(dataset)
    with monkeypatch.context() as patch:
        patch.setattr(cached_files, "dataset_id", lambda _: pytest.fail("hashed again"))
        assert cached_files.remembered_id(copy) == lerobot_read.dataset_id(dataset)
    info = copy / "meta/info.json"
    status = info.stat()
    info.write_text(info.read_text().replace("sawyer", "franka"))
    os.utime(info, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time of change as claimed
    assert cached_files.remembered_id(copy) == lerobot_read.dataset_id(copy) != lerobot_read.dataset_id(dataset)
    shutil.rmtree(copy)
    open_clips(dataset, 16)
    assert len(list(cache_directory.glob("*.id"))) == 1  # that of `dataset`


def test_joined_clips_are_those_of_every_part_and_built_once(
    tmp_path: Path, moving_square: MakeEpisode, cache_directory: Path
) -> None:
    parts = []
    for name, lengths, size in (("a", (9, 12), 32), ("b", (7,), 32), ("small", (7,), 16)):
        path = tmp_path / f"{name}.h5"
        episodes = [moving_square(i, length=n, size=size) for i, n in enumerate(lengths)]
        write_clips(path, episodes, sum(lengths), 20, name)
        parts.append(ClipStore.open(path))
    joined = open_merged(parts[:2])
    assert joined.episode_lengths.tolist() == [9, 12, 7]
    for column in ("frames", "states", "actions"):
        whole = np.concatenate([getattr(part, column) for part in parts[:2]])
        np.testing.assert_array_equal(getattr(joined, column), whole)
    assert [joined.instruction(i) for i in range(3)] == [
        part.instruction(i) for part in parts[:2] for i in range(part.num_episodes)
    ]
    built = clip_files(cache_directory)
    assert open_merged(parts[:2]).source_id == joined.source_id != open_merged(parts[1::-1]).source_id
    assert len(clip_files(cache_directory)) == len(built) + 1
    assert open_merged(parts[:1]) is parts[0]
    for chosen in ([0], [1]):  # parts of the same file
        lengths = open_merged([parts[1], subset(parts[0], np.array(chosen))]).episode_lengths.tolist()
        assert lengths == [7, parts[0].episode_lengths[chosen[0]]]
    with pytest.raises(UserError, match="frames are .*cannot be joined"):
        open_merged(parts)
    with pytest.raises(UserError, match="action_names are x, y; .* has dx, dy"):
        open_merged([replace(parts[0], action_names=["dx", "dy"]), replace(parts[1], action_names=["x", "y"])])


def test_clip_file_damage_is_named(store: ClipStore, tmp_path: Path) -> None:
    path = store.path
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="complete clip file|truncated"):
        ClipStore.open(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file["episode_lengths"][0] = 1000
    with pytest.raises(UserError, match="episodes reach beyond"):
        ClipStore.open(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        file["states"][40, 1] = np.nan
    with pytest.raises(UserError, match=r"'states' holds NaN or infinity \(episode 2\)"):
        ClipStore.open(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        values = file["actions"][()].astype(np.float64)
        values[40, 1] = 1e300
        del file["actions"]
        file["actions"] = values
    with pytest.raises(UserError, match=r"'actions' holds NaN or infinity \(episode 2\)"):
        ClipStore.open(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        values = file["actions"][()].astype(">f4")
        del file["actions"]
        file["actions"] = values
    with pytest.raises(UserError, match="'actions' is not an array"):
        ClipStore.open(path)
    (tmp_path / "other.h5").write_bytes(whole)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as file:
        del file["states"]
        file["states"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "states")
    with pytest.raises(UserError, match="no array 'states'"):
        ClipStore.open(path)
    with h5py.File(path, "w") as file:
        file["frames"] = np.zeros((3, 4, 4, 3), np.uint8)
    with pytest.raises(UserError, match="no array 'states'"):
        ClipStore.open(path)


def test_resizing_averages_and_leaves_the_right_size_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    means = images.reshape(2, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    assert np.abs(resized(images, (4, 4)) - means).max() <= 1
    assert resized(images, (8, 8)) is images
    assert resized(images, (12, 10)).shape == (2, 12, 10, 3)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    """Episodes of 1 to 9 rows; every value tells its episode and step."""
    path = tmp_path_factory.mktemp("ragged") / "clips.h5"
    episodes = []
    for index, length in enumerate((4, 1, 9, 2, 6)):
        values = (10 * index + np.arange(length))[:, None]
        images = np.broadcast_to(values[:, None, None].astype(np.uint8), (length, 2, 2, 3))
        episodes.append(Episode(images, np.float32(values), np.float32(-values), f"task {index % 2}"))
    write_clips(path, episodes, 22, 20, "ragged")
    return ClipStore.open(path)


samples = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8)), min_size=1, max_size=5)


@property_test
@given(samples=samples, num_frames=st.integers(2, 6), frame_stride=st.integers(1, 3))
def test_generator_windows_repeat_and_mask_past_the_end(
    ragged: ClipStore, samples: list[tuple[int, int]], num_frames: int, frame_stride: int
) -> None:
    episodes, starts = _inside(ragged, samples)
    batch = ragged.generator_batch(episodes, starts, num_frames, frame_stride)
    for index, (episode, start) in enumerate(zip(episodes, starts, strict=True)):
        last = ragged.episode_lengths[episode] - 1
        for step in range((num_frames - 1) * frame_stride + 1):
            value = 10 * episode + min(start + step, last)
            if step % frame_stride == 0:
                assert (batch["frames"][index, step // frame_stride] == value).all()
            assert batch["states"][index, step] == value
            if step:
                assert batch["actions"][index, step - 1] == -(10 * episode + min(start + step - 1, last))
                assert batch["is_pad"][index, step - 1] == (start + step > last)
        assert batch["instruction"][index] == f"task {episode % 2}"
    assert batch["frames"].shape == (len(samples), num_frames, 2, 2, 3)
    without = ragged.generator_batch(episodes, starts, num_frames, frame_stride, with_frames=False)
    assert set(batch) - set(without) == {"frames"}
    assert np.array_equal(without["image"], batch["frames"][:, 0])


@property_test
@given(samples=samples, horizon=st.integers(1, 12))
def test_policy_batches_hold_the_actions_after_the_picture(
    ragged: ClipStore, samples: list[tuple[int, int]], horizon: int
) -> None:
    episodes, steps = _inside(ragged, samples)
    batch = ragged.policy_batch(episodes, steps, horizon)
    assert batch[IMAGE].shape == (len(samples), 3, 2, 2)
    assert batch[IMAGE].dtype == np.float32
    for index, (episode, step) in enumerate(zip(episodes, steps, strict=True)):
        value, last = 10 * episode + step, ragged.episode_lengths[episode] - 1
        np.testing.assert_allclose(batch[IMAGE][index], value / 255, rtol=1e-6)
        assert batch[STATE][index] == value
        for ahead in range(horizon):
            assert batch[ACTION][index, ahead] == -(10 * episode + min(step + ahead, last))
            assert batch[ACTION_IS_PAD][index, ahead] == (step + ahead > last)


def _inside(store: ClipStore, samples: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps that the episodes have."""
    episodes, steps = np.array(samples).T
    return episodes, np.minimum(steps, store.episode_lengths[episodes] - 1)


def test_pictures_keep_their_channels_and_places(store: ClipStore, episodes: list[Episode]) -> None:
    batch = store.policy_batch(np.array([3]), np.array([15]), 4)
    np.testing.assert_allclose(batch[IMAGE][0].transpose(1, 2, 0) * 255, episodes[3].images[15], atol=1e-3)
    windows = store.generator_batch(np.array([1]), np.array([10]), 9)["frames"]
    assert np.array_equal(windows[0, :8], episodes[1].images[10:])


def test_the_place_of_the_cache_is_not_a_folder_named_tilde_nor_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VAG_CACHE", "~/clips")
    assert cached_files.cache_directory() == tmp_path / "clips"
    monkeypatch.setenv("VAG_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cached_files.cache_directory() == tmp_path / ".cache/vag"
