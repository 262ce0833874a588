"""An opened recording, whatever it came from, and the checks that all kinds of recordings share."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, nearest, warn
from toolkit.data.episode import IMAGE, Episode
from toolkit.data.formats.hdf5 import PICTURES
from toolkit.data.formats.looks import Looks, Moves
from toolkit.data.images import as_size, letterboxed
from toolkit.data.resampling import Resampling, guessed_kind
from toolkit.data.seen_scenes import SeenScenes

NEAR_RATE = 0.005  # 29.97 is a thousandth below 30
MOST_WARNINGS = 10  # of episodes that look useless; the rest is counted
WHOLE_BYTES, PART_BYTES = 256 << 20, 1 << 16  # of a file's identity
SIDES = 8, 8192  # pixels; video encoders have limits, and LeRobot takes three rows for three channels
FEATURES, CAMERAS = "observation.", "observation.images."
INSTRUCTIONS = ("language_instruction", "language", "lang", "instruction")
NOT_PROVENANCE = (*INSTRUCTIONS, "num_samples", "model_file", "compress")
LEROBOT_COLUMNS = ("stats/", "meta/", "videos/", "data/", "dataset_", "episode_index", "tasks", "length")


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
    task_key: str | None = None
    filter_key: str | None = None
    colour_order: str | None = None
    split_at: tuple[str, ...] = ()
    skip_bad: bool = False
    image_size: Any = None  # (height, width), or one number for both
    flip_vertical: bool = False
    fps: int | None = None
    resample_fps: int | None = None
    action_kind: str | None = None  # absolute or delta
    absolute_dimensions: tuple[str, ...] | None = None
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
    robot_type: str
    files: list[Path]
    root: Path
    options: ImportOptions
    items: Sequence[Any]
    load: Callable[[Any], Episode]  # raises UserError for an item that is damaged
    seen_scenes: SeenScenes | None = None
    left_out: list[str] = field(default_factory=list)  # keys of the source that were not taken, with their shapes
    copies: Callable[[str], Callable[[Path], None]] | None = None  # of a feature's video of the last item, where it can
    skipped: list[str] = field(default_factory=list)  # episodes that `skip_bad` left out, and why
    resampling: Resampling | None = None

    def at_lower_rate(self, deltas: bool | None) -> Recording:
        """As `resample_fps` asks. deltas: whether its layout has such actions. Raises UserError for a higher rate."""
        options, where = self.options, str(self.root)
        if options.resample_fps in (None, self.fps):
            return self
        kind = options.action_kind or guessed_kind(deltas, self.layout, where)
        names, given = self.action_names, options.absolute_dimensions
        change = Resampling.of(self.fps, options.resample_fps, kind, names, len(names), given, where)
        told = f"{self.fps_from}, resampled from {self.fps}"
        return replace(self, fps=options.resample_fps, fps_from=told, copies=None, resampling=change)

    @property
    def num_episodes(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Episode]:
        """Episodes as they will be written. Raises UserError for the first that is bad, unless `skip_bad`."""
        self.skipped.clear()
        kinds: dict[str, Any] = {}
        doubted = 0
        for number, item in enumerate(self.items):
            try:
                episode = self.load(item)
                where = f"{episode.metadata['source_file']} {episode.metadata['source_episode']}"
                self._check(episode, where, kinds)
                doubts = self._doubts(episode)
                if doubts and self.options.skip_bad:
                    raise UserError(f"{where}: {doubts[0]}")
            except UserError as error:
                if not self.options.skip_bad:
                    hint = "; skip_bad=true leaves out episodes like this one" if len(self.items) > 1 else ""
                    raise UserError(f"{error}{hint}") from error
                self.skipped.append(f"episode {number}: {error}")
                continue
            doubted += bool(doubts)
            for doubt in doubts if doubted <= MOST_WARNINGS else ():
                warn(f"{where}: {doubt}")
            pictures = {key: self._fitted(images) for key, images in episode.pictures.items()}
            episode = replace(episode, images=pictures.pop(IMAGE, None), cameras=pictures)
            yield episode if self.resampling is None else self.resampling.episode(episode)
        if doubted > MOST_WARNINGS:
            warn(f"{doubted - MOST_WARNINGS} further episodes look like these; skip_bad=true leaves all of them out")

    def _check(self, episode: Episode, where: str, kinds: dict[str, Any]) -> None:
        """Raise UserError for an episode that does not fit to the others; `kinds` holds what they are like."""
        for label, values, names in (
            ("state", episode.states, self.state_names),
            ("action", episode.actions, self.action_names),
        ):
            if values.shape[1] != len(names):
                raise UserError(f"{where}: {label} width {values.shape[1]}; expected {len(names)}")
        if len(episode) < 2:
            raise UserError(f"{where}: has {len(episode)} step; an episode takes at least 2. Leave it out")
        for key, images in episode.pictures.items():
            height, width = images.shape[1:3]
            if not SIDES[0] <= min(height, width) <= max(height, width) <= SIDES[1]:
                raise UserError(
                    f"{where}: pictures of '{self.cameras[key]}' are {height}x{width}; expected sides of "
                    f"{SIDES[0]} to {SIDES[1]} pixels"
                )
        told: dict[str, Any] = {key: type(value) for key, value in episode.metadata.items()}
        told = {key: float if kind is int else kind for key, kind in told.items()}
        if self.options.image_size is None:
            sizes = {key: images.shape[1:3] for key, images in episode.pictures.items()}
            told |= {f"the size of '{self.cameras[key]}'": size for key, size in sizes.items()}
        for key, kind in told.items():
            if kinds.get(key, kind) != kind:
                value, before = episode.metadata.get(key, kind), getattr(kinds[key], "__name__", kinds[key])
                raise UserError(f"{where}: '{key}' is {value!r}; earlier episodes have {before}")
        kinds |= told

    def _doubts(self, episode: Episode) -> list[str]:
        """What makes an episode look useless though it can be read."""
        moves = Moves(np.concatenate([episode.states, episode.actions], axis=1))
        found = []
        for key, images in episode.pictures.items():
            looks = Looks()
            for picture in images:
                looks.add(picture.transpose(2, 0, 1))
            found += [f"'{self.cameras[key]}': {text}" for text in looks.doubts(moves)]
        return found + moves.doubts()

    def _fitted(self, images: np.ndarray) -> np.ndarray:
        images = images[..., ::-1] if self.options.colour_order == "bgr" else images
        images = images[:, ::-1] if self.options.flip_vertical else images
        return np.ascontiguousarray(
            images if (size := self.options.image_size) is None else letterboxed(images, as_size(size, "image_size"))
        )

    def identity(self) -> str:
        """SHA-256 over names, sizes and contents of the files that are read, first 16 hex digits.

        Of a file of more than `WHOLE_BYTES` 256 evenly spread parts count, so that a few episodes of a large one do not
        cost reading all of it.
        """
        digest = hashlib.sha256()
        for path in self.files:
            size = path.stat().st_size
            digest.update(os.fsencode(path.relative_to(self.root)))
            with path.open("rb") as file:
                if size <= WHOLE_BYTES:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
                    continue
                digest.update(str(size).encode())
                for place in np.linspace(0, size - PART_BYTES, 256).astype(int).tolist():
                    file.seek(place)
                    digest.update(file.read(PART_BYTES))
        return digest.hexdigest()[:16]


def chosen(items: list[Any], part: str | None, source: str) -> list[Any]:
    """The items that `part` names: numbers and ranges first:last as in Python, with commas between them.

    Raises UserError if it is no such list, names an item that is not there, or nothing is left.
    """
    if part is None:
        return items
    numbers: list[int] = []
    for word in part.strip("[]").split(","):
        word = word.strip(" '\"")
        if re.fullmatch(r"-?\d+", word):
            if not -len(items) <= int(word) < len(items):
                raise UserError(f"episodes={part}: {source} has {len(items)} episodes, none of number {word}")
            numbers.append(int(word) % len(items))
        elif re.fullmatch(r"-?\d*:-?\d*", word):
            first, last = (int(bound) if bound.strip("-") else None for bound in word.split(":"))
            numbers += range(len(items))[first:last]
        else:
            raise UserError(
                f"episodes={part}: expected first:last, e.g. episodes=0:100, or a list, episodes=[0,5,8:20]"
            )
    if not (found := [items[number] for number in sorted(set(numbers))]):
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
    """Every camera under its own name: feature keys stay, another key becomes `observation.images.<name>`.

    `image` alone is `observation.image`. Raises UserError if two would have the same name.
    """
    cameras: dict[str, str] = {}
    for key in found:
        name = camera_name(key)
        feature = IMAGE if name == "image" else CAMERAS + re.sub(r"\W", "_", name)
        feature = key if key.startswith(FEATURES) else feature
        if cameras.setdefault(feature, key) != key:
            raise UserError(
                f"{source}: cameras '{cameras[feature]}' and '{key}' would both be '{feature}'; name them, or those "
                "that you want, with image_keys={...} of vag import"
            )
    return cameras


def camera_name(key: str) -> str:
    """`agentview_image`, `agentview_rgb`, `images/agentview/rgb` -> `agentview`; a feature key loses its prefix."""
    name = key.removeprefix(CAMERAS).removeprefix("observation.")
    parts = [part for part in name.split("/") if part]
    while len(parts) > 1 and parts[-1] in ("rgb", "color", "image", "images", "data"):
        parts.pop()
    return parts[-1].removesuffix("_image").removesuffix("_rgb") if parts else name


def check_cameras(cameras: dict[str, str], found: list[str], source: str) -> dict[str, str]:
    """The mapping with whole keys of the source, sorted. Raises UserError if it cannot be read."""
    if not found:
        raise UserError(f"{source}: no camera; expected {PICTURES}")
    names = [camera_name(key) for key in found]
    unique = {name: key for name, key in zip(names, found, strict=True) if names.count(name) == 1}
    known = unique | {key: key for key in found}
    mapping = {}
    for feature in sorted(cameras, key=lambda feature: (feature != IMAGE, feature)):
        own = feature == cameras[feature]  # a LeRobotDataset has keys of other forms too
        if feature != IMAGE and not own and not re.fullmatch(r"observation\.images\.\w+", feature):
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
