"""Recordings of other projects as a stream of episodes: HDF5 in four layouts, and LeRobotDatasets.

robomimic  data/demo_0/{actions, obs/<camera>_image, obs/robot0_eef_pos, ...}
libero     data/demo_0/{actions, obs/<camera>_rgb, obs/ee_states, ...}
bridge     data/demo_0/{actions, obs/image_0, obs/state}
aloha      one file per episode: /action, /observations/{qpos, images/<camera>}
lerobot    a LeRobotDataset directory, or its name on the hub (toolkit/data/formats/lerobot_import.py)
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, nearest, warn
from toolkit.data.episode import ACTION, IMAGE, STATE, Episode
from toolkit.data.formats.hdf5 import MAX_EPISODE_BYTES, Hdf5File, natural_order
from toolkit.data.formats.lerobot_layout import INFO, check_inside
from toolkit.data.formats.recording import (
    INSTRUCTIONS,
    ImportOptions,
    Recording,
    check_cameras,
    chosen,
    default_cameras,
    is_text,
    provenance,
    vector_names,
    whole_fps,
)
from toolkit.data.seen_scenes import SeenScenes, merge, scenes_from

SUFFIXES = (".hdf5", ".h5")
MAX_WIDTH = 10_000
GUESSED = "default"


@dataclass(frozen=True)
class Layout:
    """Where an episode keeps what, below its group."""

    fps: int  # of files that name none
    actions: str
    vectors: str  # group of low-dimensional observations
    images: str  # group of cameras
    states: tuple[str, ...]  # the default state: those of these that are there


LAYOUTS = {
    "robomimic": Layout(20, "actions", "obs", "obs", ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")),
    "libero": Layout(20, "actions", "obs", "obs", ("ee_states", "gripper_states", "joint_states")),
    "bridge": Layout(5, "actions", "obs", "obs", ("state",)),
    "aloha": Layout(50, "action", "observations", "observations/images", ("qpos",)),
}


def open_source(source: str | Path, layout: str, options: ImportOptions, workspace: Path) -> Recording:
    """Find out what `source` is and what it holds; layout "auto" goes by structure.

    workspace: directory for a download or conversion; the caller deletes it after reading.
    Raises UserError for what cannot be imported.
    """
    known = ("auto", *LAYOUTS, "lerobot")
    if layout not in known:
        raise UserError(f"layout={layout} is unknown. {nearest(layout, known)}")
    path = Path(source)
    is_repo = not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and path.suffix not in SUFFIXES
    if layout == "lerobot" or (path / INFO).exists() or (is_repo and layout == "auto"):
        from toolkit.data.formats.lerobot_import import open_lerobot

        return open_lerobot(str(source), options, workspace)
    return _open_hdf5(path, layout, options)


@dataclass(frozen=True)
class _Demo:
    path: Path
    group: str  # "" = the whole file
    name: str


def _open_hdf5(source: Path, layout: str, options: ImportOptions) -> Recording:
    files, root = _files(source)
    layout, demos = _survey(files, layout)
    demos = chosen(demos, options.episodes, str(source))
    first = demos[0]
    with Hdf5File(first.path) as file:
        arguments = _env_args(file)
        reader = _Reader(layout, options, root)
        reader.survey(file, first, arguments)
        state_widths = [_width(file, key) for key in reader.states(file, first)]
        action_width = _width(file, reader.action(file, first))
    parts = zip(reader.state_keys, state_widths, strict=True)
    defaults = [f"{key}_{i}" for key, width in parts for i in range(width)]
    told = _agreed(demos, layout, options)
    if told.fps_from.startswith(GUESSED):
        warn(f"{source}: no file says its rate; taken as {told.fps} steps a second, the {told.fps_from}. Give fps=...")
    stored_robot = arguments.get("robot_type")
    return Recording(
        layout=layout,
        fps=told.fps,
        fps_from=told.fps_from,
        cameras=reader.cameras,
        state_keys=reader.state_keys,
        action_key=reader.action_key,
        state_names=vector_names("state_names", options.state_names, told.state_names, defaults),
        action_names=vector_names(
            "action_names",
            options.action_names,
            told.action_names,
            [f"action_{i}" for i in range(action_width)],
        ),
        num_episodes=len(demos),
        robot_type=options.robot_type or (str(stored_robot) if is_text(stored_robot) else "unknown"),
        files=files,
        root=root,
        options=options,
        read=lambda: (reader.episode(demo) for demo in demos),
        seen_scenes=told.scenes,
    )


def _files(source: Path) -> tuple[list[Path], Path]:
    """The HDF5 files of a source in natural order, and the directory that their names are told from."""
    if source.is_file():
        return [source], source.parent
    if not source.is_dir():
        raise UserError(f"{source}: not found; expected an HDF5 file, a directory of them, or a LeRobotDataset")
    paths = [path for path in source.rglob("*") if path.suffix in SUFFIXES]
    if not paths:
        raise UserError(f"{source}: no .hdf5 or .h5 file, and no {INFO} of a LeRobotDataset")
    for path in paths:
        check_inside(source, path.relative_to(source))
        if not path.is_file():
            raise UserError(f"{path}: not a file")
    return sorted(paths, key=lambda path: natural_order(str(path.relative_to(source)))), source


def _detected(file: Hdf5File) -> str:
    top = file.names()
    if "action" in top and "observations" in top:
        return "aloha"
    demos = file.names("data")
    if not demos:
        raise UserError(
            f"{file.path}: no known layout; expected data/demo_0/{{actions, obs}} or /action and /observations, "
            f"found: {', '.join(top)[:200] or 'nothing'}"
        )
    observations = file.names(f"data/{demos[0]}/obs")
    if any(name.endswith("_rgb") for name in observations):
        return "libero"
    return "bridge" if {"image_0", "state"} <= set(observations) else "robomimic"


def _survey(files: list[Path], layout: str) -> tuple[str, list[_Demo]]:
    """The layout, which all files must have, and the episodes of all. Raises UserError for a file without one."""
    common, demos = layout, []
    for path in files:
        with Hdf5File(path) as file:
            if layout == "auto":
                own = _detected(file)
                if path != files[0] and own != common:
                    raise UserError(
                        f"{path}: has the layout {own}, {files[0].name} the layout {common}; import them one by one, "
                        "or give layout=..."
                    )
                common = own
            found = _demos(file, common)
        if not found:
            raise UserError(f"{path}: no episode; expected data/demo_0, data/demo_1, ...")
        demos += found
    return common, demos


def _demos(file: Hdf5File, layout: str) -> list[_Demo]:
    if layout == "aloha":
        return [_Demo(file.path, "", file.path.stem)]
    names = (name for name in file.names("data") if file.shape(f"data/{name}") is None)
    return [_Demo(file.path, f"data/{name}", name) for name in names]


@dataclass(frozen=True)
class _Told:
    """What a file says of all its episodes, as far as the user does not."""

    fps: int
    fps_from: str
    state_names: Any
    action_names: Any
    scenes: SeenScenes | None


def _told(demo: _Demo, layout: str, options: ImportOptions) -> _Told:
    with Hdf5File(demo.path) as file:
        arguments = _env_args(file)
        return _Told(
            *_frame_rate(file, demo, layout, options, arguments),
            options.state_names or _stored_names(arguments.get("features"), STATE),
            options.action_names or _stored_names(arguments.get("features"), ACTION),
            _stored_scenes(arguments),
        )


def _agreed(demos: list[_Demo], layout: str, options: ImportOptions) -> _Told:
    """What all files of the episodes say, with the scenes of all. Raises UserError where two differ."""
    firsts = {demo.path: demo for demo in reversed(demos)}  # of each file the first episode
    told = {path: _told(firsts[path], layout, options) for path in dict.fromkeys(demo.path for demo in demos)}
    common = told[demos[0].path]
    for path, other in told.items():
        for option in ("fps", "state_names", "action_names"):
            ours, theirs = getattr(common, option), getattr(other, option)
            if ours != theirs:
                raise UserError(
                    f"{path}: {option} is {_shown(theirs)}, in {demos[0].path.name} {_shown(ours)}; import the files "
                    f"one by one, or give {option}=..."
                )
    scenes = [one.scenes for one in told.values() if one.scenes is not None]
    return replace(common, scenes=merge(*scenes) if len(scenes) == len(told) else None)


def _shown(value: Any) -> str:
    return "not told" if value is None else f"{value!r}"[:200]


class _Reader:
    """Episodes of one layout with the keys that the first of them settled."""

    cameras: dict[str, str]
    state_keys: list[str]
    action_key: str

    def __init__(self, layout: str, options: ImportOptions, root: Path) -> None:
        self.layout, self.options, self.root = LAYOUTS[layout], options, root

    def survey(self, file: Hdf5File, demo: _Demo, arguments: dict[str, Any]) -> None:
        """Settle cameras and vectors by what the first episode holds."""
        self.action_key = self.options.action_key or self.layout.actions
        images, vectors = (f"{demo.group}/{group}" for group in (self.layout.images, self.layout.vectors))
        found = [name for name in file.names(images) if _is_camera(file, f"{images}/{name}", name)]
        stored = arguments.get("cameras")
        cameras = self.options.image_keys
        if not cameras and isinstance(stored, dict) and sorted(map(str, stored.values())) == sorted(found):
            cameras = stored
        source = str(file.path)
        self.cameras = check_cameras(cameras or default_cameras(found, source), found, source)
        self.state_keys = list(self.options.state_keys) or [
            key for key in self.layout.states if file.shape(f"{vectors}/{key}") is not None
        ]
        if not self.state_keys:  # unnamed: all that are vectors of floats
            shapes = {name: file.shape(f"{vectors}/{name}") for name in file.names(vectors)}
            self.state_keys = [n for n, s in shapes.items() if s and s[1].kind == "f" and len(s[0]) in (1, 2)]
        if not self.state_keys:
            raise UserError(f"{file.path}: '{vectors}' holds no state; name what to take with state_keys=[...]")

    def states(self, file: Hdf5File, demo: _Demo) -> list[str]:
        """Absolute keys of the state; they lie with the observations, or in the episode itself."""
        return [self._place(file, demo, key, (self.layout.vectors, "")) for key in self.state_keys]

    def action(self, file: Hdf5File, demo: _Demo) -> str:
        return self._place(file, demo, self.action_key, ("", self.layout.vectors))

    def _place(self, file: Hdf5File, demo: _Demo, key: str, groups: tuple[str, ...]) -> str:
        for group in groups:
            place = "/".join(part for part in (demo.group, group, key) if part)
            if file.shape(place) is not None:
                return place
        holds = [name for group in groups for name in file.names(f"{demo.group}/{group}")]
        raise UserError(f"{file.path}: no dataset '{key}' in '{demo.group or '/'}'. It holds: {', '.join(holds)[:300]}")

    def episode(self, demo: _Demo) -> Episode:
        """Read one episode. Raises UserError that names file and key."""
        with Hdf5File(demo.path) as file:
            keys = self.action(file, demo), *self.states(file, demo)
            actions, *states = (file.vectors(key) for key in keys)
            lengths = {key: len(values) for key, values in zip(keys, (actions, *states), strict=True)}
            left, frames = MAX_EPISODE_BYTES, {}
            for feature, camera in self.cameras.items():
                key = self._place(file, demo, camera, (self.layout.images,))
                frames[feature] = file.pictures(key, left)
                lengths[key] = len(frames[feature])
                left -= frames[feature].nbytes
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"'{key}' has {length}" for key, length in lengths.items())
                raise UserError(f"{file.path}: lengths differ: {told}")
            attributes = file.attributes(demo.group)
            task = _instruction(file, attributes) or self.options.task
        if not task:
            raise UserError(f"{file.path}: '{demo.name}' has no instruction; give one with task='...'")
        name = str(demo.path.relative_to(self.root))
        return Episode(
            images=frames.pop(IMAGE),
            states=np.concatenate(states, axis=1),
            actions=actions,
            task=task,
            metadata=provenance(attributes, demo.name, name, str(demo.path)),
            cameras=frames,
        )


def _is_camera(file: Hdf5File, key: str, name: str) -> bool:
    """True for pictures; for what only its name says to be, too, so that its faults are told when it is read."""
    found = file.shape(key)
    if found is None:
        return False
    shape, kind = found
    named = name.endswith(("image", "_rgb")) or "/images/" in key
    if len(shape) == 4:
        return named or name.startswith("image") or (kind == np.uint8 and shape[-1] == 3)
    return named or file.is_encoded(key)


def _width(file: Hdf5File, key: str) -> int:
    """Values a step."""
    shape, kind = file.shape(key) or ((), np.dtype("O"))
    if len(shape) not in (1, 2) or kind.kind not in "biuf":
        raise UserError(f"{file.path}: '{key}' is {shape} {kind}; expected numbers (T, D)")
    width = shape[1] if len(shape) == 2 else 1
    if not 1 <= width <= MAX_WIDTH:
        raise UserError(f"{file.path}: '{key}' has {width} values a step; expected 1 to {MAX_WIDTH}")
    return width


def _env_args(file: Hdf5File) -> dict[str, Any]:
    return _json(file, file.attributes("data"), "env_args")


def _json(file: Hdf5File, attributes: dict[str, Any], name: str) -> dict[str, Any]:
    """An attribute that holds a JSON object; {} if there is none. Raises UserError if it is damaged."""
    text = attributes.get(name)
    try:
        value = json.loads(text) if text else {}
        if not isinstance(value, dict):
            raise ValueError("expected an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{file.path}: attribute '{name}' of 'data' is no JSON ({error})") from error
    return value


def _instruction(file: Hdf5File, attributes: dict[str, Any]) -> str | None:
    """What the episode says, else its file: LIBERO's problem_info, robomimic's env_args, attributes of the file."""
    data = file.attributes("data")
    problem, arguments = _json(file, data, "problem_info"), _json(file, data, "env_args")
    kwargs = arguments.get("env_kwargs")
    for place in (attributes, problem, arguments, kwargs if isinstance(kwargs, dict) else {}, data, file.attributes()):
        for key in INSTRUCTIONS:
            text: Any = place.get(key)
            if isinstance(text, list) and all(isinstance(part, str) for part in text):
                text = "".join(text)  # LIBERO has lists of letters
            if is_text(text):
                found = _unquoted(text.strip()) if place is problem else text.strip()
                if found:
                    return found
    return None


def _unquoted(text: str) -> str:
    """LIBERO writes the whole instruction in quotes; those inside of one, or at one end, belong to it."""
    inner = text[1:-1]
    return inner.strip() if text == f'"{inner}"' and '"' not in inner else text


def _frame_rate(
    file: Hdf5File, demo: _Demo, layout: str, options: ImportOptions, arguments: dict[str, Any]
) -> tuple[int, str]:
    """Frames per second, and who says so."""
    if options.fps is not None:
        return whole_fps(options.fps, "fps"), "fps="
    kwargs = arguments.get("env_kwargs")
    places: dict[str, Any] = {
        "attributes of the episode": file.attributes(demo.group),
        "attributes of data": file.attributes("data"),
        "attributes of the file": file.attributes(),
        "env_args": arguments,
        "env_args env_kwargs": kwargs if isinstance(kwargs, dict) else {},
    }
    for name, place in places.items():
        for key in ("control_freq", "fps"):
            if key in place:
                return whole_fps(place[key], f"{file.path}: {key} ({name})"), f"{name}: {key}"
    return LAYOUTS[layout].fps, f"{GUESSED} of the {layout} layout"


def _stored_names(features: Any, key: str) -> Any:
    feature = features.get(key) if isinstance(features, dict) else None
    return feature.get("names") if isinstance(feature, dict) else None


def _stored_scenes(arguments: dict[str, Any]) -> SeenScenes | None:
    try:
        return scenes_from(arguments.get("seen_scenes"), "seen_scenes")
    except UserError:
        return None
