"""All that can be read of a LeRobotDataset v3 that may be damaged, with a note of what could not.

Legend: E episodes, N rows (one per frame) of all episodes, D numbers of a feature in a row.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.reading import read_json
from toolkit.data.episode import ACTION, STATE
from toolkit.data.episode_notes import episode_id
from toolkit.data.formats.lerobot_layout import BOOKKEEPING, INFO, PICTURES, check_inside, read_info
from toolkit.data.formats.lerobot_read import OWN_NOTES, own_notes
from toolkit.data.formats.parquet import column_names, plausible_rows, read_data_frame

MAX_LETTERS = 1000  # of a line
MAX_LINES = 20  # of one kind; the rest is counted

# What repairs a problem: new statistics, writing all rows again, leaving the episodes out, or one of each two.
Remedy = Literal["statistics", "rewrite", "drop", "duplicate"]


@dataclass(frozen=True)
class Problem:
    """One line that names what is wrong, where, and what to do; `episodes` are places in the episode table."""

    text: str
    remedy: Remedy
    episodes: tuple[int, ...] = ()


@dataclass
class Findings:
    """Problems break training or lie; warnings are worth a look."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    originals: dict[int, int] = field(default_factory=dict)  # of an episode that repeats another, that other one

    def add(self, remedy: Remedy, text: str, episodes: Iterable[int] = ()) -> None:
        self.problems.append(Problem(one_line(text), remedy, tuple(episodes)))

    def warn(self, text: str) -> None:
        self.warnings.append(one_line(text))

    def each(self, remedy: Remedy, kind: str, found: Sequence[tuple[int, str]]) -> None:
        """One problem per (episode, text); those beyond `MAX_LINES` are counted in one."""
        for episode, text in found[:MAX_LINES]:
            self.add(remedy, text, [episode])
        if rest := found[MAX_LINES:]:
            self.add(remedy, f"{kind}: {len(rest)} further episodes have the same problem", [e for e, _ in rest])

    @property
    def dropped(self) -> set[int]:
        """Episodes that no repair keeps; of those that are the same the first one stays that is whole."""
        broken = {e for problem in self.problems if problem.remedy == "drop" for e in problem.episodes}
        settled = set(self.originals.values()) - broken  # originals that stay, or that another stands in for
        repeated = set()
        for episode, original in sorted(self.originals.items()):
            if episode in broken:
                continue
            if original in settled:
                repeated.add(episode)
            settled.add(original)
        return broken | repeated


@dataclass
class Contents:
    """What could be read. Episodes are named by their place in the episode table, ordered by episode_index."""

    directory: Path
    info: dict[str, Any]
    fps: float
    episodes: list[dict[str, Any]]  # columns of the episode table
    notes: list[dict[str, Any]]  # what the dataset notes of the episodes beside that table
    ids: np.ndarray  # (E,) episode_index of the episode table
    rows: list[np.ndarray]  # of each episode the numbers of its rows, in the order of its frames
    frames: Any  # the pandas table of all rows, in the order of the files
    values: dict[str, np.ndarray]  # (N, D) of every numeric feature; NaN where a cell holds something else
    instructions: dict[int, str]  # by task index
    has_tasks: bool  # False if meta/tasks.parquet is missing or damaged
    videos: dict[tuple[str, int, int], Path] = field(default_factory=dict)  # by camera, chunk and file, once looked up

    @property
    def features(self) -> dict[str, Any]:
        return self.info["features"]

    @property
    def cameras(self) -> list[str]:
        return [key for key, feature in self.features.items() if feature["dtype"] in PICTURES]

    @property
    def vectors(self) -> list[str]:
        """Numeric features that are data, not bookkeeping, as far as they could be read."""
        return [key for key in self.values if key not in BOOKKEEPING]

    def name(self, episode: int) -> str:
        return f"episode {self.ids[episode]}"

    def place(self, row: int) -> str:
        """The episode and the frame that a row belongs to."""
        for episode, rows in enumerate(self.rows):
            if len(found := np.flatnonzero(rows == row)):
                return f"{self.name(episode)}, frame {found[0]}"
        return f"row {row}, which belongs to no episode"

    def task_indices(self, episode: int) -> list[float]:
        """Task indices of an episode, each once, in order of appearance."""
        if "task_index" not in self.values:
            return []
        return list(dict.fromkeys(self.values["task_index"][self.rows[episode], 0].tolist()))

    def instruction(self, episode: int) -> str | None:
        """The first instruction of an episode that is known; None if none is."""
        for index in self.task_indices(episode):
            if index in self.instructions:
                return self.instructions[int(index)]
        own = self.episodes[episode].get("tasks")
        own = list(own) if isinstance(own, list | tuple | np.ndarray) else []
        return own[0] if len(own) == 1 and isinstance(own[0], str) else None


