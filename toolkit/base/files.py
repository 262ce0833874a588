"""The one door for files that must be whole.

Whatever must be whole is made under a temporary name, synced to the disk, renamed, and its folder synced: after a
kill or a power cut the old content or the new one is there, never a part. What is removed gets another name first.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError
from toolkit.base.manifest import (
    REMOVED,
    check_inside,
    files_below,
    foreign_files,
    is_noted,
    note,
    partial_name,
    sync_file,
    sync_folder,
)

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h


# ------------------------------------------------------------------------------------------------ whole or not at all


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success it is synced and renamed, on any exception deleted."""
    path = Path(path)
    check_inside(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_name(path)
    note(path)
    _remove(temporary)  # of a process that was killed; a link there would be written through
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(path: str | Path, may_go: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Yield an empty temporary folder beside `path`; on success it is synced and takes the name, else it is deleted.

    What stands at `path` is replaced in one step, but only if all its files are in the manifest of the open run, or
    pass `may_go` (given relative to `path`). Raises UserError, before anything is written, if one is not.
    """
    path = Path(path)
    check_replaceable(path, may_go)
    temporary = partial_name(path)
    _remove(temporary)  # of a process that was killed
    note(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        check_replaceable(path, may_go)
        _sync_tree(temporary)
        note(*(path / file.relative_to(temporary) for file in files_below(temporary)))
        if path.exists():
            exchange(temporary, path)
        else:
            rename(temporary, path)
        sync_folder(path.parent)
    finally:
        _remove(temporary)


@contextmanager
def scratch_folder(path: str | Path, kept: bool = False) -> Iterator[Path]:
    """Yield a folder for what is of use until the block ends, for other processes and libraries too.

    Its name says that it is vag's, so what a killed process leaves of it is removed with the run. A `kept` one stays
    when the block is left by an exception, and holds what a killed process had made, to go on from.
    """
    path = Path(path)
    folder = partial_name(path)
    note(path)
    if not kept or folder.is_symlink():
        _remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except BaseException:
        if not kept:
            _remove(folder)
        raise
    _remove(folder)


def kept_folder(path: str | Path) -> Path:
    """A folder for parts of a run that are made one by one: they stay until the run is finished and removes it.

    As of `scratch_folder`, its name says that it is vag's.
    """
    folder = partial_name(Path(path))
    note(path)
    if folder.is_symlink():
        _remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_replaceable(path: Path, may_go: Callable[[Path], bool] | None = None) -> None:
    """Raise UserError if `path` is something else than a folder, or holds a file that vag must not delete."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise UserError(f"{path}: exists and is not a folder that vag wrote; move it away or choose another place")
    for file in files_below(path):
        inside = file.relative_to(path)
        if not is_noted(file) and not (may_go is not None and may_go(inside)):
            raise UserError(f"{path}: holds '{inside}', which vag did not write; move it away or choose another place")


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON whole: after a kill or a power cut the file holds the old value or the new one.

    Raises UserError for a number that is not finite, which JSON does not have.
    """
    try:
        text = json.dumps(value, indent=2, default=str, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path}: would hold a number that is not finite; it was not written") from error
    write_text(path, text + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text whole; letters that UTF-8 lacks become question marks."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def publish(temporary: Path, path: Path) -> None:
    """Give a complete file its final name: its content is on the disk before the name is."""
    sync_file(temporary)
    rename(temporary, path)
    sync_folder(path.parent)


def discard(path: str | Path, everything: bool = False) -> None:
    """Remove a file or folder of vag's; it loses its name in one step, so a kill leaves no part under that name.

    While a run is open, files that are not in its manifest stay where they are, unless `everything` goes.
    """
    path = Path(path)
    check_inside(path)
    gone = path.with_name(f".{path.name}{REMOVED}")
    _remove(gone)  # of a process that was killed
    if not os.path.lexists(path):
        return
    if not everything and (foreign := foreign_files(path)):
        if path not in foreign:
            remove_files([file for file in files_below(path) if file not in foreign], path)
        return
    rename(path, gone)
    sync_folder(path.parent)
    _remove(gone)


def remove_files(files: list[Path], root: Path) -> None:
    """Remove single files below `root`, then the folders above them that are empty by then, `root` included."""
    for file in files:
        with suppress(FileNotFoundError):
            file.unlink()
    _remove_empty({folder for file in files for folder in file.parents if folder.is_relative_to(root)})


def move_files(files: list[Path], root: Path, target: Path) -> None:
    """Move single files below `root`, in order, to the same places below `target`, where these are free.

    Folders that are empty by then go.
    """
    for file in files:
        place = target / file.relative_to(root)
        if os.path.lexists(file) and not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            rename(file, place)
            sync_folder(place.parent)
            sync_folder(file.parent)
    _remove_empty({folder for file in files for folder in file.parents if folder.is_relative_to(root)} - {root})


def remove_empty_folders(root: Path) -> None:
    """Remove the folders from `root` downwards that hold nothing but such folders."""
    _remove_empty({root, *(Path(parent) for parent, _, _ in os.walk(root))})


def _remove_empty(folders: set[Path]) -> None:
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        with suppress(OSError):  # not empty, or gone
            folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


# ------------------------------------------------------------------------------- what the tests of power cuts replay


def rename(source: Path, target: Path) -> None:
    os.replace(source, target)


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step; where the system cannot, in two, so that the old content is still beside the new."""
    libc = ctypes.CDLL(None, use_errno=True)
    swap = getattr(libc, "renameat2", None)
    if swap is not None and swap(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno() if swap is not None else errno.ENOSYS
    if code not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
        raise OSError(code, os.strerror(code), str(other))
    aside = other.with_name(f".{other.name}{REMOVED}")
    _remove(aside)
    rename(other, aside)
    rename(one, other)
    rename(aside, one)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            if not (path := Path(parent) / name).is_symlink():
                sync_file(path)
        sync_folder(Path(parent))


# ------------------------------------------------------------------------------------------------------ the manifest


# ------------------------------------------------------------------------------------------------ one process at a time


# --------------------------------------------------------------------------------------- files that somebody else wrote
