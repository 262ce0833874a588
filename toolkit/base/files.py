"""The one door for files that must be whole, and for files that somebody else wrote.

Whatever must be whole is made under a temporary name, synced to the disk, renamed, and its folder synced: after a
kill or a power cut the old content or the new one is there, never a part. What is removed gets another name first.
`recording` keeps the manifest of a run: the list of files that vag wrote, the only ones that it ever removes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from toolkit.errors import UserError

PARTIAL = ".vag-partial"  # ends the name of what is being written
REMOVED = ".vag-removed"  # ends the name of what is being deleted
MANIFEST = ".vag-manifest"
LOCK = ".vag-lock"
MOST_JSON_BYTES = 64 << 20
MOST_JSON_DEPTH = 64

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # fcntl.h, linux/fs.h


# ------------------------------------------------------------------------------------------------ whole or not at all


def partial_name(path: Path) -> Path:
    """The name that `path` has while it is written."""
    return path.with_name(f".{path.name}{PARTIAL}")


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
    """Write JSON whole: after a kill or a power cut the file holds the old value or the new one."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, default=str) + "\n", encoding="utf-8")


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
    if not everything and (foreign := _foreign(path)):
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


def files_below(folder: Path) -> list[Path]:
    """Everything below a folder that is not itself a folder; links are not followed."""
    return sorted(
        Path(parent) / name
        for parent, folders, names in os.walk(folder)
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(parent, name)))]
    )


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


def sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that syncs no folders
            raise
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            if not (path := Path(parent) / name).is_symlink():
                sync_file(path)
        sync_folder(Path(parent))


# ------------------------------------------------------------------------------------------------------ the manifest

_open: list[tuple[Path, set[str]]] = []  # of this process: run directory, what its manifest lists; the innermost last
_given: list[Path] = []  # the same directories by the names that they were given


@contextmanager
def recording(directory: Path) -> Iterator[None]:
    """Inside, what this process writes below `directory` is entered into its manifest, before it has its name."""
    root = Path(directory).resolve()
    _open.append((root, set(_lines(root))))
    _given.append(Path(os.path.abspath(directory)))
    try:
        yield
    finally:
        _open.pop()
        _given.pop()


def check_inside(path: Path) -> None:
    """Raise UserError for a place in an open run that a link, such as of somebody who prepared it, leads out of it."""
    place, named = path.parent.resolve() / path.name, Path(os.path.abspath(path))
    for (root, _), given in zip(_open, _given, strict=True):
        if (named.is_relative_to(given) or named.is_relative_to(root)) and not place.is_relative_to(root):
            raise UserError(f"{path}: a link leads out of {given}; vag writes to nothing else, so remove that link")


def note(*paths: str | Path, run: bool = False) -> None:
    """Enter files into the manifest of the open run that they lie in, or a `run` with a manifest of its own.

    For what is written without this module: by libraries, and by other processes. The entry is on the disk first.
    """
    entries: dict[Path, list[str]] = {}
    for path in map(Path, paths):
        check_inside(path)
        place = path.parent.resolve() / path.name
        inside = (root for root, _ in reversed(_open) if place != root and place.is_relative_to(root))
        if (root := next(inside, None)) is not None:
            entries.setdefault(root, []).append(os.path.relpath(place, root) + "/" * run)
    for root, listed in _open:
        if new := [name for name in dict.fromkeys(entries.pop(root, [])) if name not in listed]:
            manifest = root / MANIFEST
            first = not os.path.lexists(manifest)
            with manifest.open("a", encoding="ascii") as file:  # after the half line that a power cut may have left
                file.write("\n" + "".join(json.dumps(name) + "\n" for name in new))
            sync_file(manifest)
            if first:
                sync_folder(root)
            listed.update(new)


