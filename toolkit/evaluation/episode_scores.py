"""Scores of synthetic episodes that need no simulator: how far can they be trusted?

Trajectories: states (T, S) and actions (T, A) in physical units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

FAR = 1e6
TRUSTED = 0.95  # of recorded episodes are; see `trusted`


@dataclass
class Limits:
    """What real episodes never left: range of states and actions, and the largest change from step to step."""

    low: np.ndarray  # (S + A,)
    high: np.ndarray
    fastest: np.ndarray

    @classmethod
    def of_each(cls, episodes: Sequence[np.ndarray]) -> list[Limits]:
        """Of every one of these trajectories [state, action], each (T, S + A)."""
        return [cls(e.min(0), e.max(0), np.abs(np.diff(e, axis=0)).max(axis=0, initial=0)) for e in episodes]

    @classmethod
    def joined(cls, parts: Sequence[Limits]) -> Limits:
        """Of several together. Raises ValueError if there are none."""
        if not parts:
            raise ValueError("limits: no episodes")
        low, high, fastest = (np.stack([getattr(p, name) for p in parts]) for name in ("low", "high", "fastest"))
        return cls(low.min(0), high.max(0), fastest.max(0))


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


def trusted(scores: Mapping[str, np.ndarray], recorded: Mapping[str, np.ndarray]) -> np.ndarray:
    """(E,) True where no score of an episode is worse than those of recorded ones are.

    A recorded episode that is none of these stays within the bound of each score with probability `TRUSTED`: the bound
    is their value of rank ceil((n + 1) TRUSTED), or the largest (conformal prediction, Vovk et al. 2005).

    scores: by name, each (E,), larger is worse; recorded: the same of recorded episodes. A distance of `FAR` has
    nothing to be compared with, and does not count.
    """
    bounds = {name: _bound(values[values < FAR]) for name, values in recorded.items() if min(values) < FAR}
    within = [(values <= bounds[name]) | (values >= FAR) for name, values in scores.items() if name in bounds]
    return np.logical_and.reduce(within) if within else np.ones(len(next(iter(scores.values()))), bool)


def _bound(values: np.ndarray) -> float:
    rank = int(np.ceil((len(values) + 1) * TRUSTED))
    return float(np.sort(values)[min(rank, len(values)) - 1])
