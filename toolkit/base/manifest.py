"""Which files of a run directory vag wrote, the only ones that it ever removes; and who works in it now.

`recording` keeps the list of an open run; an entry is on the disk before the file has its name.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit.base.errors import InUseError, UserError
from toolkit.base.reading import MOST_JSON_BYTES, read_bytes

PARTIAL = ".vag-partial"  # ends the name of what is being written
REMOVED = ".vag-removed"  # ends the name of what is being deleted
MANIFEST = ".vag-manifest"
LOCK = ".vag-lock"


def partial_name(path: Path) -> Path:
    """The name that `path` has while it is written."""
    return path.with_name(f".{path.name}{PARTIAL}")


def files_below(folder: Path) -> list[Path]:
    """Everything below a folder that is not itself a folder; links are not followed."""
    return sorted(
        Path(parent) / name
        for parent, folders, names in os.walk(folder)
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(parent, name)))]
    )


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


_open: list[tuple[Path, set[str]]] = []  # of this process: run directory, what its manifest lists; the innermost last
_given: list[Path] = []  # the same directories by the names that they were given
_others: list[Path] = []  # run directories in which another process writes


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


@contextmanager
def written_elsewhere(directory: Path) -> Iterator[None]:
    """Inside, whatever would write below `directory` is a fault of this program: the main process does that."""
    _others.append(Path(directory).resolve())
    try:
        yield
    finally:
        _others.pop()


def check_inside(path: Path) -> None:
    """Raise UserError for a place in an open run that a link, such as of somebody who prepared it, leads out of it."""
    place, named = path.parent.resolve() / path.name, Path(os.path.abspath(path))
    if any(place.is_relative_to(root) for root in _others):
        raise RuntimeError(f"{path}: one process of a run writes, and this is not it")
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


def foreign_files(path: Path) -> list[Path]:
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


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory: a second process is refused with an InUseError that names the first one's id."""
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
            raise InUseError(f"{directory}: in use by process {holder}; wait for it, or choose another out=") from error
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
