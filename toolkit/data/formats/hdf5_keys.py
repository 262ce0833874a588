"""Which keys of an HDF5 episode are its actions, its state and its cameras: given, known by its layout, or guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from toolkit.base.errors import UserError, warn
from toolkit.data.formats.hdf5 import Hdf5File, natural_order
from toolkit.data.formats.hints import LAYOUTS, NO_CAMERA, actions_among, recognised, states_among
from toolkit.data.formats.recording import ImportOptions, check_cameras, default_cameras
from toolkit.data.formats.videos import Video

MAX_WIDTH = 10_000
SHOWN = 40  # keys in a message
VIDEOS = (".mp4", ".mkv", ".webm", ".mov")
Shapes = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclass
class Keys:
    """What is read of every episode; keys are paths below its group."""

    layout: str
    actions: list[str]
    states: list[str]
    cameras: dict[str, str]  # feature: name of the camera
    places: dict[str, str]  # of each camera: its key, or the part of a video file's name that tells it from others
    widths: dict[str, int]
    length: int
    longer: bool  # observations have one step more than actions, the one after the last
    left_out: list[str] = field(default_factory=list)
    encoded: bool = False


def find_keys(file: Hdf5File, group: str, root: str, layout: str, options: ImportOptions) -> Keys:
    """Settle the keys by what the first episode holds.

    root: the group of all episodes. Raises UserError that lists what there is where something is missing or not clear.
    """
    shapes = file.datasets(group)
    layout = recognised(root, shapes) if layout == "auto" else layout
    hints = LAYOUTS[layout]
    vectors = [key for key in sorted(shapes, key=natural_order) if _is_vector(shapes[key])]
    if options.action_key:
        actions = [key for name in options.action_key.split(",") for key in _resolve(file, group, shapes, name.strip())]
    else:
        actions = [key for key in hints.actions if key in vectors] if hints.actions else actions_among(vectors)
    if not actions:
        what = f"no '{hints.actions[0]}', which the layout {layout} has" if hints.actions else "no known layout"
        raise UserError(
            f"{file.path}: {what}; none of its keys is surely the actions, name them with action_key=...; "
            f"found: {_listed(shapes)}"
        )
    widths = {key: _width(file, f"{group}/{key}", shapes[key]) for key in actions}
    length = shapes[actions[0]][0][0]
    pictures = _cameras(file, group, shapes, options)
    observed = [key for key in vectors if key not in actions and shapes[key][0][0] in (length, length + 1)]
    known: list[str] = []
    if options.state_keys:
        states = [key for name in options.state_keys for key in _resolve(file, group, shapes, name)]
    else:
        known = [key for name in hints.states for key in observed if f"/{key}".endswith(f"/{name}")]
        states = known or states_among(observed)
    if not states:
        found = _listed(shapes)
        raise UserError(
            f"{file.path}: '{group}' holds no state; name what to take with state_keys=[...]; found: {found}"
        )
    widths |= {key: _width(file, f"{group}/{key}", shapes[key]) for key in states}
    keys = Keys(layout, actions, states, {}, pictures, widths, length, False)
    source = str(file.path)
    keys.cameras = check_cameras(options.image_keys or default_cameras(list(pictures), source), list(pictures), source)
    taken = {*actions, *states, *(pictures[name] for name in keys.cameras.values())}
    keys.left_out = [f"{key} {_shape(shapes[key])}" for key in sorted(shapes, key=natural_order) if key not in taken]
    counts = {shapes[key][0][0] for key in taken - set(actions) if key in shapes}
    keys.longer = counts == {length + 1}
    keys.encoded = any(file.is_encoded(f"{group}/{pictures[name]}") for name in keys.cameras.values())
    guessed = {} if options.action_key or hints.actions else {"action_key": actions}
    _tell(file, keys, options, guessed if options.state_keys or known else {**guessed, "state_keys": states})
    return keys


def _tell(file: Hdf5File, keys: Keys, options: ImportOptions, guessed: dict[str, list[str]]) -> None:
    """Warnings about what was guessed."""
    for option, found in guessed.items():
        warn(f"{file.path}: {', '.join(found)} chosen by name. Give {option}= if that is wrong")
    if keys.encoded and options.colour_order is None:
        often = f"; files of the layout {keys.layout} often hold them swapped" if LAYOUTS[keys.layout].often_bgr else ""
        warn(
            f"{file.path}: encoded pictures do not tell the order of their colours; taken as rgb{often}. If red and "
            "blue are swapped in what vag inspect shows, give colour_order=bgr"
        )
    if keys.longer:
        warn(f"{file.path}: observations have one step more than actions; the last one is left out")


def _is_vector(shape: tuple[tuple[int, ...], np.dtype]) -> bool:
    return len(shape[0]) in (1, 2) and shape[1].kind in "biuf" and min(shape[0], default=0) > 0


def _resolve(file: Hdf5File, group: str, shapes: Shapes, name: str) -> list[str]:
    """The dataset of a name, all vectors of a group of that name, or the one whose path ends so."""
    name = name.strip("/")
    if name in shapes:
        return [name]
    if inside := [key for key in shapes if key.startswith(f"{name}/") and _is_vector(shapes[key])]:
        return sorted(inside, key=natural_order)
    ends = [key for key in shapes if key.endswith(f"/{name}")]
    if len(ends) == 1:
        return ends
    if ends:
        raise UserError(f"{file.path}: '{name}' may be {' or '.join(ends)}; give the whole key")
    raise UserError(missing(file, group, name, shapes))


def missing(file: Hdf5File, group: str, name: str, shapes: Shapes | None = None) -> str:
    found = _listed(file.datasets(group) if shapes is None else shapes)
    return f"{file.path}: no dataset '{name}' in '{group or '/'}'. It holds: {found}"


def _cameras(file: Hdf5File, group: str, shapes: Shapes, options: ImportOptions) -> dict[str, str]:
    """Every camera by a short name: pictures in the file, else videos beside it."""
    given = {str(name) for name in options.image_keys.values()}
    found = [
        key
        for key in sorted(shapes, key=natural_order)
        if key in given or (not NO_CAMERA.search(key.lower()) and file.is_pictures(f"{group}/{key}"))
    ]
    found += [key for name in given - {*found} for key in shapes if key.endswith(f"/{name}") and key not in found]
    short = [key.rsplit("/", 1)[-1] for key in found]
    plain = {"rgb", "color", "image", "images", "data"}
    names = {
        (end if short.count(end) == 1 and (end not in plain or "/" not in key) else key): key
        for end, key in zip(short, found, strict=True)
    }
    return names or {name: name for name in videos_beside(file.path)} if not group else names


def videos_beside(path: Path) -> dict[str, Path]:
    """Videos of the episode that a file holds alone, by the name of their camera.

    They lie below a folder of the file's own, or have its name in theirs.
    """
    own = len([one for one in path.parent.iterdir() if one.suffix in (".h5", ".hdf5")]) == 1
    videos = sorted(one for one in path.parent.rglob("*") if one.suffix in VIDEOS and one.is_file())
    videos = [one for one in videos if not one.stem.endswith("-stereo")]  # DROID's pictures of both eyes side by side
    if own:
        return {one.stem: one for one in videos}
    found = {}
    for one in videos:
        parts = one.relative_to(path.parent).with_suffix("").parts
        if re.search(rf"(^|[/_.-]){re.escape(path.stem)}($|[/_.-])", "/".join(parts)):
            rest = [part.replace(path.stem, "").strip("_.-") for part in parts]
            found["_".join(part for part in rest if part and part != "videos") or "video"] = one
    return found


def _width(file: Hdf5File, key: str, found: tuple[tuple[int, ...], np.dtype]) -> int:
    """Values a step."""
    shape, kind = found
    if not _is_vector(found):
        raise UserError(f"{file.path}: '{key}' is {shape} {kind}; expected numbers (T, D)")
    width = shape[1] if len(shape) == 2 else 1
    if width > MAX_WIDTH:
        raise UserError(f"{file.path}: '{key}' has {width} values a step; expected 1 to {MAX_WIDTH}")
    return width


def _shape(found: tuple[tuple[int, ...], np.dtype]) -> str:
    rows = h5py.check_vlen_dtype(found[1]) == np.uint8
    kind = "rows of bytes" if rows else "text" if found[1].kind in "OS" else str(found[1])
    return f"{'x'.join(map(str, found[0])) or 'scalar'} {kind}"


def _listed(shapes: Shapes) -> str:
    told = [f"{key} {_shape(shape)}" for key, shape in list(shapes.items())[:SHOWN]]
    return ", ".join(told) + (f" and {len(shapes) - SHOWN} more" if len(shapes) > SHOWN else "") or "nothing"


def stamped_rate(file: Hdf5File, group: str, shapes: Shapes, length: int) -> tuple[float, str] | None:
    """Steps a second by the first time stamps that an episode holds, and their key."""
    for key in sorted(shapes, key=lambda key: (key.count("/"), key)):
        shape, kind = shapes[key]
        if shape not in ((length,), (length, 1)) or kind.kind not in "iuf" or length < 3:
            continue
        if re.search(r"(^|[/_])(time|timestamps?|stamps?|time_?stamp\w*)($|[/_])", key.lower()):
            steps = np.diff(file.numbers(f"{group}/{key}"))
            step = float(np.median(steps))
            unit = next((unit for most, unit in ((2, 1.0), (5e3, 1e3), (5e6, 1e6), (5e10, 1e9)) if step < most), 0)
            if unit and step > 0 and 0.2 <= unit / step <= 1000:
                return unit / step, key
    return None


def video_at(path: Path, name: str) -> Video:
    """The video of a camera beside an episode's file. Raises UserError if there is none."""
    videos = videos_beside(path)
    if name not in videos:
        raise UserError(f"{path}: no video of the camera '{name}' beside it; found: {', '.join(videos) or 'none'}")
    return Video(videos[name])
