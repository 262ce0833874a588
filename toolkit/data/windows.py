"""The windows that a generator learned: where they began, and how long the episodes were. Its checkpoint keeps both.

Past the end of an episode nothing counts in the loss, so what a generator makes there means nothing: how long an
episode is can be learned from the recorded lengths alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.files import write_json
from toolkit.base.reading import read_json
from toolkit.data.clips import ClipStore

WINDOWS = "windows.json"
MOST_INSTRUCTIONS = 10_000  # whose lengths are kept, the most frequent ones
MOST_LENGTHS = 200  # of an instruction; of more, so many evenly spread ones
MOST_LENGTH = 10**9


@dataclass(frozen=True)
class Windows:
    """random_start: from anywhere in an episode, not from its start alone; lengths: steps of the recorded episodes of
    each instruction, sorted."""

    random_start: bool
    lengths: Mapping[str, list[int]]

    @classmethod
    def of(cls, store: ClipStore, random_start: bool) -> Windows:
        """Those of a training on these episodes; lengths of synthetic ones count only where there are no others."""
        recorded = np.array([row.get("source") != "synthetic" for row in store.metadata])
        recorded |= not recorded.any()
        tasks, counts = np.unique(store.episode_tasks[recorded], return_counts=True)
        lengths = {}
        for task in tasks[np.argsort(-counts, kind="stable")][:MOST_INSTRUCTIONS]:
            own = np.sort(store.episode_lengths[recorded & (store.episode_tasks == task)])
            spread = np.linspace(0, len(own) - 1, min(len(own), MOST_LENGTHS)).round().astype(int)
            lengths[store.tasks[task]] = own[spread].tolist()
        return cls(random_start, lengths)

    @classmethod
    def read(cls, checkpoint: str | Path) -> Windows | None:
        """`windows.json` of a checkpoint; None if it has none. Raises UserError if it is damaged."""
        path = Path(checkpoint) / WINDOWS
        if not os.path.lexists(path):
            return None
        found = read_json(path)
        start, lengths = found.get("random_start"), found.get("lengths")
        whole = isinstance(start, bool) and isinstance(lengths, dict) and len(lengths) > 0
        if not whole or not all(map(_are_lengths, lengths.values())):
            raise UserError(f"{path}: damaged; expected random_start, and lengths of episodes for each instruction")
        return cls(start, lengths)

    def write(self, directory: Path) -> None:
        """Write `windows.json` into a directory that is still under its temporary name."""
        write_json(directory / WINDOWS, {"random_start": self.random_start, "lengths": dict(self.lengths)})

    def of_instruction(self, instruction: str) -> list[int]:
        """Recorded lengths; those of all instructions where this one has none."""
        return self.lengths.get(instruction) or [length for own in self.lengths.values() for length in own]


def _are_lengths(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(n) is int and 0 < n <= MOST_LENGTH for n in value)
