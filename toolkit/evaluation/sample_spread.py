"""How much several samples of one scene differ, and beside it how much those of different scenes do."""

from __future__ import annotations

import numpy as np

from toolkit.evaluation.action_metrics import action_distance


class SampleSpread:
    """Distances of each sample to the one before it; samples of one scene come one after the other."""

    def __init__(self) -> None:
        self._before: tuple[int, np.ndarray, np.ndarray] | None = None
        self._within: list[tuple[float, float]] = []
        self._between: list[tuple[float, float]] = []

    def add(self, scene: int, frames: np.ndarray, actions: np.ndarray) -> None:
        """frames (F, H, W, 3) uint8 and actions (N, A) of the next sample."""
        if self._before is not None:
            before, other, others_actions = self._before
            pictures = float(np.abs(frames.astype(np.int16) - other).mean())
            (self._within if before == scene else self._between).append(
                (action_distance(actions, others_actions), pictures)
            )
        self._before = scene, frames, actions

    def result(self) -> dict[str, float] | None:
        """Mean distances of actions and pictures, of scenes only where there are several; None without two samples."""
        if not self._within:
            return None
        found: dict[str, float] = {}
        for suffix, part in (("", self._within), ("_of_scenes", self._between)):
            if part:
                actions, pictures = np.mean(part, axis=0).tolist()
                found |= {f"actions{suffix}": actions, f"pictures{suffix}": pictures}
        return found
