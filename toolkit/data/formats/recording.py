"""An opened recording, whatever it came from, and the checks that all kinds of recordings share."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, nearest, warn
from toolkit.data.episode import IMAGE, Episode
from toolkit.data.formats.hdf5 import natural_order
from toolkit.data.images import as_size, letterboxed
from toolkit.data.seen_scenes import SeenScenes

NEAR_RATE = 0.005  # 29.97 is a thousandth below 30
SIDES = 8, 8192  # pixels; video encoders have limits, and LeRobot takes three rows for three channels
CAMERAS = "observation.images."
INSTRUCTIONS = ("language_instruction", "language", "lang")
NOT_PROVENANCE = (*INSTRUCTIONS, "num_samples", "model_file", "compress")
LEROBOT_COLUMNS = ("stats/", "meta/", "videos/", "data/", "dataset_", "episode_index", "tasks", "length")
MAIN_CAMERAS = ("image", "image_0", "agentview", "cam_high", "top", "front")


@dataclass(frozen=True)
class ImportOptions:
    """What the user asks for; see `ImportConfig` of the command for each key."""

    task: str | None = None
    episodes: str | None = None
    image_keys: dict[str, str] = field(default_factory=dict)
    state_keys: tuple[str, ...] = ()
    action_key: str | None = None
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    image_size: int | None = None
    flip_vertical: bool = False
    fps: int | None = None
    robot_type: str | None = None


@dataclass
class Recording:
    """An opened recording. Iterating reads one episode at a time and can be repeated."""

    layout: str
    fps: int
    fps_from: str
    cameras: dict[str, str]  # feature key: key in the source, the main camera first
    state_keys: list[str]
    action_key: str
    state_names: list[str]
    action_names: list[str]
    num_episodes: int
    robot_type: str
    files: list[Path]
    root: Path
    options: ImportOptions
    read: Callable[[], Iterator[Episode]]
    seen_scenes: SeenScenes | None = None

    def __iter__(self) -> Iterator[Episode]:
        """Episodes as they will be written. Raises UserError for the first that is damaged or does not fit."""
        kinds: dict[str, type] = {}
        for episode in self.read():
            where = f"{episode.metadata['source_file']} {episode.metadata['source_episode']}"
            for label, values, names in (
                ("state", episode.states, self.state_names),
                ("action", episode.actions, self.action_names),
            ):
                if values.shape[1] != len(names):
                    raise UserError(f"{where}: {label} width {values.shape[1]}; expected {len(names)}")
            if len(episode) < 2:
                raise UserError(f"{where}: has {len(episode)} step; an episode takes at least 2. Leave it out")
            for key, images in {IMAGE: episode.images, **episode.cameras}.items():
                height, width = images.shape[1:3]
                if not SIDES[0] <= min(height, width) <= max(height, width) <= SIDES[1]:
                    raise UserError(
                        f"{where}: pictures of '{self.cameras[key]}' are {height}x{width}; expected sides of "
                        f"{SIDES[0]} to {SIDES[1]} pixels"
                    )
            for key, value in episode.metadata.items():
                kind = float if type(value) is int else type(value)
                if kinds.setdefault(key, kind) is not kind:
                    raise UserError(f"{where}: '{key}' is {value!r}; earlier episodes have {kinds[key].__name__}")
            yield replace(
                episode,
                images=self._fitted(episode.images),
                cameras={key: self._fitted(images) for key, images in episode.cameras.items()},
            )

    def _fitted(self, images: np.ndarray) -> np.ndarray:
        images = images[:, ::-1] if self.options.flip_vertical else images
        return np.ascontiguousarray(
            images if (size := self.options.image_size) is None else letterboxed(images, as_size(size, "image_size"))
        )

    def identity(self) -> str:
        """SHA-256 over names and contents of the files, first 16 hex digits."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(os.fsencode(path.relative_to(self.root)))
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]


def chosen(items: list[Any], part: str | None, source: str) -> list[Any]:
    """`items[first:last]`. Raises UserError if `part` is no such slice, or nothing is left."""
    if part is None:
        return items
    if not re.fullmatch(r"-?\d*:-?\d*", part):
        raise UserError(f"episodes={part}: expected first:last, e.g. episodes='0:100'")
    first, last = (int(bound) if bound.strip("-") else None for bound in part.split(":"))
    if not (found := items[first:last]):
        raise UserError(f"episodes={part}: {source} has {len(items)} episodes; none is left")
    return found


