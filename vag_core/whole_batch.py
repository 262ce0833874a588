"""The whole batch of a training step, of which one process, or one pass of several, holds a part.

Random numbers are drawn for all its clips, and each part takes those of its own; losses are divided by what counts in
the whole batch. So what a step learns does not depend on how its batch is divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class WholeBatch:
    """Which clips of a whole batch are at hand, and where its random numbers come from."""

    size: int  # clips of the whole batch
    rows: Sequence[int]  # of those, the ones at hand
    parts: int = 1
    rng: torch.Generator | None = None  # None = torch's global one

    @classmethod
    def of(cls, batch: dict[str, Any], size: int) -> WholeBatch:
        """What a batch of `size` clips says under `whole` (rows, size) and `rng`; without these it is a whole one."""
        whole, rng = batch.get("whole"), batch.get("rng")
        if whole is None:
            return cls(size, range(size), 1, rng)
        return cls(whole["size"], whole["rows"], whole["rows"].step, rng)

    def first(self, size: int) -> WholeBatch:
        """The same of the first `size` clips alone, of rows that are in order."""
        return replace(self, size=size, rows=[row for row in self.rows if row < size])

    def randn(self, like: Tensor) -> Tensor:
        """Normal numbers for the clips at hand, of the shape (b, ...) and kind of `like`."""
        shape = (self.size, *like.shape[1:])
        return self.own(torch.randn(shape, generator=self.rng, device=like.device, dtype=like.dtype))

    def rand(self, device: torch.device) -> Tensor:
        """Uniform numbers (b,) for the clips at hand."""
        return self.own(torch.rand(self.size, generator=self.rng, device=device))

    def own(self, values: Tensor) -> Tensor:
        """Of values of all clips, (B, ...), those of the clips at hand."""
        if len(self.rows) == self.size and list(self.rows) == list(range(self.size)):
            return values
        if isinstance(self.rows, range):
            return values[self.rows.start :: self.rows.step]
        return values[torch.tensor(self.rows, dtype=torch.long).to(values.device, non_blocking=True)]
