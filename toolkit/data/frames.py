"""Frames kept as JPEG files, a row each, behind the face of an array: decoded in threads when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, first_line
from toolkit.data.images import encode_jpeg, picture_size

QUALITY = 88  # in Pillow's scale; colours have half the resolution, as in videos
CODING = f"jpeg{QUALITY}"


class JpegFrames:
    """(N, H, W, 3) uint8, of which row i is the JPEG file of `lengths[i]` bytes at `starts[i]` in `data`."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self, path: Path, data: np.ndarray, starts: np.ndarray, lengths: np.ndarray, size: Sequence[int]
    ) -> None:
        self.path, self.data, self.starts, self.lengths = path, data, starts, lengths
        self.shape = (len(starts), *size, 3)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.take(np.arange(len(self))[rows], axis=0)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def take(self, rows: Any, axis: int) -> np.ndarray:
        """Rows (...) as pictures (..., H, W, 3); what is asked for several times is decoded once. axis: 0.

        Raises UserError for a row that is no JPEG file of this size.
        """
        rows = np.asarray(rows)
        wanted, places, which = np.unique(rows, return_index=True, return_inverse=True)
        pictures = np.empty((rows.size, *self.shape[1:]), self.dtype)
        for _ in _threads().map(self._decode, wanted, (pictures[place] for place in places)):
            pass  # but raise what a thread has raised
        origins = places[which.reshape(-1)]
        repeated = np.flatnonzero(origins != np.arange(rows.size))
        pictures[repeated] = pictures[origins[repeated]]
        return pictures.reshape(*rows.shape, *self.shape[1:])

    def chosen(self, rows: np.ndarray) -> JpegFrames:
        """Some rows, of the same bytes."""
        return JpegFrames(self.path, self.data, self.starts[rows], self.lengths[rows], self.shape[1:3])

    def encoded(self, row: int) -> np.ndarray:
        """The JPEG file of a row, (lengths[row],) uint8."""
        return self.data[self.starts[row] : self.starts[row] + self.lengths[row]]

    def _decode(self, row: int, picture: np.ndarray) -> None:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg  # in two thirds of Pillow's time

        data = self.encoded(row).copy()  # torch would warn of memory that it may not write to
        try:
            if picture_size(data.tobytes()) != self.shape[1:3]:  # before memory is taken for it
                raise ValueError(f"expected {self.shape[1]}x{self.shape[2]} pixels")
            picture[...] = decode_jpeg(torch.from_numpy(data), ImageReadMode.RGB).permute(1, 2, 0).numpy()
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.path}: frame {row} is damaged ({first_line(error)}); delete the file to build it again"
            ) from error


class ChosenFrames:
    """Some rows (N,) of frames that stay where they lie, such as mapped from a file."""

    dtype = np.dtype(np.uint8)

    def __init__(self, frames: np.ndarray, rows: np.ndarray) -> None:
        self.frames, self.rows = frames, rows
        self.shape = (len(rows), *frames.shape[1:])

    @classmethod
    def of(cls, frames: Frames, rows: np.ndarray) -> Frames:
        """These rows, whatever the frames are."""
        if isinstance(frames, ChosenFrames):
            return cls(frames.frames, frames.rows[rows])
        return frames.chosen(rows) if isinstance(frames, JpegFrames) else cls(frames, rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.frames[self.rows[rows]]

    def take(self, rows: Any, axis: int) -> np.ndarray:
        """Rows (...) as pictures (..., H, W, 3). axis: 0."""
        return self.frames.take(self.rows[rows], axis=axis)


Frames = np.ndarray | JpegFrames | ChosenFrames


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), "jpeg")


def chosen_frames(frames: Frames, rows: np.ndarray) -> Frames:
    """Some rows as frames of their own: raw ones are copied."""
    return frames.chosen(rows) if isinstance(frames, JpegFrames) else frames[rows]


def encoded_frames(frames: Frames, rows: Iterable[int]) -> list[np.ndarray]:
    """Rows as JPEG files, (length,) uint8 each; those that are such already stay as they are."""
    if isinstance(frames, JpegFrames):
        return [frames.encoded(row) for row in rows]
    return [encode_jpeg(frames[row], QUALITY, subsampling=2) for row in rows]
