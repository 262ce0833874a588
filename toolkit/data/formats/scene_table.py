"""A folder of photographs with a CSV or JSONL table: a picture for each camera, an instruction, perhaps a state."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, warn
from toolkit.base.reading import check_content, parse_json, read_bytes
from toolkit.data.canvas import Canvas
from toolkit.data.episode import STATE
from toolkit.data.formats.lerobot_layout import INFO, check_inside
from toolkit.data.images import decode_photograph

KINDS = (".csv", ".jsonl")
MOST_BYTES = 64 << 20  # of the table, and of one picture


def find_table(source: str) -> Path | None:
    """The table of a folder of photographs, None for a dataset or clip file. Raises UserError for several tables."""
    path = Path(source)
    if path.is_file():
        return path if path.suffix.lower() in KINDS else None
    if not path.is_dir() or os.path.lexists(path / INFO):
        return None
    found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in KINDS)
    tables = [entry for entry in found if entry.stem == "scenes"] or found
    if not tables:
        raise UserError(
            f"{source}: neither a LeRobotDataset ({INFO}) nor a folder of photographs with a table: scenes.csv or "
            "scenes.jsonl, with a column for each camera and `instruction`"
        )
    if len(tables) > 1:
        raise UserError(f"{source}: several tables, {', '.join(entry.name for entry in tables)}; name the one to read")
    return tables[0]


def read_rows(path: Path) -> dict[int, dict[str, Any]]:
    """Rows by their number as a spreadsheet shows it. Raises UserError for a table that is empty or damaged."""
    try:
        text = read_bytes(path, MOST_BYTES).decode("utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            lines = enumerate(text.splitlines(), 1)
            rows = {n: parse_json(line.encode(), f"{path}: row {n}") for n, line in lines if line.strip()}
        else:
            head = text.partition("\n")[0]
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
            names = [name.strip() for name in reader.fieldnames or []]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise UserError(f"{path}: two columns are called '{twice}'")
            reader.fieldnames = names
            rows = dict((reader.line_num, row) for row in reader)  # noqa: C402, which takes the number for constant
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as a table in UTF-8 ({error})") from error
    if not rows:
        raise UserError(f"{path}: no rows; expected one for each scene")
    if long := next((number for number, row in rows.items() if None in row), None):
        raise UserError(f"{path}: row {long} has more cells than there are columns; texts with commas need quotes")
    return rows


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are. state: one of lists, or one for each of `width` numbers, or none."""

    cameras: dict[str, str]
    instruction: str
    state: list[str]
    width: int

    @classmethod
    def of(
        cls,
        path: Path,
        rows: Mapping[int, Mapping[str, Any]],
        canvas: Canvas,
        rename: Mapping[str, str],
        state_names: Sequence[str],
        width: int,
    ) -> Columns:
        """Found by their names. Raises UserError for a camera or the instruction without one; names what is not read.

        A camera has its key or the last part of it.
        """
        there = list(dict.fromkeys(name for row in rows.values() for name in row))
        here = {rename.get(name, name): name for name in there}
        cameras, short = {}, [camera.rsplit(".", 1)[-1] for camera in canvas.cameras]
        for camera, last in zip(canvas.cameras, short, strict=True):
            column = here.get(camera) or (here.get(last) if short.count(last) == 1 else None)
            if column is None:
                raise UserError(
                    f"{path}: no column for camera {camera}; expected '{last if short.count(last) == 1 else camera}'. "
                    f"It has {', '.join(there)}; rename={{{there[0]}: {camera}}} says which one is meant"
                )
            cameras[camera] = column
        instruction = next((name for name in ("instruction", "task") if name in there), None)
        if instruction is None:
            raise UserError(f"{path}: no column 'instruction'; it has {', '.join(there)}")
        state = next(([name] for name in ("state", STATE) if name in there), list[str]())
        numbered = [[f"{name}.{i}" for i in range(width)] for name in ("state", STATE)]
        for names in (*numbered, list(state_names)) if not state else ():
            if (lacking := [name for name in names if name not in there]) and len(lacking) < len(names):
                raise UserError(f"{path}: of the {len(names)} numbers of a state, no column has {', '.join(lacking)}")
            state = state or (names if not lacking else [])
        if unread := [name for name in there if name not in {*cameras.values(), instruction, *state}]:
            warn(f"{path}: not read: {', '.join(map(repr, unread))}")
        return cls(cameras, instruction, state, width)

    def instruction_of(self, row: Mapping[str, Any], where: str) -> str:
        """Raises UserError, with `where` in front, for none."""
        text = row.get(self.instruction)
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{where}, column '{self.instruction}': {text!r:.100}; expected an instruction")
        return text.strip()

    def state_of(self, row: Mapping[str, Any], where: str) -> np.ndarray | None:
        """(S,) float32; None where the cells are empty. Raises UserError for anything but finite numbers."""
        cells: Any = [row.get(name) for name in self.state]
        if all(cell in (None, "") for cell in cells):
            return None
        if len(self.state) == 1 and not (self.width == 1 and isinstance(cells[0], int | float)):
            cells = cells[0]
        try:
            values = json.loads(cells) if isinstance(cells, str) else cells
            state = np.array([float(value) for value in values], np.float64)
            if len(state) == self.width and (np.abs(state) < np.finfo(np.float32).max).all():
                return state.astype(np.float32)
        except (ValueError, TypeError, RecursionError):
            pass
        columns = f"column '{self.state[0]}'" if len(self.state) == 1 else f"columns {', '.join(self.state)}"
        raise UserError(
            f"{where}, {columns}: {cells!r:.100}; expected {self.width} finite numbers, as a list [0.1, 0.2, ...] or "
            f"in columns state.0 to state.{self.width - 1}"
        )


def read_picture(folder: Path, cell: Any, where: str) -> tuple[np.ndarray, bytes]:
    """(H, W, 3) uint8 and the file. Raises UserError, with `where` in front, for none in the folder that is sound."""
    if not isinstance(cell, str) or not cell:
        raise UserError(f"{where}: {cell!r:.100}; expected the path of a picture in {folder}")
    try:
        path = check_inside(folder, cell)
        check_content(path)
        data = read_bytes(path, MOST_BYTES)
        return decode_photograph(data), data
    except ValueError as error:
        raise UserError(f"{where}: {cell} is {error}") from error
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
