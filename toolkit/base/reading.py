"""Files that somebody else wrote: of a limited size, no pipes, JSON of a limited depth."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError, first_line

MOST_JSON_BYTES = 64 << 20
MOST_JSON_DEPTH = 64
GIT_LFS = b"version https://git-lfs"


def read_bytes(path: str | Path, most_bytes: int) -> bytes:
    """The content of a regular file. Raises UserError if it is missing, no regular file, or larger than allowed."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for a writer
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is no regular file; expected one")
        if status.st_size > most_bytes:
            raise UserError(f"{path}: has {status.st_size} bytes; at most {most_bytes} are read")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(most_bytes + 1)
    finally:
        os.close(handle)


def check_content(path: Path) -> None:
    """Raise UserError for the few lines that git keeps in place of a large file until it is fetched."""
    if path.is_file() and path.stat().st_size < 1024 and path.read_bytes().startswith(GIT_LFS):
        raise UserError(f"{path}: is a git-lfs pointer, not the file itself; run `git lfs pull` in its repository")


def read_json(path: str | Path, expected: type | tuple[type, ...] = dict, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """A JSON value of an expected type, a mapping unless told otherwise.

    Raises UserError, one line with the file's name, if it is missing, too large or damaged, holds something else, or
    is nested more than 64 deep.
    """
    return parse_json(read_bytes(path, most_bytes), path, expected)


def parse_json(data: bytes, path: str | Path, expected: type | tuple[type, ...] = dict) -> Any:
    """The JSON value in `data`, a part of the file at `path`; raises UserError as `read_json` does."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({first_line(error)})") from error
    if not isinstance(value, expected):
        wanted = " or ".join(kind.__name__ for kind in (expected if isinstance(expected, tuple) else (expected,)))
        raise UserError(f"{path}: holds {type(value).__name__}; expected {wanted}")
    level, depth = [value], 0
    while level := [
        inner
        for item in level
        if isinstance(item, dict | list)
        for inner in (item.values() if isinstance(item, dict) else item)
        if isinstance(inner, dict | list)
    ]:
        depth += 1
        if depth > MOST_JSON_DEPTH:
            raise UserError(f"{path}: nested more than {MOST_JSON_DEPTH} deep")
    return value
