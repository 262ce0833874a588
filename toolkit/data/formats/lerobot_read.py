"""LeRobotDataset v3 on disk: read back in order, with what is noted of its episodes.

Writing goes through LeRobot itself. Reading a whole dataset goes through Parquet and one sequential video
decode, which is far faster than LeRobot's random access and gives the same frames.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, warn
from toolkit.data.episode import ACTION, IMAGE, STATE, Episode
from toolkit.data.episode_notes import FILE, Notes, add_notes, episode_ids, filled, read_notes
from toolkit.data.formats.lerobot_layout import (
    INFO,
    camera_keys,
    check_features,
    check_inside,
    check_instruction,
    data_files,
    read_info,
)
from toolkit.data.formats.parquet import plausible_rows, read_data_frame
from toolkit.data.pictures import check_video_lengths, read_pictures
from toolkit.data.seen_scenes import UNKNOWN, read_scenes

OWN_NOTES = f"meta/{FILE}"


def provenance(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the episode table, where version 0.1 put its notes, without LeRobot's bookkeeping and without arrays."""
    own = ("stats/", "meta/", "videos/", "data/", "dataset_", "episode_index", "tasks", "length")
    return {k: value for k, value in row.items() if not k.startswith(own) and not isinstance(value, np.ndarray | list)}


@dataclass
class Table:
    """Everything but the pictures: the episode table and the rows of all frames, in order."""

    episodes: list[dict[str, Any]]  # columns of the episode table
    lengths: np.ndarray  # (E,)
    states: np.ndarray  # (N, S) float32
    actions: np.ndarray  # (N, A) float32
    tasks: list[str]  # (E,) instructions
    ids: list[str]  # (E,), see `episode_id`
    metadata: list[dict[str, Any]]  # (E,) what is noted of them in the dataset itself


def read_table(directory: Path) -> Table:
    """States, actions, tasks and what the dataset notes of its episodes.

    Raises UserError for missing keys, damaged files, tables that do not fit together, NaN.
    """
    directory = Path(directory)
    info = read_info(directory)
    noted = os.path.lexists(directory / OWN_NOTES)
    vectors = STATE, ACTION
    check_features(directory, info, None, vectors)
    totals = {key: plausible_rows(info[f"total_{key}"]) for key in ("episodes", "frames")}
    episodes = _read_parquet(directory, "meta/episodes", ["episode_index", "length"], most_rows=totals["episodes"])
    rows = ["index", "episode_index", "task_index", *vectors]  # without pictures, where they lie there
    frames = _read_parquet(directory, "data", rows, only=True, most_rows=totals["frames"])
    tasks = _read_parquet(directory, "meta", ["task_index"], stem="tasks", most_rows=totals["frames"])
    try:
        episodes, frames = episodes.sort_values("episode_index"), frames.sort_values("index")
        names = task_names(directory, tasks)
        lengths = episodes["length"].to_numpy(np.int64)
        if len(lengths) == 0 or lengths.min() < 1 or lengths.max() > len(frames):
            raise UserError(f"{directory}: the episode table has no rows, or lengths that cannot be")
        if lengths.sum() != len(frames):
            raise UserError(f"{directory}: {len(frames)} rows of data; the episode table says {lengths.sum()}")
        indices = np.arange(len(lengths))
        if not np.array_equal(episodes["episode_index"], indices):
            raise UserError(f"{directory}: 'episode_index' of the episode table does not count 0, 1, 2, ...")
        if not np.array_equal(frames["episode_index"], np.repeat(indices, lengths)):
            raise UserError(f"{directory}: 'episode_index' of the rows disagrees with the lengths of the episodes")
        columns = {key: _columns(directory, info, key, frames[key]) for key in vectors}
        states, actions = columns[STATE], columns[ACTION]
        first = np.cumsum(lengths) - lengths
        numbers = frames["task_index"].to_numpy()
        instructions = [names.get(int(i)) for i in numbers[first]]
        changing = np.unique(np.repeat(indices, lengths)[numbers != np.repeat(numbers[first], lengths)])
    except UserError:
        raise
    except Exception as error:  # cells of a wrong type make pandas and NumPy raise classes of every kind
        raise UserError(f"{directory}: its tables are damaged ({type(error).__name__}: {error})") from error
    if len(changing):
        warn(
            f"{directory}: in {len(changing)} of {len(lengths)} episodes the instruction changes on the way (first in "
            f"episode {changing[0]}); each is read with the instruction of its first step"
        )
    if None in instructions:
        raise UserError(f"{directory}: episode {instructions.index(None)} has a 'task_index' that meta/tasks lacks")
    for episode, text in enumerate(instructions):
        check_instruction(str(text), f"{directory}: episode {episode}")
    for key, values in columns.items():
        if not np.isfinite(values).all():
            row = int(np.argmax(~np.isfinite(values).all(axis=1)))
            episode = int(np.searchsorted(first, row, side="right")) - 1
            raise UserError(f"{directory}: '{key}' holds NaN or infinity (episode {episode}); remove that episode")
    records = episodes.to_dict("records")
    metadata = [provenance(row) for row in records]
    ids = episode_ids(states, actions, lengths)
    if noted:
        metadata = add_notes(metadata, ids, [own_notes(directory, ids)])
    return Table(records, lengths, states, actions, [str(name) for name in instructions], ids, metadata)


