"""A dataset as one HDF5 file in robomimic's layout, from which `vag import` makes the same dataset again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.files import atomic_file
from toolkit.data.episode import ACTION, STATE, Episode
from toolkit.data.formats.hdf5_write import new_hdf5
from toolkit.data.formats.lerobot_layout import camera_keys, feature_names, read_info
from toolkit.data.formats.lerobot_read import read_episodes
from toolkit.data.formats.recording import INSTRUCTIONS
from toolkit.data.images import encode_jpeg
from toolkit.data.seen_scenes import read_scenes

Watch = Callable[[Iterable[Episode], int], Iterable[Episode]]


def export_robomimic(
    dataset: Path, path: Path, jpeg_quality: int | None, compress: bool, watch: Watch = lambda episodes, total: episodes
) -> dict[str, Any]:
    """Write `path`; returns episodes, frames, fps and cameras (feature key: name below obs).

    jpeg_quality: frames as JPEG files, a row each, instead of raw. compress: gzip, without loss. watch: wraps the
    episodes, for a progress bar. Raises UserError as `read_episodes`, OSError if the disk has no room; nothing is left
    behind then.
    """
    info = read_info(dataset)
    found = camera_keys(info)
    if not found:
        raise UserError(f"{dataset}: no camera; robomimic's layout is written with at least one")
    names = {key: _name(key) for key in found}
    if len(set(names.values())) < len(found):
        raise UserError(f"{dataset}: cameras {', '.join(found)} would have the same name in the file")
    packing: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": False} if compress else {}
    frames = count = 0
    with atomic_file(path) as temporary, new_hdf5(temporary) as (file, disk):
        data = file.create_group("data")
        episodes = read_episodes(dataset, found)
        for count, episode in enumerate(watch(episodes, info["total_episodes"]), 1):
            demo = data.create_group(f"demo_{count - 1}")
            length = len(episode)
            for key, pictures in episode.pictures.items():
                _write_pictures(demo, f"obs/{names[key]}", pictures, jpeg_quality, packing)
            demo["obs/state"], demo["actions"] = episode.states, episode.actions
            last = np.arange(length) == length - 1
            demo["dones"] = last.astype(np.int64)
            demo["rewards"] = (last & bool(episode.metadata.get("success") is True)).astype(np.float32)
            attributes = {**dict(_scalars(episode.metadata)), "num_samples": length, INSTRUCTIONS[0]: episode.task}
            for key, value in attributes.items():
                try:
                    demo.attrs[key] = value
                except (ValueError, TypeError) as error:  # zero bytes in a text, for one
                    raise UserError(f"{dataset}: episode {count - 1}: '{key}' does not fit HDF5 ({error})") from error
            frames += length
            disk.check()
        data.attrs["total"] = frames
        data.attrs["env_args"] = json.dumps(
            {
                "env_name": str(info.get("robot_type") or "unknown"),
                "type": 2,
                "env_kwargs": {"control_freq": info["fps"]},
                "fps": info["fps"],
                "robot_type": info.get("robot_type"),
                "features": {key: {"names": feature_names(info, key)} for key in (STATE, ACTION)},
                "cameras": names,
                "seen_scenes": read_scenes(dataset / "meta"),
            }
        )
    return {"episodes": count, "frames": frames, "fps": info["fps"], "cameras": names}


def _name(key: str) -> str:
    """`observation.images.wrist` -> `wrist_image`, as robomimic names cameras; `observation.image` -> `image`."""
    name = key.removeprefix("observation.images.").removeprefix("observation.")
    return name if name == "image" else f"{name}_image"


def _write_pictures(
    demo: h5py.Group, key: str, pictures: np.ndarray, jpeg_quality: int | None, packing: dict[str, Any]
) -> None:
    if jpeg_quality is None:
        demo.create_dataset(key, data=pictures, chunks=(1, *pictures.shape[1:]), **packing)
        return
    rows = demo.create_dataset(key, len(pictures), h5py.vlen_dtype(np.uint8))
    for row, picture in enumerate(pictures):
        rows[row] = encode_jpeg(picture, jpeg_quality)


def _scalars(metadata: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What an attribute can hold; a missing value has none."""
    for key, value in metadata.items():
        value = value.item() if isinstance(value, np.generic) else value
        if isinstance(value, str | int | float) and value == value:  # NaN is how a table says missing
            yield key, value
