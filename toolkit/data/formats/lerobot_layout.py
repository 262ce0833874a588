"""What `meta/info.json` of a LeRobotDataset v3 says, checked, and where its files may lie: inside the dataset."""

from __future__ import annotations

import math
import re
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from toolkit.base.errors import UserError
from toolkit.base.manifest import PARTIAL, REMOVED
from toolkit.base.reading import read_json
from toolkit.data.episode import ACTION, IMAGE, STATE

MOST_LETTERS = 10_000  # of an instruction
INFO = "meta/info.json"
PICTURES = ("video", "image")
DEPTH = ("is_depth_map", "video.is_depth_map")
BOOKKEEPING = ("frame_index", "index", "episode_index", "task_index", "timestamp")  # features that LeRobot adds
UNFINISHED = (".partial", PARTIAL, REMOVED)  # ends of names that writers leave when they are killed


def check_inside(directory: str | Path, path: str | Path) -> Path:
    """`path`, absolute or relative to `directory`. Raises UserError if it lies outside, also through a symlink."""
    root = Path(directory).resolve()
    try:
        resolved = (root / path if not Path(path).is_absolute() else Path(path)).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a zero byte
        raise UserError(f"{directory}: path '{path}' leads nowhere ({error})") from error
    if not resolved.is_relative_to(root):
        raise UserError(f"{directory}: '{path}' leads out of the directory, to {resolved}; copy the file into it")
    return Path(directory) / path


def check_links(directory: Path) -> None:
    """Raise UserError for anything below `directory` that lies outside, or is neither a file nor a directory.

    A link to a directory is refused wherever it leads: a copy would hold its content twice, or endlessly often.
    """
    for path in Path(directory).rglob("*"):
        name = path.relative_to(directory)
        check_inside(directory, name)
        if path.is_symlink() and path.is_dir():
            raise UserError(f"{directory}: '{name}' is a link to a directory; move the directory there")
        if not path.is_file() and not path.is_dir():
            raise UserError(f"{directory}: '{name}' is no file, or a link that leads nowhere; delete it")


def data_files(directory: str | Path) -> list[Path]:
    """The regular files of a dataset, sorted, without what killed writers have left."""
    return sorted(p for p in Path(directory).rglob("*") if not p.name.endswith(UNFINISHED) and p.is_file())


def picture_bytes(directory: Path, info: dict[str, Any], keys: Sequence[str]) -> int:
    """Bytes of the files that hold the pictures of some cameras: their videos, or all tables of rows."""
    in_tables = any(info["features"][key]["dtype"] == "image" for key in keys)
    folders = {*keys, *(["data"] if in_tables else [])}
    return sum(p.stat().st_size for p in data_files(directory) if folders & {*p.relative_to(directory).parts})


def copy_files(directory: Path, target: Path, leave_out: Sequence[str] = ()) -> None:
    """Copy a dataset, also one that may only be read, into a folder, but for names that match `leave_out`.

    Raises UserError as `check_links`, or if a copy fails.
    """
    check_links(directory)
    try:
        shutil.copytree(directory, target, ignore=shutil.ignore_patterns(*leave_out), dirs_exist_ok=True)
    except shutil.Error as error:
        name, _, reason = error.args[0][0]
        raise UserError(f"{name}: cannot be copied ({reason})") from error
    for path in (target, *target.rglob("*")):
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def read_info(directory: Path, versions: tuple[str, ...] = ("v3",)) -> dict[str, Any]:
    """`meta/info.json`. Raises UserError that names the file, the key and what was expected."""
    path = check_inside(directory, INFO)
    if not path.is_file():
        raise UserError(f"{directory}: not a LeRobotDataset (no {INFO})")
    info = read_json(path)
    version = str(info.get("codebase_version", "unknown"))
    if not version.startswith(versions):
        raise UserError(
            f"{path}: LeRobotDataset {version}; expected {' or '.join(versions)}. `vag import` reads v2.0, v2.1 and "
            "v3; convert others with LeRobot's own script"
        )
    fps = info.get("fps")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps < 1e6:
        raise UserError(f"{path}: 'fps' is {fps!r}; expected a positive number")
    for key in ("total_episodes", "total_frames"):
        value = info.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"{path}: '{key}' is {value!r}; expected a count")
    features = info.get("features")
    if not isinstance(features, dict) or not all(isinstance(feature, dict) for feature in features.values()):
        raise UserError(f"{path}: 'features' is missing or damaged; expected a table of features")
    for key, feature in features.items():
        shape = feature.get("shape")
        if not isinstance(feature.get("dtype"), str):
            raise UserError(f"{path}: feature '{key}' has no 'dtype'")
        if not isinstance(shape, list) or not all(isinstance(n, int) and 0 <= n < 1e6 for n in shape):
            raise UserError(f"{path}: feature '{key}' has shape {shape!r}; expected a list of sizes")
        if any(isinstance(n, bool) for n in shape) or math.prod(shape) > 1e9:
            raise UserError(f"{path}: feature '{key}' has shape {shape}; more than 10^9 values a frame")
    return info


