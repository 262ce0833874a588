"""HDF5 files from elsewhere, read with suspicion: nothing outside of the file, nothing larger than it can be.

Every failure of the HDF5 library becomes a UserError that names the file and the key. Heaps are checked before the
library walks them, because it never returns from an entry of zero bytes. Other damage can still crash the library.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.reading import check_content
from toolkit.data.images import decode_picture

MAX_EPISODE_BYTES = 4 * 2**30  # of one episode in memory
MAX_EXPANSION = 2000  # times; gzip reaches 1,030 on zeros
MAX_LINKS = 8  # soft links in a row
HEAP = b"GCOL\x01\0\0\0"  # begins each heap that holds texts and rows of bytes
MAX_DATASETS, MAX_DEPTH = 2000, 6  # of a group
MAX_TEXTS = 10_000  # texts in a dataset of them
LEAST_SIDE = 8  # of grey pictures without an axis of channels; smaller ones are matrices
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG"
PICTURES = "pictures (T, H, W, C) or (T, C, H, W) of uint8, floats of 3 channels, or one JPEG or PNG a row"


def natural_order(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts demo_2 before demo_10."""
    return [(0, int(part)) if part.isascii() and part.isdigit() else (1, part) for part in re.split(r"([0-9]+)", name)]


class Hdf5File:
    """Context manager around one file. Keys are absolute, such as `data/demo_0/actions`.

    Refuses external links, soft links that lead to one, external storage, virtual datasets, declared sizes beyond
    what the file can hold and object types; all as UserError.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._heaps_checked = path, False

    def __enter__(self) -> Self:
        with self._reading("/"):
            check_content(self.path)
            self.size = self.path.stat().st_size
            self._file = h5py.File(self.path, "r")
        return self

    def __exit__(self, *_: Any) -> None:
        with self._reading("/"):
            self._file.close()

    def names(self, key: str = "/") -> list[str]:
        """What a group holds, in natural order; nothing if there is no such group."""
        node = self._find(key)
        with self._reading(key):
            found = list(node) if isinstance(node, h5py.Group) else []
            for name in found:
                name.encode()
            return sorted(found, key=natural_order)

    def attributes(self, key: str = "/") -> dict[str, Any]:
        """Scalar attributes as Python values, text as `str`; arrays and references are left out."""
        node = self._find(key)
        found: dict[str, Any] = {}
        if node is None:
            return found
        with self._reading(key):
            for name in node.attrs:
                name.encode()
                kind = node.attrs.get_id(name)
                text = h5py.check_string_dtype(kind.dtype)
                if kind.shape is None or math.prod(kind.shape) != 1 or not (text or kind.dtype.kind in "biuf"):
                    continue
                if text is not None and text.length is None:
                    self._check_heaps()
                value = np.asarray(node.attrs[name]).item()
                value = value.decode() if isinstance(value, bytes) else value
                if isinstance(value, str):
                    value.encode()  # h5py lets bytes through that are no text
                found[name] = value
        return found

    def shape(self, key: str) -> tuple[tuple[int, ...], np.dtype] | None:
        """Shape and type of a dataset, None for a group and for what is not there."""
        node = self._find(key)
        with self._reading(key):
            return (node.shape or (), node.dtype) if isinstance(node, h5py.Dataset) else None

    def numbers(self, key: str) -> np.ndarray:
        """A dataset of numbers (T,) or (T, 1) as (T,) float64."""
        dataset = self._dataset(key, MAX_EPISODE_BYTES)
        with self._reading(key):
            return np.asarray(dataset[()], dtype=np.float64).ravel()

    def vectors(self, key: str, limit: int = MAX_EPISODE_BYTES) -> np.ndarray:
        """A dataset (T,) or (T, D) of finite numbers as (T, D) float32."""
        dataset = self._dataset(key, limit)
        if dataset.dtype.kind not in "biuf" or dataset.ndim not in (1, 2):
            raise UserError(f"{self.path}: '{key}' is {dataset.shape} {dataset.dtype}; expected numbers (T, D)")
        if not dataset.size:
            raise UserError(f"{self.path}: '{key}' is empty")
        with self._reading(key), np.errstate(over="ignore"):  # infinity is complained about below
            values = np.asarray(dataset[()]).astype(np.float32).reshape(len(dataset), -1)
        if not np.isfinite(values).all():
            row = int(np.argmax(~np.isfinite(values).all(axis=1)))
            raise UserError(f"{self.path}: '{key}' holds NaN or infinity (step {row}); remove that episode")
        return values

    def pictures(self, key: str, limit: int = MAX_EPISODE_BYTES) -> np.ndarray:
        """Frames (T, H, W, 3) uint8, from any of what `is_pictures` takes."""
        dataset = self._dataset(key, limit)
        shape, kind = dataset.shape, dataset.dtype
        if _encoded(shape, kind):
            frames = self._decoded(key, dataset, limit)
        elif channels := _channels(shape, kind):
            with self._reading(key):
                frames = np.asarray(dataset[()])
            frames = frames[..., None] if frames.ndim == 3 else frames
            frames = self._eight_bits(key, np.moveaxis(frames, channels, -1))
        else:
            raise UserError(f"{self.path}: '{key}' is {shape} {kind}; expected {PICTURES}")
        if not frames.size:
            raise UserError(f"{self.path}: '{key}' holds no picture")
        return frames

    def _eight_bits(self, key: str, frames: np.ndarray) -> np.ndarray:
        """(T, H, W, C) as (T, H, W, 3) uint8: grey three times, without transparency, floats from 0..1 or 0..255."""
        frames = frames[..., :3] if frames.shape[-1] > 1 else np.repeat(frames, 3, axis=-1)
        if frames.dtype == np.uint8:
            return frames
        least, most = (float(end(frames, initial=0)) for end in (np.min, np.max))
        if not 0 <= least <= most <= 255:  # NaN, too
            raise UserError(f"{self.path}: '{key}' holds numbers from {least:g} to {most:g}; expected 0..1 or 0..255")
        return np.round(frames * (255 if most <= 1 else 1)).astype(np.uint8)

    def is_pictures(self, key: str) -> bool:
        """True for arrays with 1, 3 or 4 channels, last or first, and for rows that begin as a JPEG or PNG file does.

        Depth is neither: floats of one channel, and integers of more than 8 bits.
        """
        node = self._find(key)
        if not isinstance(node, h5py.Dataset) or not node.shape:
            return False
        if not _encoded(node.shape, node.dtype):
            return bool(_channels(node.shape, node.dtype))
        return bool(len(node)) and self._row(key, self._dataset(key, MAX_EPISODE_BYTES), 0).startswith((JPEG, PNG))

    def is_encoded(self, key: str) -> bool:
        """True for pictures of which each row is a file."""
        return _encoded(*(self.shape(key) or ((), np.dtype("O"))))

    def texts(self, key: str) -> list[str]:
        """The texts that a small dataset holds, none if it holds anything else."""
        shape, kind = self.shape(key) or ((), np.dtype("f4"))
        if h5py.check_string_dtype(kind) is None or math.prod(shape) > MAX_TEXTS:
            return []
        dataset = self._dataset(key, MAX_EPISODE_BYTES)
        with self._reading(key):
            cells = np.ravel(np.asarray(dataset[()])).tolist()
        return [cell.decode("utf-8", "replace") if isinstance(cell, bytes) else str(cell) for cell in cells]

    def datasets(self, key: str) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of every dataset below a group, by its path from there; links out of the file are left out."""
        found: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        places, looked_at = [("", 0)], 0
        while places and len(found) < MAX_DATASETS and looked_at < MAX_DATASETS:
            (place, depth), looked_at = places.pop(0), looked_at + 1
            for name in self.names(f"{key}/{place}"):
                inner = f"{place}/{name}".strip("/")
                try:
                    shape = self.shape(f"{key}/{inner}")
                except UserError:
                    continue
                if shape is not None:
                    found[inner] = shape
                elif depth < MAX_DEPTH:
                    places.append((inner, depth + 1))
        return found

    def _decoded(self, key: str, dataset: h5py.Dataset, limit: int) -> np.ndarray:
        frames: list[np.ndarray] = []
        for row in range(len(dataset)):
            data = self._row(key, dataset, row)
            try:
                if data.startswith(PNG) and data[24:25] == b"\x10":
                    raise ValueError("a PNG of 16 bits, as depth is kept; leave it out")
                frames.append(decode_picture(data))
            except ValueError as error:
                raise UserError(f"{self.path}: '{key}' row {row}: {_printable(error)}") from error
            if frames[-1].shape != frames[0].shape:
                raise UserError(f"{self.path}: '{key}': row {row} is {frames[-1].shape}, row 0 {frames[0].shape}")
            if frames[0].nbytes * len(dataset) > limit:
                raise UserError(self._too_large(key, frames[0].nbytes * len(dataset)))
        return np.stack(frames) if frames else np.zeros((0, 0, 0, 3), np.uint8)

    def _row(self, key: str, dataset: h5py.Dataset, row: int) -> bytes:
        with self._reading(key):
            cell = dataset[row]
            return cell if isinstance(cell, bytes) else bytes(np.asarray(cell))

    def _dataset(self, key: str, limit: int) -> h5py.Dataset:
        """The dataset, if it lies in this file and its size is one that the file can hold."""
        dataset = self._find(key)
        if not isinstance(dataset, h5py.Dataset):
            raise UserError(f"{self.path}: no dataset '{key}'")
        with self._reading(key):
            if dataset.external:
                raise UserError(f"{self.path}: '{key}' keeps its data in another file; copy it into this one")
            if dataset.is_virtual:
                raise UserError(f"{self.path}: '{key}' is a virtual dataset; copy the data into this file")
            if dataset.shape is None:
                raise UserError(f"{self.path}: '{key}' is empty")
            size = math.prod(dataset.shape) * dataset.dtype.itemsize
            packed = dataset.id.get_create_plist().get_nfilters() > 0
            stored = dataset.id.get_storage_size()
            chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
        if h5py.check_vlen_dtype(dataset.dtype) is not None:
            self._check_heaps()
        if size > (MAX_EXPANSION * stored + 2**20 if packed else self.size):
            raise UserError(f"{self.path}: '{key}' declares {size} bytes, of which {stored} are in the file")
        if max(size, chunk) > limit:
            raise UserError(self._too_large(key, max(size, chunk)))
        return dataset

    def _check_heaps(self) -> None:
        """Raise UserError if a heap of this file has an entry that ends outside it, or takes no room."""
        if self._heaps_checked:
            return
        with (
            self._reading("/"),
            self.path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            start = content.find(HEAP)
            while start >= 0:
                _check_heap(content, start)
                start = content.find(HEAP, start + len(HEAP))
        self._heaps_checked = True

    def _too_large(self, key: str, size: int) -> str:
        return (
            f"{self.path}: '{key}' takes {size / 2**30:.1f} GiB in memory, an episode may take "
            f"{MAX_EPISODE_BYTES / 2**30:.0f}; split the episode or store smaller pictures"
        )

    def _find(self, key: str, links: int = 0) -> Any:
        """The object at `key`, None if there is none; each link on the way is looked at before it is followed."""
        node: Any = self._file
        names = [name for name in key.split("/") if name not in ("", ".")]
        for place, name in enumerate(names):
            with self._reading(key):
                if not isinstance(node, h5py.Group) or not node.id.links.exists(name.encode()):
                    return None
                link = node.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise UserError(
                    f"{self.path}: '{key}' leads to another file ('{link.filename}'); copy it into this one"
                )
            if isinstance(link, h5py.SoftLink):
                if links == MAX_LINKS:
                    raise UserError(f"{self.path}: '{key}' is a chain of more than {MAX_LINKS} links")
                target = link.path if link.path.startswith("/") else "/".join([*names[:place], link.path])
                node = self._find(target, links + 1)
            else:
                with self._reading(key):
                    node = node[name]
        return node

    @contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: not found") from error
        except Exception as error:  # h5py raises OSError, RuntimeError, KeyError, ValueError, TypeError and others
            raise UserError(f"{self.path}: '{key}' is not readable as HDF5 ({_printable(error)})") from error


def _encoded(shape: tuple[int, ...], kind: np.dtype) -> bool:
    """True for rows of bytes, of which each may be a file."""
    if kind == np.uint8:
        return len(shape) == 2
    return len(shape) == 1 and (kind.kind == "S" or h5py.check_vlen_dtype(kind) == np.uint8)


def _channels(shape: tuple[int, ...], kind: np.dtype) -> int:
    """The axis of the channels of pictures (T, H, W, C) or (T, C, H, W), the last for (T, H, W); 0 for no pictures."""
    if kind != np.uint8 and kind.kind != "f":
        return 0
    if len(shape) == 3:
        return 3 if kind == np.uint8 and min(shape[1:]) >= LEAST_SIDE else 0
    allowed = (1, 3, 4) if kind == np.uint8 else (3, 4)
    return next((axis for axis in (3, 1) if len(shape) == 4 and shape[axis] in allowed), 0)


def _check_heap(content: mmap.mmap, start: int) -> None:
    """Walk the entries of a heap: number (0 is the free rest), uses, 4 unused bytes, size of what follows [8 bytes].

    The file has sizes of 8 bytes, as all have that h5py writes. Source: HDF5 File Format Specification 3.0, III.E.
    Raises ValueError.
    """
    header = 16
    place, end = start + header, start + int.from_bytes(content[start + 8 : start + header], "little")
    while place + header <= end:
        number = int.from_bytes(content[place : place + 2], "little")
        size = int.from_bytes(content[place + 8 : place + header], "little")
        taken = header + (size + 7) // 8 * 8 if number else size  # the free rest counts its own header
        if taken < header or place + taken > end or end > len(content):
            raise ValueError(f"entry {number} of the heap at byte {start} takes {taken} bytes")
        place += taken


def _printable(value: BaseException | str) -> str:
    text = str(value) or type(value).__name__
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:200]
