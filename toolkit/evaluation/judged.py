"""Outcomes that were judged elsewhere, on a robot or in another simulator: a table of policy, scene and success.

A scene is what all policies are put into: a name or number for the same setup. Comparisons are paired by it. A run is
one training of a policy; several are told apart by the column `run`, else `seed`, else `checkpoint`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, nearest
from toolkit.base.reading import read_bytes
from toolkit.data.formats.parquet import read_rows
from toolkit.data.seen_scenes import is_hole
from toolkit.evaluation.systems import Trained

REQUIRED = ("policy", "scene", "success")
RUNS = ("run", "seed", "checkpoint")  # the first of these that a table has tells runs apart
DISCARDS = ("discard", "discarded")
OTHERS = ("suite", "arm", "reason")
WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "1.0": True, "0.0": False}
MOST_BYTES, MOST_LETTERS = 1 << 28, 200
SUITE = "trials"


@dataclass
class Judged:
    """outcomes: suite: policy: run: scene: success. discarded: trials of each policy that do not count. arms: of the
    policies that have one. unread: columns that mean nothing here."""

    outcomes: dict[str, dict[str, dict[str, dict[str, bool]]]] = field(default_factory=dict)
    discarded: dict[str, int] = field(default_factory=dict)
    arms: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    runs_by: str | None = None

    def tables(self) -> tuple[dict[str, dict[str, Trained]], list[str]]:
        """By suite each policy on the scenes that all of them met in all runs, and in words what is left out.

        Raises UserError for a suite without such scenes.
        """
        found, left = dict[str, dict[str, Trained]](), list[str]()
        for suite, policies in self.outcomes.items():
            met = [scenes for runs in policies.values() for scenes in runs.values()]
            shared = [scene for scene in met[0] if all(scene in scenes for scenes in met)]
            if not shared:
                raise UserError(
                    f"results: no scene of suite '{suite}' was met by all of {', '.join(policies)}; comparisons are "
                    "paired by scene, so give the same setup the same name in the column 'scene'"
                )
            for policy, runs in policies.items():
                total = sum(map(len, runs.values()))
                if (count := total - len(shared) * len(runs)) > 0:
                    left.append(f"{suite}: {policy}: {count} of {total} trials, in scenes that not all runs met")
            found[suite] = {
                policy: Trained(np.array([[scenes[one] for one in shared] for scenes in runs.values()], dtype=float))
                for policy, runs in policies.items()
            }
        return found, left


def read_judged(path: Path) -> Judged:
    """A .csv or .parquet file with a header. Raises UserError that names the row of what cannot be read."""
    rows = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    if not rows:
        raise UserError(f"{path}: holds no trial; expected a header and a row for each")
    names = list(dict.fromkeys(key for _, row in rows for key in row))
    for column in REQUIRED:
        if column not in names:
            raise UserError(f"{path}: no column '{column}'. {nearest(column, names)}")
    judged = Judged(runs_by=next((name for name in RUNS if name in names), None))
    judged.unread = [name for name in names if name not in (*REQUIRED, *OTHERS, *DISCARDS, judged.runs_by)]
    lines: dict[tuple[str, ...], str] = {}
    for where, row in rows:
        _enter(judged, row, where, lines)
    if not judged.outcomes:
        raise UserError(f"{path}: all of its {len(rows)} trials are discarded")
    return judged


def _enter(judged: Judged, row: Mapping[str, str], where: str, lines: dict[tuple[str, ...], str]) -> None:
    policy, scene = (_text(row, key, where) for key in ("policy", "scene"))
    suite = row.get("suite") or SUITE
    if any(_truth(row[key], key, where) for key in DISCARDS if row.get(key)):
        judged.discarded[policy] = judged.discarded.get(policy, 0) + 1
        return
    if not row.get("success"):
        if not row.get("reason"):
            raise UserError(f"{where}: 'success' is empty; expected 1 or 0, or a 'reason' why the trial is discarded")
        judged.discarded[policy] = judged.discarded.get(policy, 0) + 1
        return
    success = _truth(row["success"], "success", where)
    run = _text(row, judged.runs_by, where) if judged.runs_by else ""
    if (earlier := lines.setdefault((suite, policy, run, scene), where)) != where:
        name = f"policy '{policy}'" + (f" ({judged.runs_by} '{run}')" if run else "")
        raise UserError(
            f"{where}: {name} has met scene '{scene}' in {earlier.rsplit(': ', 1)[-1]} already; discard one of them, "
            "or tell several trainings apart by a column 'run'"
        )
    if (arm := row.get("arm")) and judged.arms.setdefault(policy, arm) != arm:
        raise UserError(f"{where}: policy '{policy}' has the arm '{arm}', above '{judged.arms[policy]}'")
    judged.outcomes.setdefault(suite, {}).setdefault(policy, {}).setdefault(run, {})[scene] = success


def _text(row: Mapping[str, str], key: str, where: str) -> str:
    if not (value := row.get(key, "")):
        raise UserError(f"{where}: '{key}' is empty")
    if len(value) > MOST_LETTERS or not value.isprintable():
        raise UserError(f"{where}: '{key}' is {value!r:.60}; expected a name of at most {MOST_LETTERS} letters")
    return value


def _truth(value: str, key: str, where: str) -> bool:
    if (found := WORDS.get(value.lower())) is None:
        raise UserError(f"{where}: '{key}' is {value!r:.60}; expected 1 or 0, true or false, yes or no")
    return found


def _csv(path: Path) -> list[tuple[str, dict[str, str]]]:
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a .csv or .parquet file of trials")
    try:
        text = read_bytes(path, MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no UTF-8 text ({error.reason}); save it as CSV in UTF-8") from error
    head = text.split("\n", 1)[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=";" if ";" in head and "," not in head else ",", strict=True
    )
    rows, header = list[tuple[str, dict[str, str]]](), list[str]()
    try:
        for cells in reader:
            where, cells = f"{path}: line {reader.line_num}", [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not header:
                header = cells
                if twice := next((name for name in header if header.count(name) > 1), None):
                    raise UserError(f"{path}: has two columns '{twice}'")
                continue
            if len(cells) != len(header):
                raise UserError(f"{where}: has {len(cells)} cells, the header {len(header)}")
            rows.append((where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: cannot be read as CSV ({error})") from error
    return rows


def _parquet(path: Path) -> list[tuple[str, dict[str, str]]]:
    return [(f"{path}: row {k}", {key: _cell(v) for key, v in row.items()}) for k, row in enumerate(read_rows(path))]


def _cell(value: Any) -> str:
    return "" if is_hole(value) else str(value).strip()
