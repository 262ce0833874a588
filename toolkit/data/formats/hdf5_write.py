"""HDF5 files that may not fit on the disk: the library never sees a failed write, which would end the process.

HDF5 keeps what it could not write and tries again while it closes the file and when the process ends; on a full disk
it crashes there. So the file object below takes everything and remembers its first error, for Python to raise.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

SMALL = 1 << 16  # bytes; larger writes are data, which HDF5 does not read again


class ForgivingFile(io.RawIOBase):
    """A new file for h5py's driver "fileobj". After the first failed write nothing reaches the disk any more."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file, self._where = path.open("w+b", buffering=0), str(path.parent)
        self._place = self._end = 0
        self._kept: list[tuple[int, bytes]] = []  # what the disk did not take and HDF5 may want back
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise the first error that writing met."""
        if self.error is not None:
            raise self.error

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._end}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._file.seek(self._place)
        content = bytearray(len(view))
        filled = 0
        while filled < len(content) and (part := self._file.read(len(content) - filled)):
            content[filled : filled + len(part)] = part
            filled += len(part)
        for start, data in self._kept:
            first, last = max(start, self._place), min(start + len(data), self._place + len(view))
            if first < last:
                content[first - self._place : last - self._place] = data[first - start : last - start]
        view[:] = content
        self._place += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.error is None:
            self._try(lambda: self._write_all(view))
        if self.error is not None and len(view) <= SMALL:
            self._kept.append((self._place, bytes(view)))
        self._place += len(view)
        self._end = max(self._end, self._place)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        size = self._place if size is None else size
        if self.error is None:
            self._try(lambda: self._file.truncate(size))
        self._end = size
        return size

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        if not self.closed:
            self._try(self._file.close)
        super().close()

    def _write_all(self, view: memoryview) -> None:
        self._file.seek(self._place)
        while len(view):
            view = view[self._file.write(view) or 0 :]

    def _try(self, work: Any) -> None:
        try:
            work()
        except OSError as error:
            error.filename = error.filename or self._where
            self.error = self.error or error


@contextmanager
def new_hdf5(path: Path) -> Iterator[tuple[h5py.File, ForgivingFile]]:
    """A new HDF5 file and what it writes to, whose `check` raises OSError if the disk did not take all so far.

    On leaving it is checked once more.
    """
    with ForgivingFile(path) as raw:
        try:
            with h5py.File(raw, "w") as file:
                yield file, raw
        except Exception:
            raw.check()  # it explains what HDF5 says
            raise
        raw.check()
    raw.check()
