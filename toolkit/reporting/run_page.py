"""The runs that a report is about: their records, whoever wrote them, and the files that lie in their directories."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError
from toolkit.base.reading import read_json
from toolkit.base.typed_json import MisfitError, read_as
from toolkit.reporting.results import RESULTS, DataEntry

# What a record is made of. What is of another kind is left out, which the page says.
KINDS: dict[str, Any] = {
    "config": dict[str, Any],
    "git_sha": str,
    "versions": dict[str, str],
    "hardware": str,
    "seed": int | None,
    "data": list[DataEntry],
    "started": str,
    "wall_seconds": float,
    "error": str,
}
LONGEST_RUN = 1e10  # seconds


@dataclass(frozen=True)
class RunPage:
    """One run directory: its name on the page, its record, and what of that is left out because it is not sound.

    result: None where the run found nothing yet, or its record holds no result of its command.
    """

    name: str
    path: Path
    record: dict[str, Any]
    result: Any = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def read(cls, directory: Path) -> RunPage:
        """The record of a run, whoever wrote it. Raises UserError if there is none, or it is none of a vag command."""
        path = directory / "run.json"
        found = read_json(path)
        for key in ("command", "status"):
            if not isinstance(found.get(key), str) or not found[key].strip():
                raise UserError(f"{path}: '{key}' is {found.get(key)!r:.60}; expected the record of a vag command")
        record: dict[str, Any] = {}
        left_out = []
        for key, value in found.items():
            try:
                read_as(KINDS.get(key, Any), value, key)
                record[key] = value
            except MisfitError as error:
                left_out.append(str(error))
        if not 0 <= record.get("wall_seconds", 0) < LONGEST_RUN:
            left_out.append(f"'wall_seconds' is {record.pop('wall_seconds')}, which cannot be")
        result = None
        try:
            result = read_as(RESULTS.get(found["command"], dict[str, Any]), found.get("result"), "result")
        except MisfitError as error:
            if found["status"] == "finished" or not isinstance(found.get("result"), dict):
                left_out.append(str(error))
        return cls(directory.resolve().name, directory, record, result, tuple(left_out))

    @property
    def command(self) -> str:
        return str(self.record["command"])

    @property
    def raw(self) -> dict[str, Any]:
        """The result as it is recorded: of an unfinished run what there is, of another program whatever it wrote."""
        found = self.record.get("result")
        return found if isinstance(found, dict) else {}


def find_runs(run_dirs: Iterable[str | Path]) -> list[RunPage]:
    """Runs in the order given, each once, a demo followed by its parts."""
    found: dict[Path, RunPage] = {}

    def add(path: Path) -> None:
        if path.resolve() in found:
            return
        run = RunPage.read(path)
        found[path.resolve()] = run
        if run.command == "demo":
            there = sorted(child.parent.name for child in path.glob("*/run.json"))  # of an unfinished demo
            for name in run.result.runs if run.result is not None else there:
                if is_inside(path, name):
                    add(path / name)
                else:
                    run = replace(run, left_out=(*run.left_out, f"run '{name:.60}', which does not lie in it"))
            found[path.resolve()] = run

    for path in run_dirs:
        add(Path(path))
    names = [run.name for run in found.values()]
    return [
        run if names.count(run.name) == 1 else replace(run, name=f"{path.parent.name}/{run.name}")
        for path, run in found.items()
    ]


def is_inside(directory: Path, name: str) -> bool:
    """True for something below a directory, not reached through a link that leads out of it."""
    try:
        return (directory / name).resolve() != directory.resolve() and (directory / name).resolve().is_relative_to(
            directory.resolve()
        )
    except (OSError, ValueError, RuntimeError):  # a zero byte, a name too long, a loop of links
        return False


def is_file_inside(directory: Path, name: str) -> bool:
    return is_inside(directory, name) and os.path.isfile(directory / name)
