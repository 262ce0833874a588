"""Latents of the windows of a store, encoded once and kept in the cache.

They lie in files of some windows each, so that a training that is killed while it encodes goes on where it was, and
several processes encode different ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toolkit.base.errors import warn
from toolkit.base.processes import processes
from toolkit.data.batches import ALL, GeneratorClips, Part, to_tensors
from toolkit.data.cache import FORMAT, clip_id, open_cached, reserve, size_text
from toolkit.data.cached_files import GIGABYTE, cache_limit
from toolkit.data.clips import ClipStore

Encode = Callable[[np.ndarray], Iterator[Tensor]]  # numbers of windows -> latents (B, ...) of all of them, in order


class Latents:
    """Latents (W, ...) of all windows, mapped from the cache: index them with numbers of windows (B,)."""

    def __init__(self, files: list[np.ndarray], size: int) -> None:
        """files: of `size` windows each, the last one of fewer; uint16 are the bits of bfloat16."""
        self.files, self.size = files, size

    def __len__(self) -> int:
        return sum(map(len, self.files))

    def __getitem__(self, windows: np.ndarray) -> Tensor:
        """(B, ...) float32."""
        rows = [self.files[window // self.size][window % self.size] for window in windows.tolist()]
        latents = torch.from_numpy(np.stack(rows))
        return latents.view(torch.bfloat16).float() if latents.dtype == torch.uint16 else latents


class LatentClips:
    """Generator batches whose frames were encoded beforehand: latents (W, C, T, h, w) of all windows that are drawn."""

    def __init__(self, clips: GeneratorClips, latents: Any, with_frames: bool = False) -> None:
        """latents: tensors (B, C, T, h, w) by the numbers (B,) of windows, which count through all episodes."""
        self.clips, self.latents, self.with_frames = clips, latents, with_frames
        self.first = np.concatenate([[0], np.cumsum(clips.windows_of)])

    def batch(self, step: int, part: Part = ALL) -> dict[str, Any]:
        episodes, starts = self.clips.draw(step, part.count)
        own = np.array(part.rows(len(episodes)))
        batch = to_tensors(self.clips.window(episodes[own], starts[own], self.with_frames))
        batch["latents"] = self.latents[self.first[episodes[own]] + starts[own] // self.clips.start_every]
        return self.clips.part_of(part, episodes, batch)


def open_latents(
    store: ClipStore, encoder_id: str, window: str, count: int, encode: Encode, size: int | None = None
) -> Latents:
    """Latents of `count` windows; encoder_id, window: what made them, of which frames.

    `encode` is called for what the cache lacks. size: windows of a file, which are then kept as bfloat16; None keeps
    all in one file, as float32.
    """
    each = size or count
    firsts = list(range(0, count, each))
    start = len(firsts) * processes().rank // processes().size  # so that processes begin with different ones
    key = f"{FORMAT} {clip_id(store)} {encoder_id} {window} {count}"
    found: dict[int, np.ndarray] = {}
    for first in [*firsts[start:], *firsts[:start]]:
        part = np.arange(first, min(first + each, count))
        name = hashlib.sha256(f"{key} {first} {each} {size is None}".encode()).hexdigest()[:16]
        build = partial(_build, part, encode, size is not None, 0 if found else count)
        found[first] = open_cached(f"{name}-latents.npy", build, _mapped)
    return Latents([found[first] for first in firsts], each)


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _build(windows: np.ndarray, encode: Encode, half: bool, said: int, path: Path) -> None:
    """said: number of all windows, to say what these take; 0 says nothing."""
    latents: np.ndarray | None = None
    first = 0
    for part in encode(windows):
        values = (part.bfloat16().view(torch.uint16) if half else part.float()).cpu().numpy()
        if latents is None:
            if said:
                size = said * values[0].nbytes
                print(f"latents of {said:,} windows: {size_text(size)}", flush=True)
                if size > cache_limit() / 2:
                    warn(
                        f"latents of {size_text(size)} beside the clips: $VAG_CACHE_GB={cache_limit() / GIGABYTE:g} "
                        "is less than twice as much, so some may be deleted and encoded again"
                    )
            latents = np.lib.format.open_memmap(path, "w+", values.dtype, (len(windows), *values.shape[1:]))
            reserve(path)
        latents[first : first + len(values)] = values
        first += len(values)
    if latents is None or first != len(windows):
        raise ValueError(f"{first} latents of {len(windows)} windows")
