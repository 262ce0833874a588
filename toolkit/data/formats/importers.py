"""Recordings of other projects as a stream of episodes: any HDF5 (see `hints`), and LeRobotDatasets."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, nearest, warn
from toolkit.data.episode import ACTION, IMAGE, STATE, Episode
from toolkit.data.formats.hdf5 import MAX_EPISODE_BYTES, Hdf5File, natural_order
from toolkit.data.formats.hdf5_keys import Keys, find_keys, missing, stamped_rate, video_at, videos_beside
from toolkit.data.formats.hdf5_texts import LIKELY, env_args, instruction
from toolkit.data.formats.hints import ANY, LAYOUTS, recognised
from toolkit.data.formats.lerobot_layout import INFO, check_inside
from toolkit.data.formats.recording import (
    ImportOptions,
    Recording,
    chosen,
    is_text,
    provenance,
    vector_names,
    whole_fps,
)
from toolkit.data.formats.videos import Span
from toolkit.data.seen_scenes import SeenScenes, merge, scenes_from

SUFFIXES = (".hdf5", ".h5")
RATES = ("control_freq", "fps", "frequency", "hz", "control_frequency")
OFF = 0.1  # share by which time stamps may disagree with a rate
GUESSED = "default"


def open_source(source: str | Path, layout: str, options: ImportOptions, workspace: Path) -> Recording:
    """Find out what `source` is and what it holds; layout "auto" goes by structure.

    workspace: directory for a download; the caller deletes it after reading.
    Raises UserError for what cannot be imported.
    """
    known = ("auto", *LAYOUTS, "lerobot")
    if layout not in known:
        raise UserError(f"layout={layout} is unknown. {nearest(layout, known)}")
    path = Path(source)
    is_repo = not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and path.suffix not in SUFFIXES
    if layout == "lerobot" or (path / INFO).exists() or (is_repo and layout == "auto"):
        from toolkit.data.formats.lerobot_import import open_lerobot

        return open_lerobot(str(source), options, workspace).at_lower_rate(deltas=None)
    recording = _open_hdf5(path, layout, options)
    return recording.at_lower_rate(LAYOUTS[recording.layout].deltas)


@dataclass(frozen=True)
class _Demo:
    path: Path
    group: str  # "" = the whole file
    name: str
    masks: str = ""  # names of robomimic's masks that it belongs to


def _open_hdf5(source: Path, layout: str, options: ImportOptions) -> Recording:
    files, root = _files(source)
    demos = _all_demos(files, layout, options.skip_bad)
    if options.filter_key:
        demos = _masked(demos, options.filter_key, source)
    demos = chosen(demos, options.episodes, str(source))
    told, keys, (fps, fps_from), arguments = _survey(demos, layout, options)
    common = _agreed(told, (keys.layout, ANY) if options.skip_bad else (keys.layout,))
    reader = _Reader(keys, options, root, fps)
    defaults = [f"{key.rsplit('/', 1)[-1]}_{i}" for key in keys.states for i in range(keys.widths[key])]
    if len(set(defaults)) < len(defaults):
        defaults = [f"{key.replace('/', '_')}_{i}" for key in keys.states for i in range(keys.widths[key])]
    numbered = [f"action_{i}" for i in range(sum(keys.widths[key] for key in keys.actions))]
    stored_robot = arguments.get("robot_type")
    return Recording(
        layout=keys.layout,
        fps=fps,
        fps_from=fps_from,
        cameras=keys.cameras,
        state_keys=keys.states,
        action_key=",".join(keys.actions),
        state_names=vector_names("state_names", options.state_names, common.state_names, defaults),
        action_names=vector_names("action_names", options.action_names, common.action_names, numbered),
        robot_type=options.robot_type or (str(stored_robot) if is_text(stored_robot) else "unknown"),
        files=[*told, *(video for demo in demos for video in _videos(demo, keys))],
        root=root,
        options=options,
        items=demos,
        load=reader.episode,
        seen_scenes=common.scenes,
        left_out=keys.left_out,
    )


def _videos(demo: _Demo, keys: Keys) -> list[Path]:
    """The files beside an episode that its cameras are read from."""
    wanted = {camera for camera in keys.cameras.values() if keys.places[camera] == camera}
    return [] if demo.group or not wanted else [p for name, p in videos_beside(demo.path).items() if name in wanted]


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


def _all_demos(files: list[Path], layout: str, skip_bad: bool) -> list[_Demo]:
    """The episodes of all files; where the first file is one episode the others are, too, and are not opened.

    With `skip_bad` a file that cannot be opened counts as one episode, which is left out when it is read.
    """
    demos: list[_Demo] = []
    group = LAYOUTS[layout].group if layout in LAYOUTS else None
    alone = False
    for path in files:
        if alone:
            demos.append(_Demo(path, "", path.stem))
            continue
        try:
            with Hdf5File(path) as file:
                found = _demos(file, group)
            alone = bool(found) and not found[0].group
        except UserError:
            if not skip_bad:
                raise
            found = [_Demo(path, "", path.stem)]
        if not found:
            what = "no known layout" if layout == "auto" else "no episode"
            raise UserError(f"{path}: {what}; expected data/demo_0, data/demo_1, ...")
        demos += found
    return demos


def _demos(file: Hdf5File, group: str | None) -> list[_Demo]:
    """Groups below `data`, else numbered groups such as traj_0, else the whole file."""
    top = [name for name in file.names() if file.shape(name) is None]
    members: dict[str, list[str]] = {}
    for mask in file.names("mask"):
        for name in file.texts(f"mask/{mask}"):
            members.setdefault(name, []).append(mask)
    if group == "data" or (group is None and "data" in top):
        inside = file.names("data")
        groups = [name for name in inside if file.shape(f"data/{name}") is None]
        groups = [name for name in groups if name[-1].isdigit()] or groups
        if group == "data" or len(groups) == len(inside) or any(name[-1].isdigit() for name in groups):
            return [_Demo(file.path, f"data/{name}", name, ",".join(members.get(name, []))) for name in groups]
    numbered = [name for name in top if re.fullmatch(r"[A-Za-z_-]*\d+", name)]
    if group is None and numbered:
        return [_Demo(file.path, name, name, ",".join(members.get(name, []))) for name in numbered]
    return [_Demo(file.path, "", file.path.stem)]


def _root(demo: _Demo) -> str:
    return demo.group.rpartition("/")[0] if "/" in demo.group else ("" if not demo.group else "*")


def _masked(demos: list[_Demo], mask: str, source: Path) -> list[_Demo]:
    known = sorted({name for demo in demos for name in demo.masks.split(",") if name})
    if found := [demo for demo in demos if mask in demo.masks.split(",")]:
        return found
    raise UserError(f"{source}: filter_key={mask} is no mask of its files. {nearest(mask, known) if known else ''}")


def _survey(demos: list[_Demo], layout: str, options: ImportOptions) -> Any:
    """What each file tells, and by the first episode the keys, the rate and what stands in its file's `env_args`.

    With `skip_bad` files and episodes that are damaged are passed over, but for the last.
    """
    firsts = {demo.path: demo for demo in reversed(demos)}  # of each file the first episode
    told: dict[Path, _Told] = {}
    for path in dict.fromkeys(demo.path for demo in demos):
        with _passing(options.skip_bad and path != demos[-1].path):
            told[path] = _told(firsts[path], layout, options)
    for demo in demos:
        with _passing(options.skip_bad and demo is not demos[-1]), Hdf5File(demo.path) as file:
            keys = find_keys(file, demo.group, _root(demo), layout, options)
            return told, keys, _frame_rate(file, demo, keys, options, told[demo.path]), env_args(file)
    raise AssertionError("the last one returns or raises")


def _passing(skip_bad: bool) -> AbstractContextManager[Any]:
    return suppress(UserError) if skip_bad else nullcontext()


@dataclass(frozen=True)
class _Told:
    """What a file says of all its episodes, as far as the user does not."""

    layout: str
    fps: Any
    fps_from: str
    state_names: Any
    action_names: Any
    scenes: SeenScenes | None


def _told(demo: _Demo, layout: str, options: ImportOptions) -> _Told:
    with Hdf5File(demo.path) as file:
        arguments = env_args(file)
        own = recognised(_root(demo), file.datasets(demo.group)) if layout == "auto" else layout
        return _Told(
            own,
            *_stored_rate(file, demo, options, arguments),
            options.state_names or _stored_names(arguments.get("features"), STATE),
            options.action_names or _stored_names(arguments.get("features"), ACTION),
            _stored_scenes(arguments),
        )


def _agreed(told: dict[Path, _Told], layouts: tuple[str, ...]) -> _Told:
    """What all files of the episodes say, with the scenes of all. Raises UserError where two differ."""
    first, common = next(iter(told.items()))
    for path, other in told.items():
        if other.layout not in layouts:
            raise UserError(
                f"{path}: has the layout {other.layout}, {first.name} the layout {layouts[0]}; import them one by one, "
                "or give layout=..."
            )
        for option in ("fps", "state_names", "action_names"):
            ours, theirs = getattr(common, option), getattr(other, option)
            if ours != theirs:
                raise UserError(
                    f"{path}: {option} is {_shown(theirs)}, in {first.name} {_shown(ours)}; import the files one by "
                    f"one, or give {option}=..."
                )
    scenes = [one.scenes for one in told.values() if one.scenes is not None]
    return replace(common, scenes=merge(*scenes) if len(scenes) == len(told) else None)


def _shown(value: Any) -> str:
    return "not told" if value is None else f"{value!r}"[:200]


class _Reader:
    """Episodes read by the keys that the first of them settled."""

    def __init__(self, keys: Keys, options: ImportOptions, root: Path, fps: int) -> None:
        self.keys, self.options, self.root, self.fps = keys, options, root, fps
        self.told_cut = self.told_place = False

    def episode(self, demo: _Demo) -> Episode:
        """Read one episode. Raises UserError that names file and key."""
        keys = self.keys
        with Hdf5File(demo.path) as file:
            for key in (*keys.actions, *keys.states):
                if file.shape(f"{demo.group}/{key}") is None:
                    raise UserError(missing(file, demo.group, key))
            vectors = {key: file.vectors(f"{demo.group}/{key}".strip("/")) for key in (*keys.actions, *keys.states)}
            frames = self._frames(file, demo, len(vectors[keys.actions[0]]))
            attributes = file.attributes(demo.group)
            length = self._length(demo, keys, vectors, frames, attributes)
            task, place = instruction(file, demo.group, self.options.task_key, not demo.group)
        if not task and not self.options.task:
            raise UserError(
                f"{demo.path}: '{demo.name}' has no instruction; give one with task='...', or its place with "
                f"task_key=...; texts seen: {place}"
            )
        if task and not self.options.task_key and place.rsplit(".", 1)[-1] in LIKELY and not self.told_place:
            warn(
                f"{demo.path}: instructions are taken from '{place}', as '{task[:60]}'; give task_key= or task= if not"
            )
            self.told_place = True
        frames = {feature: images[:length] for feature, images in frames.items()}
        return Episode(
            images=frames.pop(IMAGE, None),
            states=np.concatenate([vectors[key][:length] for key in keys.states], axis=1),
            actions=np.concatenate([vectors[key][:length] for key in keys.actions], axis=1),
            task=task or str(self.options.task),
            metadata={
                **provenance(attributes, demo.name, str(demo.path.relative_to(self.root)), str(demo.path)),
                **({"masks": demo.masks} if demo.masks else {}),
            },
            cameras=frames,
        )

    def _frames(self, file: Hdf5File, demo: _Demo, length: int) -> dict[str, np.ndarray]:
        left, frames = MAX_EPISODE_BYTES, {}
        for feature, camera in self.keys.cameras.items():
            key = self.keys.places[camera]
            place = f"{demo.group}/{key}".strip("/")
            if file.shape(place) is not None:
                frames[feature] = file.pictures(place, left)
            elif demo.group or self.keys.places[camera] != camera:
                raise UserError(missing(file, demo.group, key))
            else:
                video = video_at(demo.path, camera)
                frames[feature] = video.read(video.rows(Span(video.path), np.arange(length) / self.fps, self.fps))
            left -= frames[feature].nbytes
        return frames

    def _length(self, demo: _Demo, keys: Keys, vectors: Any, frames: Any, attributes: dict[str, Any]) -> int:
        """Steps of the episode that were written. Raises UserError where keys disagree, or more are announced."""
        names = {feature: keys.places[camera] for feature, camera in keys.cameras.items()}
        lengths = {key: len(values) for key, values in vectors.items()}
        lengths |= {names[feature]: len(images) for feature, images in frames.items()}
        length = lengths[keys.actions[0]]
        if {count - (keys.longer and key not in keys.actions) for key, count in lengths.items()} != {length}:
            told = ", ".join(f"'{demo.group}/{key}' has {count}" for key, count in lengths.items())
            raise UserError(f"{demo.path}: lengths differ: {told}")
        written = attributes.get("num_samples", length)
        if not isinstance(written, int | float) or written > length or written < 1:
            raise UserError(f"{demo.path}: '{demo.name}' says num_samples {written}, and has {length} rows")
        if written < length and not self.told_cut:
            warn(
                f"{demo.path}: '{demo.name}' has {length} rows and num_samples {written}; rows after these are left out"
            )
            self.told_cut = True
        return int(written)


def _stored_rate(file: Hdf5File, demo: _Demo, options: ImportOptions, arguments: dict[str, Any]) -> tuple[Any, str]:
    """Frames per second that the user or an attribute tells, and which; None if none does."""
    if options.fps is not None:
        return whole_fps(options.fps, "fps"), "fps="
    nested = (arguments.get(key) for key in ("env_kwargs", "sim_args"))
    kwargs, simulator = (value if isinstance(value, dict) else {} for value in nested)
    places: dict[str, Any] = {
        "attributes of the episode": file.attributes(demo.group),
        "attributes of data": file.attributes("data"),
        "attributes of the file": file.attributes(),
        "env_args": arguments,
        "env_args env_kwargs": kwargs,
    }
    for name, place in places.items():
        for key in RATES:
            if key in place:
                return whole_fps(place[key], f"{file.path}: {key} ({name})"), f"{name}: {key}"
    step: Any = simulator.get("dt"), simulator.get("decimation")
    if all(isinstance(value, int | float) and value > 0 for value in step):
        told = "env_args sim_args: dt, decimation"
        return whole_fps(round(1 / (step[0] * step[1]), 6), f"{file.path}: {told}"), told
    return None, ""


def _frame_rate(file: Hdf5File, demo: _Demo, keys: Keys, options: ImportOptions, told: _Told) -> tuple[int, str]:
    """Frames per second: as told, else by time stamps, videos or the layout's habit; what is guessed is said."""
    stamped = stamped_rate(file, demo.group, file.datasets(demo.group), keys.length)
    if told.fps is not None:
        if stamped and abs(stamped[0] / told.fps - 1) > OFF:
            said = f"time stamps '{stamped[1]}' say {stamped[0]:.4g} steps a second"
            warn(f"{file.path}: {said}, {told.fps_from} {told.fps}")
        return told.fps, told.fps_from
    if stamped:
        rate = max(round(stamped[0]), 1)
        if abs(stamped[0] / rate - 1) > 0.005:
            warn(f"{file.path}: time stamps '{stamped[1]}' say {stamped[0]:.4g} steps a second; taken as {rate}")
        return rate, f"time stamps {stamped[1]}"
    beside = [name for name in keys.cameras.values() if not demo.group and file.shape(keys.places[name]) is None]
    if beside:
        period = video_at(demo.path, beside[0]).period
        return whole_fps(round(1 / period, 2), f"{demo.path}: rate of the video '{beside[0]}'"), f"video {beside[0]}"
    rate = LAYOUTS[keys.layout].fps
    by = f"{GUESSED} of the {keys.layout} layout"
    warn(f"{file.path}: no file says its rate; taken as {rate} steps a second, the {by}. Give fps=...")
    return rate, by


def _stored_names(features: Any, key: str) -> Any:
    feature = features.get(key) if isinstance(features, dict) else None
    return feature.get("names") if isinstance(feature, dict) else None


def _stored_scenes(arguments: dict[str, Any]) -> SeenScenes | None:
    try:
        return scenes_from(arguments.get("seen_scenes"), "seen_scenes")
    except UserError:
        return None