def is_noted(path: Path) -> bool:
    """True for a file that the open run may remove: one of its manifest, or one that lies under a temporary name."""
    place = path.parent.resolve() / path.name
    for root, listed in reversed(_open):
        if place.is_relative_to(root):
            name = place.relative_to(root)
            return str(name) in listed or any(_is_temporary(part) for part in name.parts)
    return _is_temporary(path.name)


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith((PARTIAL, REMOVED))


def _foreign(path: Path) -> list[Path]:
    """What the open run did not write of a file, a link or all below a folder; nothing where no run is open there."""
    if not any((path.parent.resolve() / path.name).is_relative_to(root) for root, _ in _open):
        return []
    found = files_below(path) if path.is_dir() and not path.is_symlink() else [path]
    return [file for file in found if not is_noted(file)]


def written_files(directory: Path) -> list[Path]:
    """The files of a run directory that its manifest lists, those of runs inside too, and what a kill left of them.

    Names that lead out of the directory, through links too, are left out.
    """
    found = [path for name in (MANIFEST, "run.json") if (path := directory / name).is_file()]
    for name in _lines(directory):
        path = directory / name
        if name.endswith("/") or not leads_inside(directory, name):
            continue
        found += [path] if path.is_file() and not path.is_symlink() else []
        for left in (partial_name(path), path.with_name(f".{path.name}{REMOVED}")):  # of a process that was killed
            if left.is_dir() and not left.is_symlink():
                found += files_below(left)
            elif os.path.lexists(left):
                found.append(left)
    for run in runs_inside(directory):
        found += written_files(run)
    return list(dict.fromkeys(found))


def runs_inside(directory: Path) -> list[Path]:
    """The runs that the manifest of a run lists, as folders that are there."""
    found = [directory / name for name in _lines(directory) if name.endswith("/") and leads_inside(directory, name)]
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def leads_inside(directory: Path, name: str) -> bool:
    """False for a name that leads out of the directory, through a link too, and for one that no file can have."""
    parts, path = Path(name).parts, directory / name
    if not parts or os.path.isabs(name) or ".." in parts:
        return False
    try:
        os.lstat(path.with_name(f".{path.name}{REMOVED}"))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError):  # too long, or letters that names do not have
        return False
    return not any((directory / above).is_symlink() for above in Path(name).parents)


def _lines(directory: Path) -> list[str]:
    if not os.path.lexists(directory / MANIFEST):
        return []
    if (directory / MANIFEST).is_symlink():  # what is noted would be written into somebody's file
        raise UserError(f"{directory / MANIFEST}: is a link; expected a file that vag wrote")
    text = read_bytes(directory / MANIFEST, MOST_JSON_BYTES).decode("ascii", errors="replace")
    names: list[str] = []
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):  # the last line of a process that was killed
            name = json.loads(line)
            if isinstance(name, str) and name and "\0" not in name and os.fsencode(name):
                names.append(name)
    return list(dict.fromkeys(names))


# ------------------------------------------------------------------------------------------------ one process at a time


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory: a second process is refused with a UserError that names the first one's id."""
    path = directory / LOCK
    while True:
        try:  # a link would lead to somebody's file, which is emptied below
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR):
                raise
            raise UserError(f"{path}: is no file that vag wrote; delete it or choose another out=") from error
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                os.close(handle)
                raise UserError(f"{path}: is no file that vag wrote; delete it or choose another out=")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(f"{path}: its file system cannot lock files ({error}); choose another out=") from error
            raise UserError(f"{directory}: in use by process {holder}; wait for it, or choose another out=") from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                break
        os.close(handle)  # its holder has just removed it
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def check_free(directory: Path) -> None:
    """Raise UserError if a process holds a run that this one lists; the lock of a process that was killed goes."""
    for run in runs_inside(directory):
        if os.path.lexists(run / LOCK):
            with locked(run):
                pass
        check_free(run)


# --------------------------------------------------------------------------------------- files that somebody else wrote


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
        raise UserError(f"{path}: not valid JSON ({str(error).splitlines()[0]})") from error
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
