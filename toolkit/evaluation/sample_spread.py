"""How much several samples of one scene differ, and beside it how much those of different scenes do."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.evaluation.action_metrics import action_distance

Sample = tuple[int, np.ndarray, np.ndarray]  # scene, frames (F, H, W, 3) uint8, actions (N, A)


class SampleSpread:
    """Distances of each sample to the one before it; samples of one scene come one after the other."""

    def __init__(self) -> None:
        self.within: list[tuple[float, float]] = []
        self.between: list[tuple[float, float]] = []
        self.ends: list[Sample] = []  # the first sample and the last one

    def add(self, scene: int, frames: np.ndarray, actions: np.ndarray) -> None:
        """The next sample."""
        self._compare((scene, frames, actions))
        self.ends = [*self.ends[:1], (scene, frames, actions)]

    def extend(self, later: SampleSpread) -> None:
        """The samples that follow, which another one has compared."""
        if later.ends:
            self._compare(later.ends[0])
            self.within += later.within
            self.between += later.between
            self.ends = [*self.ends[:1], *later.ends[-1:]]

    def _compare(self, sample: Sample) -> None:
        if self.ends:
            (before, other, others_actions), (scene, frames, actions) = self.ends[-1], sample
            pictures = float(np.abs(frames.astype(np.int16) - other).mean())
            (self.within if before == scene else self.between).append(
                (action_distance(actions, others_actions), pictures)
            )

    def arrays(self) -> dict[str, Any]:
        """All of it as arrays for a file, from which `of` makes it again."""
        found: dict[str, Any] = {"within": np.array(self.within), "between": np.array(self.between)}
        for k, sample in enumerate(self.ends):
            found |= {f"end_{k}_{i}": np.asarray(part) for i, part in enumerate(sample)}
        return found

    @classmethod
    def of(cls, arrays: Any) -> SampleSpread:
        spread = cls()
        spread.within, spread.between = ([(a, p) for a, p in arrays[key].tolist()] for key in ("within", "between"))
        ends = [k for k in range(2) if f"end_{k}_0" in arrays]
        spread.ends = [(int(arrays[f"end_{k}_0"]), arrays[f"end_{k}_1"], arrays[f"end_{k}_2"]) for k in ends]
        return spread

    def result(self) -> dict[str, float] | None:
        """Mean distances of actions and pictures, of scenes only where there are several; None without two samples."""
        if not self.within:
            return None
        found: dict[str, float] = {}
        for suffix, part in (("", self.within), ("_of_scenes", self.between)):
            if part:
                actions, pictures = np.mean(part, axis=0).tolist()
                found |= {f"actions{suffix}": actions, f"pictures{suffix}": pictures}
        return found