def one_line(text: str) -> str:
    """Text from a file as one printable line: names and instructions of damaged files may hold anything."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    text = text if len(text) <= MAX_LETTERS else f"{text[: MAX_LETTERS - 1]}…"
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def dimension(feature: dict[str, Any], index: int) -> str:
    """`dimension 3 (gripper)`, the name if there is one."""
    names = flat_names(feature.get("names"))
    return f"dimension {index} ({names[index]})" if index < len(names) else f"dimension {index}"


def flat_names(names: Any) -> list[str]:
    """Names of dimensions from a list, or from {"motors": [...]} as some recorders write them."""
    if isinstance(names, dict):
        return [name for part in names.values() for name in flat_names(part)]
    return [str(name) for name in names] if isinstance(names, list) else []


def read_contents(directory: Path, findings: Findings) -> Contents:
    """Read all tables. Raises UserError where nothing can be said: no info.json, not v3, no readable table."""
    info = checked_info(directory)
    table = _tables(directory, "meta/episodes", findings, plausible_rows(info["total_episodes"]))
    frames = _tables(directory, "data", findings, plausible_rows(info["total_frames"]))
    if not len(table) or not len(frames):
        raise UserError(f"{directory}: holds {len(table)} episodes and {len(frames)} rows; there is nothing to inspect")
    ids = whole_numbers(table, "episode_index")
    if ids is None:
        findings.add("rewrite", "episode table: no column of whole numbers 'episode_index'; write the table again")
        ids = np.arange(len(table))
    order = np.argsort(ids, kind="stable")
    if np.array_equal(ids[order], np.arange(len(ids))):  # else the order of the files is the better guess
        ids, table = ids[order], table.iloc[order]
    if not np.array_equal(ids, np.arange(len(ids))):
        wrong = int(np.argmax(ids != np.arange(len(ids))))
        findings.add(
            "rewrite", f"episode table: episode_index is {ids[wrong]} where {wrong} is next; number the episodes again"
        )
    instructions = _instructions(directory, findings, plausible_rows(info["total_frames"]))
    values = _values(info, frames, findings)
    rows = _rows_of_episodes(table, ids, frames)
    records = [{str(key): value for key, value in record.items()} for record in table.to_dict("records")]
    notes = _notes(directory, values, rows, findings)
    return Contents(
        directory,
        info,
        float(info["fps"]),
        records,
        notes,
        ids,
        rows,
        frames,
        values,
        instructions or {},
        instructions is not None,
    )


def _notes(
    directory: Path, values: dict[str, np.ndarray], rows: list[np.ndarray], findings: Findings
) -> list[dict[str, Any]]:
    """What a dataset itself notes of each episode; damage becomes a problem."""
    nothing: list[dict[str, Any]] = [{} for _ in rows]
    if not os.path.lexists(directory / OWN_NOTES) or not {STATE, ACTION} <= values.keys():
        return nothing
    try:
        ids = [episode_id(values[STATE][part], values[ACTION][part]) for part in rows]
        return own_notes(directory, ids).of(ids) or nothing
    except UserError as error:
        findings.add("rewrite", f"{error}. Bring the right file back, or delete it if the notes do not matter")
        return nothing


def checked_info(directory: Path) -> dict[str, Any]:
    """As `read_info`, with at least one feature and no empty one. Raises UserError that names the key otherwise."""
    info = read_info(directory)
    if not info["features"]:
        raise UserError(f"{directory / INFO}: no features; expected an object with one entry per column")
    for key, feature in info["features"].items():
        if 0 in feature["shape"]:
            raise UserError(f"{directory / INFO}: feature '{key}' has the shape {feature['shape']}; expected no zero")
    return info


def read_statistics(directory: Path) -> dict[str, Any] | None:
    """`meta/stats.json` as it is, None if it is missing or damaged."""
    try:
        found: dict[str, Any] = read_json(directory / "meta/stats.json")
    except UserError:
        return None
    return found


def whole_numbers(table: Any, key: str) -> np.ndarray | None:
    """A column as int64, None if it is missing or holds anything but whole numbers."""
    if key not in table:
        return None
    values, bad = _matrix(table[key], 1)
    exact = np.isfinite(values) & (np.abs(values) < 2**53)
    if bad.any() or values.shape[1] != 1 or not exact.all() or (values != np.round(values)).any():
        return None
    return values[:, 0].astype(np.int64)


def _tables(directory: Path, folder: str, findings: Findings, most_rows: int) -> Any:
    """All readable Parquet files of a folder, one after the other; a damaged one becomes a problem."""
    import pandas as pd

    paths = sorted((directory / folder).rglob("*.parquet"))
    if not paths:
        raise UserError(f"{directory / folder}: no Parquet file; the dataset is incomplete")
    tables, errors = [], []
    for path in paths:
        try:
            tables.append(_parquet(directory, path, most_rows))
        except UserError as error:
            errors.append(error)
    if not tables:
        raise errors[0]
    for damage in errors:
        findings.add("rewrite", f"{damage}; its episodes are lost")
    return pd.concat(tables, ignore_index=True)


def _parquet(directory: Path, path: Path, most_rows: int) -> Any:
    check_inside(directory, path.relative_to(directory))
    columns = [name for name in column_names(path) if not name.startswith("stats/")]  # of episodes, which nobody reads
    return read_data_frame(path, list(dict.fromkeys(columns)), only=True, most_rows=most_rows)


def _instructions(directory: Path, findings: Findings, most_rows: int) -> dict[int, str] | None:
    path = directory / "meta/tasks.parquet"
    try:
        if not path.is_file():
            raise UserError(f"{path}: missing")
        table = _parquet(directory, path, most_rows)
        indices = whole_numbers(table, "task_index")
        if indices is None or not all(isinstance(name, str) for name in table.index):
            raise UserError(f"{path}: damaged (expected instructions as index and whole numbers as task_index)")
    except UserError as error:
        findings.add("rewrite", f"{error}; instructions come from the episode table, where that names one")
        return None
    return {int(i): str(name) for i, name in zip(indices, table.index, strict=True)}


def _values(info: dict[str, Any], frames: Any, findings: Findings) -> dict[str, np.ndarray]:
    values = {}
    for key, feature in info["features"].items():
        if feature["dtype"] in (*PICTURES, "string", "language"):
            continue
        if key not in frames:
            findings.add("rewrite", f"{key}: is a feature in {INFO} and no column of the data; record or import again")
            continue
        width = math.prod(feature["shape"])
        values[key], bad = _matrix(frames[key], width)
        if bad.all():
            findings.add("rewrite", f"{key}: the column holds no vectors of {width} numbers; record or import again")
            del values[key]
        elif values[key].shape[1] != width:
            found = values[key].shape[1]
            findings.add("rewrite", f"{key}: rows hold {found} numbers, {INFO} says {width}; correct the shape")
    return values


def _matrix(cells: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) numbers and (N,) which cells hold none; D is `width` unless all cells agree on another."""
    column = cells.to_numpy()
    try:
        stacked = np.stack(column) if column.dtype == object else column
        if stacked.dtype.kind in "fiub" and stacked.size:
            return stacked.reshape(len(column), -1), np.zeros(len(column), bool)
    except (TypeError, ValueError):
        pass
    vectors = [_vector(cell) for cell in column]
    bad = np.array([len(vector) != width for vector in vectors])
    if bad.all():
        return np.full((len(column), 1), np.nan), bad
    missing = np.full(width, np.nan)
    return np.stack([missing if wrong else vector for wrong, vector in zip(bad, vectors, strict=True)]), bad


