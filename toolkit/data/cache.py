"""From a dataset to its clip file, decoded once per content and picture size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from toolkit.data import lerobot_io
from toolkit.data.clips import ClipStore, write_clips
from toolkit.data.images import resized
from toolkit.data.schema import IMAGE, Episode
from toolkit.errors import UserError


def default_cache_directory() -> Path:
    """$VAG_CACHE, else the user's cache directory."""
    if "VAG_CACHE" in os.environ:
        return Path(os.environ["VAG_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vag"


def open_clips(source: str | Path, image_size: int, image_key: str = IMAGE) -> ClipStore:
    """The clips of a LeRobotDataset v3 directory (through the cache) or of a clip file.

    Raises UserError if the source is missing or damaged, or a clip file has pictures of another size.
    """
    source = Path(source)
    if source.is_file():
        store = ClipStore.open(source)
    elif source.is_dir():
        info = lerobot_io.read_info(source)
        lerobot_io.check_features(source, info, image_key)
        key = lerobot_io.dataset_id(source)
        path = default_cache_directory() / f"{key}-{image_key.replace('.', '_')}-{image_size}.h5"
        if not path.exists():
            bar = tqdm(
                lerobot_io.read_episodes(source, image_key),
                f"decode {source.name}",
                info["total_episodes"],
                unit="ep",
            )
            write_clips(path, _resized(bar, image_size), info["total_frames"], info["fps"], key)
        store = ClipStore.open(path)
    else:
        raise UserError(f"{source}: not found; expected a LeRobotDataset directory or a clip file (.h5)")
    if store.frames.shape[1:] != (image_size, image_size, 3):
        raise UserError(
            f"{source}: pictures are {store.frames.shape[1]}x{store.frames.shape[2]}; "
            f"expected {image_size}x{image_size}"
        )
    return store


def _resized(episodes: Iterator[Episode], size: int) -> Iterator[Episode]:
    for episode in episodes:
        yield replace(episode, images=resized(episode.images, size))
