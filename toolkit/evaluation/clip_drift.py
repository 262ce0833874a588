"""What becomes of episodes whose clips each go on from the one before: the same numbers for every clip.

Shapes: frames (F, H, W, 3) uint8, `stride` steps apart; actions (N, A), states (N + 1, S) of the clips together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.evaluation.action_metrics import action_distance
from toolkit.evaluation.video_metrics import psnr

AT_LIMIT = 1e-4  # of the range of a dimension; what is held at a limit is rounded


class ClipDrift:
    """horizon: steps of a clip; low, high (S,): least and largest value of each state in the data; mean_action (A,)."""

    def __init__(self, horizon: int, stride: int, low: np.ndarray, high: np.ndarray, mean_action: np.ndarray) -> None:
        self.horizon, self.stride, self.mean_action = horizon, stride, mean_action
        self.low, self.high = low + AT_LIMIT * (high - low), high - AT_LIMIT * (high - low)
        self.clips: list[list[dict[str, float]]] = []  # of each clip a row for each episode

    def add(
        self,
        frames: np.ndarray,
        actions: np.ndarray,
        states: np.ndarray,
        recorded: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """An episode of any length; recorded: `frames` and `actions` of a recording, as far as it goes."""
        for clip, start in enumerate(range(0, len(actions), self.horizon)):
            stop = min(start + self.horizon, len(actions))
            if (shown := self._pictures(start, stop)).start < shown.stop:
                row = self._alone(frames[0], frames[shown], states[start + 1 : stop + 1])
                if recorded is not None:
                    row |= self._beside(frames, actions, recorded, start, min(stop, len(recorded["actions"])))
                self.clips += [[] for _ in range(clip + 1 - len(self.clips))]
                self.clips[clip].append(row)

    def _pictures(self, start: int, stop: int) -> slice:
        """Those that follow the steps from `start` to `stop`."""
        return slice(start // self.stride + 1, stop // self.stride + 1)

    def _alone(self, first: np.ndarray, shown: np.ndarray, states: np.ndarray) -> dict[str, float]:
        moves = self.high > self.low
        held = (states <= self.low) | (states >= self.high)
        return {
            "at_limits": float(held[:, moves].mean()) if moves.any() else 0.0,
            "sharpness": sharpness(shown),
            "sharpness_of_first_picture": sharpness(first[None]),
            "colour_shift": float(np.abs(shown.mean(axis=(1, 2)) - first.mean(axis=(0, 1))).mean()),
        }

    def _beside(
        self, frames: np.ndarray, actions: np.ndarray, recorded: Mapping[str, np.ndarray], start: int, stop: int
    ) -> dict[str, float]:
        shown, steps = self._pictures(start, stop), slice(start, stop)
        if shown.start >= shown.stop:
            return {}
        real, still = recorded["actions"][steps], np.broadcast_to(frames[0], recorded["frames"][shown].shape)
        return {
            "action_distance": action_distance(actions[steps], real),
            "action_distance_of_mean": action_distance(np.broadcast_to(self.mean_action, real.shape), real),
            "psnr": psnr(frames[shown], recorded["frames"][shown]),
            "psnr_of_first_picture": psnr(still, recorded["frames"][shown]),
        }


def mean_drift(clips: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Means for each clip, from 1 on: over `episodes`, and where there are recordings over `compared`."""
    found = list[dict[str, Any]]()
    for clip, rows in enumerate(clips, 1):
        names = dict.fromkeys(key for row in rows for key in row)
        means = {key: float(np.mean([row[key] for row in rows if key in row])) for key in names}
        compared = sum("psnr" in row for row in rows)
        found.append({"clip": clip, "episodes": len(rows), "compared": compared or None, **means})
    return found


def sharpness(pictures: np.ndarray) -> float:
    """Mean absolute difference of neighbouring pixels of (F, H, W, 3) uint8, of 255."""
    values = pictures.astype(np.int16)
    return float((np.abs(np.diff(values, axis=1)).mean() + np.abs(np.diff(values, axis=2)).mean()) / 2)