def task_names(directory: Path, tasks: Any) -> dict[int, str]:
    """Instructions by number: the index of the table, as LeRobot writes it, or its column `task`."""
    texts = tasks.get("task", tasks.index)
    if not all(isinstance(text, str) for text in texts):
        found = ", ".join(map(str, [tasks.index.name or "index", *tasks.columns]))
        raise UserError(
            f"{directory}: meta/tasks.parquet has no instructions; expected texts as its index, or a column 'task', "
            f"found: {found}"
        )
    return {int(number): text for number, text in zip(tasks["task_index"], texts, strict=True)}


def own_notes(directory: Path, ids: Sequence[str]) -> Notes:
    """The notes that a dataset holds itself. Raises UserError if they are damaged or about none of its episodes."""
    notes = read_notes(check_inside(directory, OWN_NOTES), plausible_rows(len(ids)))
    if notes.of(ids) is None:
        raise UserError(f"{directory / OWN_NOTES}: is about the episodes of another dataset; delete it")
    return notes


def open_notes(path: str | Path) -> Notes:
    """What a run of `vag replay` or `vag score` noted of episodes, or what a dataset says of its own.

    Raises UserError if there is neither, or it is damaged.
    """
    path = Path(path)
    if os.path.lexists(path / FILE):
        return read_notes(check_inside(path, FILE))
    if not (path / INFO).is_file():
        raise UserError(f"notes: {path}: no '{FILE}'; expected the run directory of a replay or score, or a dataset")
    table, scenes = read_table(path), read_scenes(path / "meta")
    if scenes is None and any(row.get("source") == "synthetic" for row in table.metadata):
        scenes = {UNKNOWN: []}  # of their generator
    notes = Notes(path, {}, scenes)
    for name, row in zip(table.ids, table.metadata, strict=True):
        notes.rows.setdefault(name, []).append(filled(row))
    return notes


def noted_episodes(directory: Path, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """What a dataset, and runs of `vag replay` and `vag score`, note of each of its episodes."""
    table = read_table(directory)
    return add_notes(table.metadata, table.ids, map(open_notes, runs))


def _columns(directory: Path, info: dict, key: str, cells: Any) -> np.ndarray:
    """(N, D) float32 from cells that hold vectors, or numbers where D = 1."""
    with np.errstate(over="ignore"):  # infinity is complained about later
        values = np.stack(cells.to_numpy()).astype(np.float32).reshape(len(cells), -1)
    if values.shape[1] != (width := math.prod(info["features"][key]["shape"])):
        raise UserError(f"{directory}: '{key}' has {values.shape[1]} values a row; {INFO} says {width}")
    return values


def read_actions(directory: Path) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Metadata and actions (T, A) of each episode, without decoding a picture."""
    table = read_table(directory)
    parts = np.split(table.actions, np.cumsum(table.lengths)[:-1])
    return list(zip(table.metadata, parts, strict=True))


def read_episodes(
    directory: Path,
    cameras: Sequence[str] | None = None,
) -> Iterator[Episode]:
    """All episodes in order, with the pictures of these cameras; of all of them where none is named.

    Raises UserError as `read_table`, and for too few or unreadable pictures.
    """
    directory = Path(directory)
    info = read_info(directory)
    cameras = camera_keys(info) if cameras is None else cameras
    for key in cameras:
        check_features(directory, info, key)
    table = read_table(directory)
    pictures = {}
    for key in cameras:
        check_video_lengths(directory, info, table.episodes, key)
        pictures[key] = read_pictures(directory, table.episodes, key)
    start = 0
    for index, length in enumerate(table.lengths):
        stop = start + int(length)
        images = {key: _next_episode(parts, int(length)) for key, parts in pictures.items()}
        yield Episode(
            images.pop(IMAGE, None),
            table.states[start:stop],
            table.actions[start:stop],
            table.tasks[index],
            table.metadata[index],
            images,
        )
        start = stop


def _next_episode(parts: Iterator[np.ndarray], length: int) -> np.ndarray:
    """(T, H, W, 3): the parts of one episode put together."""
    images = [next(parts)]
    while sum(map(len, images)) < length:
        images.append(next(parts))
    return np.concatenate(images)


def dataset_id(directory: Path) -> str:
    """SHA-256 over names and contents of all files, first 16 hex digits."""
    digest = hashlib.sha256()
    for path in data_files(directory):
        name = str(path.relative_to(directory))
        check_inside(directory, name)
        digest.update(os.fsencode(name))
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _read_parquet(
    directory: Path, folder: str, columns: Sequence[str], *, only: bool = False, stem: str = "*", most_rows: int
) -> Any:
    """All tables of a folder as one. Raises UserError if one is damaged or lacks a column; `only` leaves others out."""
    import pandas as pd

    paths = sorted((directory / folder).rglob(f"{stem}.parquet"))
    if not paths:
        raise UserError(f"{directory / folder}: no file '{stem}.parquet'; the dataset is incomplete")
    tables = []
    for path in paths:
        check_inside(directory, path.relative_to(directory))
        tables.append(read_data_frame(path, columns, only=only, most_rows=most_rows))
    return pd.concat(tables)