def check_features(
    directory: Path, info: dict[str, Any], image_key: str | None = IMAGE, vectors: Sequence[str] = (STATE, ACTION)
) -> None:
    """Raise UserError for a missing feature key, listing the keys that exist, and for one of another kind."""
    for key in (*([image_key] if image_key else []), *vectors):
        if key not in info["features"]:
            names = ", ".join(k for k in info["features"] if k.startswith(("observation", "action")))
            raise UserError(f"{directory}: no feature '{key}'; the dataset has: {names}")
    if image_key and (kind := info["features"][image_key]["dtype"]) not in PICTURES:
        raise UserError(f"{directory}: image_key={image_key} holds {kind}, not pictures")
    for key in vectors:
        if (kind := info["features"][key]["dtype"]) in (*PICTURES, "string"):
            raise UserError(f"{directory}: '{key}' holds {kind}; expected numbers")


def camera_keys(info: dict[str, Any]) -> list[str]:
    """Feature keys of pictures, `observation.image` first, the rest by name."""
    features = info["features"].items()
    found = [key for key, feature in features if feature["dtype"] in PICTURES and 3 in feature["shape"]]
    return sorted((key for key in found if not _is_depth(info["features"][key])), key=lambda key: (key != IMAGE, key))


def _is_depth(feature: dict[str, Any]) -> bool:
    return any(one.get(key) is True for one in _video_notes(feature) for key in DEPTH)


def video_codec(info: dict[str, Any], key: str) -> str:
    """Codec of a camera's videos, such as "av1"; empty where the dataset does not say."""
    return next((str(one["video.codec"]) for one in _video_notes(info["features"][key]) if "video.codec" in one), "")


def _video_notes(feature: dict[str, Any]) -> list[dict[str, Any]]:
    return [feature[name] for name in ("info", "video_info") if isinstance(feature.get(name), dict)]


def picture_size(info: dict[str, Any], key: str) -> tuple[int, int]:
    """(height, width) of a camera's pictures: LeRobot allows the colours as the first or as the last of three sizes.

    Raises UserError for other shapes.
    """
    shape = info["features"][key]["shape"]
    if len(shape) == 3 and 3 in (shape[0], shape[2]):
        height, width = shape[:2] if shape[2] == 3 else shape[1:]
        if min(height, width) > 0:
            return height, width
    raise UserError(f"{INFO}: '{key}' has shape {shape}; expected [height, width, 3] or [3, height, width]")


def dimension_names(info: dict[str, Any], key: str) -> list[str]:
    """Names of a vector's dimensions that say what these are; none if the dataset gives none, or numbers alone."""
    names = feature_names(info, key)
    return [] if all(name.endswith(f"_{i}") for i, name in enumerate(names)) else names


def feature_names(info: dict[str, Any], key: str) -> list[str]:
    """Names of a vector's dimensions as the dataset gives them, else `<last part of key>_<i>`."""
    names, width = info["features"][key].get("names"), math.prod(info["features"][key]["shape"])
    if isinstance(names, dict) and len(names) == 1:  # {"motors": [...]}
        names = next(iter(names.values()))
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list):  # as Unitree's sets have them
        names = names[0]
    if isinstance(names, list) and len(names) == width and all(isinstance(name, str) for name in names):
        return names
    return [f"{key.rsplit('.', 1)[-1]}_{i}" for i in range(width)]


def video_file(directory: Path, info: dict[str, Any], key: str, chunk: int, file: int) -> Path:
    """Path of a video. Raises UserError as `video_place`, or if there is no such file."""
    return _existing(video_place(directory, info, key, chunk, file))


def video_place(directory: Path, info: dict[str, Any], key: str, chunk: int, file: int) -> Path:
    """Path of a video that may be missing. Raises UserError for a template that is damaged or leads out."""
    return _place(directory, info, "video_path", video_key=key, chunk_index=chunk, file_index=file)


def data_file(directory: Path, info: dict[str, Any], chunk: int, file: int) -> Path:
    """Path of a table of rows. Raises UserError as `video_file`."""
    return _existing(_place(directory, info, "data_path", chunk_index=chunk, file_index=file))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path}: is missing; the dataset is incomplete")
    return path


def _place(directory: Path, info: dict[str, Any], kind: str, **values: str | int) -> Path:
    template: Any = info.get(kind)
    try:
        fields = [(name, spec) for _, name, spec, _ in Formatter().parse(template) if name is not None]
        allowed = {"video_key", "chunk_index", "file_index"}
        if not all(name in allowed and re.fullmatch(r"(0?\d?d)?", spec or "") for name, spec in fields):
            raise ValueError("unknown field")
        name = template.format(**values)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{directory / INFO}: '{kind}' is {template!r}; expected LeRobot's template") from error
    path = check_inside(directory, name)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(f"{directory / INFO}: '{kind}' gives '{name}'; expected a path below the dataset")
    return path


def check_instruction(text: str, where: str) -> None:
    """Raise UserError for a text that is no instruction: longer than any, or none that a file can hold."""
    if len(text) > MOST_LETTERS:
        raise UserError(f"{where}: its instruction has {len(text)} letters; at most {MOST_LETTERS} are taken")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: its instruction is no UTF-8 text ({error.reason}); write it anew") from error
