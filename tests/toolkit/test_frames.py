"""Frames as JPEG rows: the same windows as raw ones but for the coding, and the same file whoever builds it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from toolkit.base.errors import UserError
from toolkit.data import cache
from toolkit.data.cache import open_clips, open_merged, stored_as_jpeg
from toolkit.data.cached_files import cache_directory
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore
from toolkit.data.episode import Episode
from toolkit.data.formats.lerobot_layout import read_info
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.frames import QUALITY, JpegFrames
from toolkit.data.images import decode_picture, encode_jpeg
from toolkit.data.selection import subset


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAG_CACHE", str(tmp_path / "own-cache"))
    monkeypatch.setattr(cache, "GROUP_VALUES", 1)  # every episode a group, and in a file a part of its own


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory, moving_square: Callable[..., Episode]) -> Path:
    """Five episodes of three cameras."""
    path = tmp_path_factory.mktemp("data") / "three"
    with EpisodeWriter(path, 20, ["y", "x"], ["dy", "dx"]) as writer:
        for seed in range(5):
            top, left, wrist = (
                moving_square(seed + k, length=9 + seed, size=size) for k, size in enumerate((32, 48, 64))
            )
            views = {f"observation.images.{name}": e.images for name, e in (("left", left), ("wrist", wrist))}
            writer.add(Episode(top.images, top.states, top.actions, top.task, {}, views))
    return path


def coded(pictures: np.ndarray) -> np.ndarray:
    return np.stack([decode_picture(encode_jpeg(picture, QUALITY, subsampling=2).tobytes()) for picture in pictures])


def test_windows_are_the_raw_ones_coded_once(cameras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = open_clips(cameras, 48)
    assert isinstance(raw.frames, np.ndarray)
    assert re.search(
        r"clip file: 55 pictures of 2x2x48x48 raw, 1.52 MB \(in .*\); \$VAG_CACHE_GB is 50", capsys.readouterr().out
    )
    files = []
    for workers in (1, 2):
        jpeg = open_clips(cameras, 48, storage="jpeg", workers=workers)
        said = re.findall(
            r"clip file: 55 pictures of 2x2x48x48 as JPEG, about ([\d.]+) MB \(raw 1.52", capsys.readouterr().out
        )
        assert len(said) == 1
        assert float(said[0]) * 1e6 == pytest.approx(jpeg.frames.lengths.sum(), rel=0.2)
        files.append(jpeg.path.read_bytes())
        if workers == 1:
            jpeg.path.unlink()
    assert files[0] == files[1]
    wanted = coded(raw.frames)
    assert jpeg.frames.shape == raw.frames.shape
    assert len(jpeg.frames) == 55
    assert np.array_equal(jpeg.frames, wanted)
    assert np.array_equal(jpeg.frames[::7], wanted[::7])
    assert np.array_equal(jpeg.frames[-1], wanted[-1])
    episodes, starts = np.array([4, 0, 4]), np.array([7, 2, 7])
    theirs, ours = (store.generator_batch(episodes, starts, 9) for store in (raw, jpeg))
    assert np.array_equal(ours["frames"], coded(theirs["frames"].reshape(-1, 96, 96, 3)).reshape(3, 9, 96, 96, 3))
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs if key != "frames")


def test_parts_and_unions_are_not_coded_again(cameras: Path, dataset: Path) -> None:
    store = open_clips(cameras, 48, storage="jpeg")
    part = subset(store, np.array([3, 1]))
    assert isinstance(part.frames, JpegFrames)
    assert part.frames.data is store.frames.data
    assert np.array_equal(part.frames, store.frames[store.rows_of(np.array([3, 1]))])
    raw = open_clips(cameras, 48)
    joined = open_merged([part, raw])
    assert np.array_equal(joined.frames, np.concatenate([np.asarray(part.frames), coded(raw.frames)]))


def test_raw_frames_that_are_large_and_many_are_stored_as_jpeg(cameras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas({"observation.image": (480, 640)}, (480, 640))
    info = {**read_info(cameras), "total_frames": 2000}  # 1.8 GB
    assert stored_as_jpeg("auto", cameras, info, canvas)
    assert not stored_as_jpeg("raw", cameras, info, canvas)
    assert not stored_as_jpeg("auto", cameras, {**info, "total_frames": 1000}, canvas)  # less than a gigabyte
    assert not stored_as_jpeg("auto", cameras, {**info, "total_frames": 200_000}, Canvas.single((128, 128)))
    monkeypatch.setattr(cache, "picture_bytes", lambda *_: 10**9)  # it takes as much as it would save
    assert not stored_as_jpeg("auto", cameras, info, canvas)
    monkeypatch.setenv("VAG_CACHE_GB", "1")
    assert stored_as_jpeg("auto", cameras, info, canvas)
    assert stored_as_jpeg("auto", cameras, {**info, "total_frames": 200_000}, Canvas.single((128, 128)))


def test_a_failed_build_leaves_no_parts(cameras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = cache.encoded_frames, []

    def fail_late(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:  # five are samples, and the first group has been written
            raise OSError("disk gone")
        return original(*arguments)

    monkeypatch.setattr(cache, "encoded_frames", fail_late)
    with pytest.raises(OSError, match="disk gone"):
        open_clips(cameras, 48, storage="jpeg", workers=1)
    assert not [path for path in cache_directory().iterdir() if path.suffix == ".h5" or "partial" in path.name]


def test_no_room_is_told_before_decoding(cameras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(cache.LocalEngine, "feed", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(OSError, match="No space left"):
        open_clips(cameras, 48, storage="jpeg")


def test_damage_is_named(cameras: Path) -> None:
    path = open_clips(cameras, 48, storage="jpeg").path
    whole = path.read_bytes()

    def damaged() -> Iterator[tuple[str, Callable[[h5py.File], Any]]]:
        yield "frame 1 is damaged", lambda file: file["jpegs/00000000"].__setitem__(slice(None), 0)
        yield "does not fit the bytes", lambda file: file["jpeg_lengths"].__setitem__(3, 7)
        yield "does not fit the bytes", lambda file: file.__delitem__("jpegs/00000004")
        other = encode_jpeg(np.zeros((8, 8, 3), np.uint8), QUALITY)
        yield (
            "expected 96x96 pixels",
            lambda file: file["jpegs/00000000"].__setitem__(
                slice(file["jpeg_lengths"][0], file["jpeg_lengths"][0] + len(other)), other
            ),
        )

    for complaint, damage in damaged():
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            damage(file)
        with pytest.raises(UserError, match=complaint):
            ClipStore.open(path).frames[1]
