"""What is noted of episodes: where they come from, how their replay went, their scores. Joined by episode id.

The notes are a table of their own, `vag_episodes.parquet`: in `meta/` of a dataset that vag wrote, and in the run
directory of `vag replay` and `vag score`. Datasets of others are never written into.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.files import atomic_file
from toolkit.data.formats.parquet import read_rows
from toolkit.data.seen_scenes import SeenScenes

FILE = "vag_episodes.parquet"
ID = "vag_episode"  # column of the ids; `episode_id` is a name that sources use for their own


def episode_id(states: np.ndarray, actions: np.ndarray) -> str:
    """SHA-256 of an episode's states (T, S) and actions (T, A) in float32, first 16 hex digits.

    It needs nothing but the data, so every LeRobotDataset has it, and LeRobot's tools keep it where they delete, split
    or merge: they copy these rows. Pictures do not count, since the tools may encode them anew, nor does the
    instruction, which they can change. Episodes with equal rows have equal ids; `Notes.of` says what they get.
    """
    digest = hashlib.sha256(f"{states.shape[1:]} {actions.shape[1:]}".encode())
    with np.errstate(over="ignore"):
        for values in (states, actions):
            digest.update(np.ascontiguousarray(values, "<f4").tobytes())
    return digest.hexdigest()[:16]


def episode_ids(states: np.ndarray, actions: np.ndarray, lengths: np.ndarray) -> list[str]:
    """(E,) of consecutive episodes; states (N, S), actions (N, A), lengths (E,)."""
    stops = np.cumsum(lengths)
    return [
        episode_id(states[start:stop], actions[start:stop]) for start, stop in zip(stops - lengths, stops, strict=True)
    ]


@dataclass
class Notes:
    """Notes of many episodes, by id; of episodes with the same id in the order of their dataset."""

    path: Path
    rows: dict[str, list[dict[str, Any]]]
    seen_scenes: SeenScenes | None = None  # by the generator behind the episodes, where a dataset says so
    used: bool = False

    def of(self, ids: Sequence[str]) -> list[dict[str, Any]] | None:
        """The row of each episode, {} where there is none; None if there is none at all.

        Where a dataset has as many episodes of an id as there are rows, the k-th gets the k-th. Else some were left out
        or doubled, and nobody knows which: each gets what all rows agree on.
        """
        counts, seen, found = Counter(ids), Counter[str](), []
        for name in ids:
            rows = self.rows.get(name, [])
            if len(rows) == counts[name]:
                found.append(rows[seen[name]])
            else:
                first = rows[0].items() if rows else ()
                found.append({key: value for key, value in first if all(row.get(key) == value for row in rows)})
            seen[name] += 1
        if not counts.keys() & self.rows.keys():
            return None
        self.used = True
        return found


def add_notes(metadata: Sequence[dict[str, Any]], ids: Sequence[str], notes: Iterable[Notes]) -> list[dict[str, Any]]:
    """The metadata of episodes with what is noted of them; of two values for one key the last counts."""
    joined = list(metadata)
    for note in notes:
        if (rows := note.of(ids)) is not None:
            joined = [{**row, **more} for row, more in zip(joined, rows, strict=True)]
    return joined


def check_used(notes: Iterable[Notes]) -> None:
    """Raise UserError for notes of which `Notes.of` found nothing to join."""
    for note in notes:
        if not note.used:
            raise UserError(
                f"notes: {note.path}: is about none of the episodes that this command reads; give the run directory "
                "of a replay or score of these, or leave it out"
            )


def write_notes(path: Path, ids: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write a table whole, a row per episode. Raises UserError for a number that is not finite."""
    import pyarrow
    import pyarrow.parquet

    for episode, row in enumerate(rows):
        check_row(row, f"episode {episode}")
    columns: dict[str, Any] = {
        key: [row.get(key) for row in rows] for key in sorted({key for row in rows for key in row})
    }
    with atomic_file(path) as temporary, temporary.open("wb") as file:  # whose name may be of any letters
        pyarrow.parquet.write_table(pyarrow.table({**columns, ID: list(ids)}), file)


def check_row(row: dict[str, Any], where: str) -> None:
    """Raise UserError, with `where` in front, for a number that is not finite."""
    for key, value in row.items():
        if isinstance(value, float | np.floating) and not math.isfinite(value):
            raise UserError(f"{where}: '{key}' is {value}; expected a finite number. It was not written")


def filled(row: dict[str, Any]) -> dict[str, Any]:
    """The cells of a row that hold a text, a finite number, true or false; a hole in a column reads as NaN."""
    cells = {key: value.item() if isinstance(value, np.generic) else value for key, value in row.items()}
    return {
        key: value
        for key, value in cells.items()
        if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    }


def read_notes(path: Path, most_rows: int | None = None) -> Notes:
    """A table of notes; cells without a value are left out. Raises UserError if it is missing, damaged or another."""
    notes = Notes(path, {})
    for row in read_rows(path, most_rows):
        name = row.pop(ID, None)
        if not isinstance(name, str):
            raise UserError(f"{path}: '{ID}' is missing or no text; expected a table that vag wrote")
        for key, value in row.items():
            if not isinstance(value, str | int | float | None):
                raise UserError(f"{path}: '{key}' is {value!r:.100}; expected a text, a number or true or false")
        notes.rows.setdefault(name, []).append(filled(row))
    return notes
