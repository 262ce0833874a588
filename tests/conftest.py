"""Fixtures: small episodes whose video, states and actions agree, and datasets made of them."""

import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests at a time, and their processes, share the cores

import numpy as np
import pytest
from jaxtyping import install_import_hook

# Shapes are checked in tests alone. Not in the modules whose errors on wrong types are tested.
CHECKED = (
    *("actions", "branches", "clocks", "flow_matching", "generator", "layers", "objective", "sampling"),
    *("representation", "scene_encoder", "trajectory", "video_branch", "video_dit", "tokenizer"),
    *("backbones.branch", "backbones.networks", "backbones.text", "backbones.text_encoder", "backbones.wan_tokenizer"),
)
install_import_hook([f"vag_core.{module}" for module in CHECKED], "beartype.beartype")

from toolkit.data.clips import ClipStore, write_clips
from toolkit.data.episode import Episode
from toolkit.data.formats import lerobot_write
from toolkit.data.formats.lerobot_write import EpisodeWriter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what is long; begin with files that hold slow tests, so that no worker waits for one at the end."""
    for item in items if "VAG_LONG" not in os.environ else ():
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long: make test-all runs it"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def make_square(seed: int, length: int = 17, size: int = 32) -> Episode:
    """A square that its actions move: state = its place, action = where it goes next."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    states = np.clip(np.cumsum(np.vstack([rng.uniform(8, 20, (1, 2)), actions[:-1]]), axis=0), 2, size - 8)
    images = np.full((length, size, size, 3), 90, np.uint8)
    for image, (y, x) in zip(images, states.astype(int), strict=True):
        image[y : y + 6, x : x + 6] = (220, 40, 30)
    task = ("push the square", "pull the square")[seed % 2]
    return Episode(images, states.astype(np.float32), actions, task, {"seed": seed, "task_name": task[:4]})


@pytest.fixture(name="moving_square", scope="session")
def _moving_square() -> Callable[..., Episode]:
    return make_square


def make_example(kind: Any) -> Any:
    """Any value that fits a type: lists of two, mappings of one entry, the first kind of a union."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{part.name: make_example(hints[part.name]) for part in fields(kind)})
    if origin in (Union, UnionType):
        return make_example(inner[0])
    if origin is tuple:
        return tuple(map(make_example, inner))
    if origin is list:
        return [make_example(inner[0])] * 2
    if origin is dict:
        return {"one": make_example(inner[1])}
    return {str: "text", int: 2, float: 0.5, bool: True, Any: "anything"}[kind]


@pytest.fixture(name="example", scope="session")
def _example() -> Callable[[Any], Any]:
    return make_example


def retime(path: Path, times: dict[int, list[float]]) -> None:
    """Write a video again with some frames at other times [frames]; [] leaves one out, [3, 3.4] doubles it."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate, (width, height) = stream.average_rate, (stream.width, stream.height)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "0", "preset": "ultrafast", "g": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        stream.codec_context.time_base = 1 / (10 * rate)
        for place, picture in enumerate(frames):
            for time in times.get(place, [place]):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = round(10 * time), stream.codec_context.time_base
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(name="retime_video", scope="session")
def _retime_video() -> Callable[[Path, dict[int, list[float]]], None]:
    return retime


def make_reaches(count: int, seed: int = 0, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Squares that reach over tiles from the left to a goal on the right, fast, then slow: time has a direction.

    Returns clips (count, 13, size, size, 3) uint8 and actions (count, 12, 2), how far the square goes [pixels].
    """
    rng, side = np.random.default_rng(seed), size // 5
    start, goal = (rng.uniform(*bounds, (count, 1, 2)) * size for bounds in ((0.05, 0.25), (0.45, 0.75)))
    goal[..., 0] = rng.uniform(0.05, 0.75, (count, 1)) * size
    time = np.linspace(0, 1, 13)[None, :, None]
    places = start + (goal - start) * (1 - (1 - time) ** 2)  # (count, 13, 2)
    pixel = np.arange(size)
    cover = np.clip(np.minimum(places[..., None] + side, pixel + 1) - np.maximum(places[..., None], pixel), 0, 1)
    square = (cover[:, :, 0, :, None] * cover[:, :, 1, None, :])[..., None]
    tiles = 15 * (-1.0) ** np.add.outer(pixel // 3, pixel // 3)[:, :, None]
    ground = rng.uniform(60, 120, (count, 1, 1, 1, 1)) + tiles
    clips = ground + square * (np.array([220, 40, 30]) - ground)
    return clips.round().astype(np.uint8), np.diff(places, axis=1).astype(np.float32)


@pytest.fixture(name="reaches", scope="session")
def _reaches() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    return make_reaches


@pytest.fixture
def episodes() -> list[Episode]:
    return [make_square(seed, length=17 + seed % 3) for seed in range(6)]


@pytest.fixture
def store(tmp_path: Path, episodes: list[Episode]) -> ClipStore:
    path = tmp_path / "clips.h5"
    write_clips(path, episodes, sum(map(len, episodes)), 20, "test")
    return ClipStore.open(path)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobotDataset v3 of four episodes; do not change it."""
    path = tmp_path_factory.mktemp("data") / "dataset"
    with EpisodeWriter(path, 20, ["y", "x"], ["dy", "dx"]) as writer:
        for seed in range(4):
            writer.add(make_square(seed))
    return path


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same four episodes in several video files; do not change it."""
    path = tmp_path_factory.mktemp("films") / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot_write, "VIDEO_FILE_MB", 0.006)
        with EpisodeWriter(path, 20, ["y", "x"], ["dy", "dx"]) as writer:
            for seed in range(4):
                writer.add(make_square(seed))
    return path


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("VAG_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