def _vector(cell: Any) -> np.ndarray:
    """Numbers of a cell, also of arrays of arrays; none if it holds something else."""
    try:
        return np.array(np.ravel(cell).tolist(), dtype=np.float64).ravel()
    except (TypeError, ValueError):
        return np.empty(0)


def _rows_of_episodes(table: Any, ids: np.ndarray, frames: Any) -> list[np.ndarray]:
    """Rows by their episode_index where that is sound, else by the lengths of the episode table.

    Inside an episode they are put in the order of frame_index, if that is a permutation.
    """
    own, lengths = whole_numbers(frames, "episode_index"), whole_numbers(table, "length")
    usable = lengths is not None and (lengths >= 0).all() and lengths.sum() == len(frames)
    sound = own is not None and (np.diff(own) >= 0).all() and np.isin(own, ids).all()
    if own is not None and (sound or not usable):
        order = np.argsort(own, kind="stable")
        starts, stops = (np.searchsorted(own[order], ids, side) for side in ("left", "right"))
        rows = [order[start:stop] for start, stop in zip(starts, stops, strict=True)]
        first = set(np.unique(ids, return_index=True)[1].tolist())  # a second episode of the same number has no rows
        rows = [part if episode in first else part[:0] for episode, part in enumerate(rows)]
    elif usable and lengths is not None:
        rows = np.split(np.arange(len(frames)), np.cumsum(lengths)[:-1])
    else:
        raise UserError("neither the rows nor the episode table say which rows make an episode; the dataset is lost")
    counted = whole_numbers(frames, "frame_index")
    if counted is None:
        return rows
    return [
        part[np.argsort(counted[part])] if np.array_equal(np.sort(counted[part]), np.arange(len(part))) else part
        for part in rows
    ]
