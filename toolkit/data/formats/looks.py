"""Episodes that can be read and teach nothing: a covered or frozen camera, rows that were never written."""

from __future__ import annotations

import numpy as np

SIDE = 48  # of a picture about so many pixels a side are looked at
STILL = 1.0  # levels of 255, in the mean: what an encoder changes in a picture that stays the same
PLAIN = 6  # levels between the darkest and the brightest pixel of pictures that show one colour
BLACK = 24  # levels
LEAST = 5  # pictures of a camera that stands still


class Moves:
    """Numbers of an episode (T, D): from which step on nothing changes, and from which on all are zero."""

    def __init__(self, values: np.ndarray) -> None:
        self.length = len(values)
        changes = np.flatnonzero((values[1:] != values[:-1]).any(axis=1))
        self.last_change = int(changes[-1]) + 1 if len(changes) else 0
        filled = np.flatnonzero((values != 0).any(axis=1))
        self.empty_from = int(filled[-1]) + 1 if len(filled) else 0

    def doubts(self) -> list[str]:
        if self.empty_from == 0:
            return ["states and actions are zero in all steps"]
        if (empty := self.length - self.empty_from) < LEAST:
            return []
        return [f"states and actions are zero in the last {empty} of {self.length} steps, as in rows never written"]


class Looks:
    """What the pictures of one camera look like, one after the other."""

    def __init__(self) -> None:
        self.count = self.still_from = 0
        self._latest: np.ndarray | None = None
        self._least, self._most = np.full(3, 255), np.zeros(3, int)

    def add(self, picture: np.ndarray) -> None:
        """A picture (H, W, 3), or the grey of one (H, W), uint8."""
        step = max(1, min(picture.shape[:2]) // SIDE)
        small = picture[::step, ::step].astype(np.int16)
        flat = small.reshape(-1, small.shape[-1] if small.ndim == 3 else 1)
        self._least, self._most = np.minimum(self._least, flat.min(0)), np.maximum(self._most, flat.max(0))
        if self._latest is None or small.shape != self._latest.shape or self._moved(small, self._latest):
            self.still_from, self._latest = self.count, small
        self.count += 1

    @staticmethod
    def _moved(small: np.ndarray, reference: np.ndarray) -> bool:
        difference = np.abs(small - reference)
        return bool(difference.mean() > STILL or difference.max() > 32)

    def doubts(self, moves: Moves) -> list[str]:
        if self.count and (self._most - self._least).max() <= PLAIN:
            colour = "black" if self._most.max() <= BLACK else "of the same colour"
            return [f"every picture is {colour}; is the camera covered?"]
        still = self.count - self.still_from
        if still >= max(LEAST, self.count / 2) and moves.last_change > self.still_from + self.count // 4:
            return [f"its picture stands still from step {self.still_from} on, while the robot moves on"]
        return []
