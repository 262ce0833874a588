"""`run.json` as somebody may have left it: read with suspicion, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError
from toolkit.base.reading import read_json

RECORD = "run.json"


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a nested config; the elements of a list count one by one."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", str(value)
            yield from ((f"{prefix}{key}[{i}]", item) for i, item in enumerate(value))
        else:
            yield prefix + str(key), value


MOST_SECONDS = 1e10  # 300 years
# What a record must hold, and what stands in for it in one that does not.
RECORD_TYPES: dict[str, tuple[type | tuple[type, ...], Any]] = {
    "command": (str, None),
    "status": (str, None),
    "config": (dict, {}),
    "data": (list, []),
    "result": (dict, {}),
    "wall_seconds": ((int, float), 0.0),
    "git_sha": (str, "unknown"),
    "versions": (dict, {}),
    "hardware": (str, "unknown"),
    "processes": (int, 1),
    "started": (str, ""),
    "code_before": (list, []),
    "leftovers": (list, []),
}


def read_record(directory: str | Path) -> dict[str, Any]:
    """`run.json` of a run directory. Raises UserError if it is missing, damaged or no record of vag's."""
    path = Path(directory) / RECORD
    if not path.exists():
        raise UserError(f"{path}: not found; expected the output directory of a vag command")
    record = read_json(path)
    for key, (kind, default) in RECORD_TYPES.items():
        if default is None and key not in record:
            raise UserError(f"{path}: damaged (no '{key}'); expected the record of a vag command")
        value = record.setdefault(key, default)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{path}: damaged ('{key}' is {str(value)[:40]!r})")
    for entry in record["data"]:
        if not isinstance(entry, dict) or not {"path", "id"} <= entry.keys():
            raise UserError(f"{path}: damaged ('data' lists {str(entry)[:40]!r})")
    for name in record["leftovers"]:
        if not isinstance(name, str):
            raise UserError(f"{path}: damaged ('leftovers' lists {str(name)[:40]!r})")
    if not 0 <= record["wall_seconds"] <= MOST_SECONDS:
        raise UserError(f"{path}: damaged ('wall_seconds' is {str(record['wall_seconds'])[:40]})")
    return record
