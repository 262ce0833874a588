"""Episodes that can be read and teach nothing: a covered or frozen camera, rows that were never written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SIDE = 48  # of a picture about so many pixels a side are looked at
STILL = 1.0  # levels of 255, in the mean: what an encoder changes in a picture that stays the same
PLAIN = 6  # levels between the darkest and the brightest pixel of pictures that show one colour
MOVED = 32  # levels of one pixel
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
        self._still: np.ndarray | None = None
        self._ends: list[tuple[int, int]] = []  # darkest and brightest of each plane so far

    def add(self, planes: Sequence[np.ndarray] | np.ndarray) -> None:
        """The colours of a picture, each (h, w) uint8; brightness and colour differences do as well."""
        small = [plane[:: max(1, len(plane) // SIDE), :: max(1, plane.shape[1] // SIDE)] for plane in planes]
        ends = [(int(plane.min()), int(plane.max())) for plane in small]
        before = self._ends or ends
        self._ends = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(before, ends, strict=True)]
        picture = np.concatenate([plane.ravel() for plane in small]).astype(np.int16)
        if self._still is None or picture.shape != self._still.shape or self._moved(picture):
            self.still_from, self._still = self.count, picture
        self.count += 1

    def _moved(self, picture: np.ndarray) -> bool:
        difference = np.abs(picture - self._still)
        return bool(difference.max() > MOVED or difference.mean() > STILL)

    def doubts(self, moves: Moves) -> list[str]:
        if all(most - least <= PLAIN for least, most in self._ends):
            return ["every picture is black or of one colour; is the camera covered?"]
        still = self.count - self.still_from
        if still >= max(LEAST, self.count / 2) and moves.last_change > self.still_from + self.count // 4:
            return [f"its picture stands still from step {self.still_from} on, while the robot moves on"]
        return []
