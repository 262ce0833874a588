"""A directory of files that can be made again: each is built once, and the least recently used ones go first.

`$VAG_CACHE` names the directory, `$VAG_CACHE_GB` (default 50) its size. Nothing but files with the cache's own names
is ever deleted. A file is built under a temporary name by who holds the lock of its name, and renamed when it is
complete: who finds the name finds the whole file. Deleting a file that someone has mapped leaves the map valid.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from toolkit.base import files, manifest, reading
from toolkit.base.errors import UserError
from toolkit.data.formats.lerobot_layout import data_files
from toolkit.data.formats.lerobot_read import dataset_id

OWN_FILE = re.compile(r"[0-9a-f]{16}-.+\.(h5|npy)")
# ".partial" is what earlier versions wrote; a number at the end marks a part of such a file.
OWN_PARTIAL = re.compile(r"\.([0-9a-f]{16}[-.].+)\.(?:vag-)?partial(\.\d+)?")
LOCKS = "locks"  # folder of empty files; they stay, since a lock that is removed could be held twice
GIGABYTE = 1_000_000_000
SETTLED_SECONDS = 2.0  # a file changed later than this before it was hashed could change again unnoticed


def cache_directory() -> Path:
    """$VAG_CACHE, else the user's cache directory; a variable that is empty counts as none."""
    if own := os.environ.get("VAG_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vag"


def cached_file(name: str, build: Callable[[Path], None]) -> Path:
    """The file `name` of the cache, made by `build(temporary path)` if it is not there.

    Of several processes that want it at once one builds, the others wait. An exception leaves no file. What a killed
    process left half-written is removed by the next build. Raises UserError if $VAG_CACHE_GB is not a size or the
    file system cannot lock files.
    """
    path, limit = cache_directory() / name, cache_limit()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not path.exists():
                _build(path, build)
        _sweep(path.parent)
        _evict(path.parent, keep=path, limit=limit)
    with suppress(OSError):  # a cache that one may only read is of use too
        os.utime(path)
    return path


def remembered_id(directory: Path) -> str:
    """`dataset_id`, computed anew only when the name, size or time of a file has changed."""
    where = Path(directory).resolve()
    before, newest = fingerprint(where)
    note = cache_directory() / f"{hashlib.sha256(os.fsencode(where)).hexdigest()[:16]}.id"
    with suppress(UserError):  # one that is missing or damaged is made anew
        known = reading.read_json(note)
        if known.get("fingerprint") == before and isinstance(known.get("id"), str):
            return str(known["id"])
    identity = dataset_id(where)
    if time.time() - newest > SETTLED_SECONDS and fingerprint(where)[0] == before:
        with suppress(OSError):  # a note saves time; without it everything works
            files.write_json(note, {"directory": str(where), "fingerprint": before, "id": identity})
    return identity


def fingerprint(directory: Path) -> tuple[str, float]:
    """SHA-256 over names, sizes and times of all files, and the latest of the times [s since 1970]."""
    digest, newest = hashlib.sha256(b"2"), 0.0  # another number when `dataset_id` is computed in another way
    for path in data_files(directory):
        status = path.stat()
        digest.update(
            f"{path.relative_to(directory)}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0"
            f"{status.st_ino}\n".encode(errors="surrogateescape")
        )
        newest = max(newest, status.st_mtime, status.st_ctime)
    return digest.hexdigest(), newest


@contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[None]:
    """The lock of a name in the cache. Raises Timeout if not to `wait` for it, UserError where there are no locks."""
    locks = path.parent / LOCKS
    locks.mkdir(exist_ok=True)
    lock = FileLock(locks / path.name, blocking=wait, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise
    except (NotImplementedError, OSError) as error:
        raise UserError(
            f"{path}: its file system cannot lock files ({error}); set VAG_CACHE to a local disk"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _build(path: Path, build: Callable[[Path], None]) -> None:
    temporary = manifest.partial_name(path)
    _discard(temporary)  # its builder died
    try:
        temporary.touch()
        build(temporary)
        files.publish(temporary, path)
    finally:
        _discard(temporary)


def _discard(temporary: Path) -> None:
    """Remove a file that is built, and the parts that its workers have left: the same name with a number."""
    for path in (temporary, *temporary.parent.glob(f"{glob.escape(temporary.name)}.*")):
        path.unlink(missing_ok=True)


def _sweep(directory: Path) -> None:
    """Remove what dead processes left half-written, and notes on datasets that are gone."""
    for path in directory.iterdir():
        with suppress(OSError, ValueError, KeyError, TypeError, UserError):
            if built := OWN_PARTIAL.fullmatch(path.name):
                with _locked(path.with_name(built[1]), wait=False):  # else its builder is at work
                    path.unlink()
            elif path.suffix == ".id" and not Path(reading.read_json(path)["directory"]).is_dir():
                path.unlink()


def _evict(directory: Path, keep: Path, limit: float) -> None:
    """Delete the files used longest ago until all fit into `limit` bytes; `keep` stays."""
    files = []
    for path in directory.iterdir():
        if OWN_FILE.fullmatch(path.name):
            with suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_blocks * 512, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        if path != keep:
            path.unlink(missing_ok=True)
            total -= size


def cache_limit() -> float:
    """Size of the cache [byte]. Raises UserError if the variable is not a number."""
    text = os.environ.get("VAG_CACHE_GB", "50")
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not size >= 0:
        raise UserError(f"VAG_CACHE_GB={text}: expected the size of the clip cache in gigabytes, e.g. 50")
    return size * GIGABYTE
