"""Scores of synthetic episodes that need no simulator: how far can they be trusted?

Trajectories: states (T, S) and actions (T, A) in physical units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FAR = 1e6


@dataclass
class Limits:
    """What real episodes never left: range of states and actions, and the largest change from step to step."""

    low: np.ndarray  # (S + A,)
    high: np.ndarray
    fastest: np.ndarray

    @classmethod
    def measured(cls, episodes: Sequence[np.ndarray]) -> Limits:
        """From real trajectories [state, action], each (T, S + A). Raises ValueError if there are none."""
        if not episodes:
            raise ValueError("limits: no episodes")
        rows = np.concatenate(episodes)
        changes = [np.abs(np.diff(episode, axis=0)).max(axis=0, initial=0) for episode in episodes]
        return cls(rows.min(0), rows.max(0), np.max(changes, axis=0))


def limit_excess(trajectory: np.ndarray, limits: Limits) -> float:
    """How far a trajectory (T, S + A) goes beyond the limits at worst, in ranges of that dimension; 0 = nowhere.

    A dimension that never changed in real episodes does not count.
    """
    width = limits.high - limits.low
    moves = width > 0
    beyond = np.maximum(trajectory - limits.high, limits.low - trajectory)[:, moves] / width[moves]
    steps = (np.abs(np.diff(trajectory, axis=0)) - limits.fastest)[:, moves] / width[moves]
    return float(max(beyond.max(initial=0), steps.max(initial=0), 0))


def nearest_distance(states: np.ndarray, others: Sequence[np.ndarray], deviation: np.ndarray) -> float:
    """Distance to the nearest of other episodes: near 0 = a copy. `FAR` if there are none.

    Root mean square over time and dimensions of the difference of states, each in units of `deviation` (S,), over the
    steps that both have.
    """
    distances = [FAR]
    for other in others:
        steps = min(len(states), len(other))
        distances.append(float(np.sqrt((((states[:steps] - other[:steps]) / deviation) ** 2).mean())))
    return min(distances)