def provenance(attributes: dict[str, Any], episode: str, file: str, where: str) -> dict[str, Any]:
    """Columns of the episode table; what the source says of its own origin stays."""
    names = {"source_episode": episode, "source_file": os.fsencode(file).decode("utf-8", "replace")}
    found: dict[str, Any] = {"source": "teleoperation", **names}
    for key, value in attributes.items():
        value = value.item() if isinstance(value, np.generic) else value
        missing = not isinstance(value, str | int | float) or (isinstance(value, float) and not np.isfinite(value))
        if missing or key in NOT_PROVENANCE:
            continue
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{where}: attribute '{key}' of {episode} is {value}; expected a number of 64 bits")
        found[f"source_{key}" if key.startswith(LEROBOT_COLUMNS) else key] = value
    return found


def default_cameras(found: list[str], source: str) -> dict[str, str]:
    """The main camera becomes `observation.image`, the others `observation.images.<name>`.

    Raises UserError if two would have the same name.
    """
    names = {key: camera_name(key) for key in found}
    ranks = {name: rank for rank, name in enumerate(MAIN_CAMERAS)}
    main = min(found, key=lambda key: (ranks.get(names[key], len(ranks)), natural_order(key)), default=None)
    cameras = {} if main is None else {IMAGE: main}
    for key in found:
        feature = CAMERAS + re.sub(r"\W", "_", names[key])
        if key != main and cameras.setdefault(feature, key) != key:
            raise UserError(
                f"{source}: cameras '{cameras[feature]}' and '{key}' would both be '{feature}'; name them, or those "
                "that you want, with image_keys={...} of vag import"
            )
    return cameras


def camera_name(key: str) -> str:
    """`agentview_image` and `agentview_rgb` -> `agentview`; a feature key loses its prefix."""
    name = key.removeprefix(CAMERAS).removeprefix("observation.")
    return name.removesuffix("_image").removesuffix("_rgb")


def check_cameras(cameras: dict[str, str], found: list[str], source: str) -> dict[str, str]:
    """The mapping with whole keys of the source, `observation.image` first. Raises UserError if it cannot be read."""
    if not found:
        raise UserError(f"{source}: no camera; expected pictures (T, H, W, 3) uint8, or one JPEG a row")
    if IMAGE not in cameras:
        raise UserError(f"image_keys: no '{IMAGE}', the main camera; choose one of: {', '.join(found)}")
    names = [camera_name(key) for key in found]
    unique = {name: key for name, key in zip(names, found, strict=True) if names.count(name) == 1}
    known = unique | {key: key for key in found}
    mapping = {}
    for feature in sorted(cameras, key=lambda feature: (feature != IMAGE, feature)):
        if feature != IMAGE and not re.fullmatch(r"observation\.images\.\w+", feature):
            raise UserError(f"image_keys: '{feature}' is no feature; expected {IMAGE} or {CAMERAS}<name>")
        if str(cameras[feature]) not in known:
            raise UserError(f"{source}: no camera '{cameras[feature]}'. {nearest(str(cameras[feature]), known)}")
        mapping[feature] = known[str(cameras[feature])]
    return mapping


def whole_fps(value: Any, where: str) -> int:
    """A frame rate that a LeRobotDataset can have; one that is near, as 29.97, is taken as that, which is said.

    Raises UserError for any other.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 1000
    if not number or abs(value - round(value)) > NEAR_RATE * value:
        raise UserError(f"{where} is {value!r}; expected a whole number from 1 to 1000. Give fps=...")
    if value != round(value):
        warn(f"{where} is {value!r}; taken as {round(value)}")
    return round(value)


def vector_names(option: str, given: tuple[str, ...], stored: Any, defaults: list[str]) -> list[str]:
    """Names of a vector's dimensions: the user's, else the source's, else numbered ones."""
    if given and (len(given) != len(defaults) or len(set(given)) < len(given)):
        raise UserError(f"{option}: {len(given)} names; expected {len(defaults)} different ones")
    if given:
        return list(given)
    fits = isinstance(stored, list) and len(stored) == len(defaults) and all(map(is_text, stored))
    return stored if fits else defaults


def is_text(value: Any) -> bool:
    """True for a string that a file can hold; JSON and HDF5 allow others."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False
