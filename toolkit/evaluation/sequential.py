"""A sequential test of two policies on paired trials: when to stop, and when the question cannot be settled any more.

Of each placement both outcomes are known, so it is won by one policy, by the other, or by none (both solved it, or
neither). If the policies are equally good, a won placement is a fair coin (McNemar 1947). The evidence after a wins and
b wins is the likelihood ratio of a Beta mixture to that coin (Robbins 1970),

    E(a, b) = 2^(a + b) B(c + a, c + b) / B(c, c),     c = max(1/2, N / 40) for N planned placements.

Ville's inequality would stop at E >= 1/alpha, however many placements follow. Here N is fixed beforehand, as in
Armitage's restricted procedures for paired preferences (Biometrika 44, 1957), so the threshold is the lowest one that a
fair coin reaches at any of its first N throws with a probability of at most alpha: counted exactly, throw by throw.
Looking after every placement, and stopping for any reason, leaves that bound as it is; placements that nobody wins make
it smaller. p values are P(sup E >= what was seen), so they may be read at any time; of several pairs of policies Holm's
procedure (1979) bounds the chance of any false alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from scipy.special import betaln

SOURCE = (
    "sequential test on placements that one of two policies wins: a Beta mixture against a fair coin (Robbins 1970), "
    "its threshold counted exactly for the planned number of placements (after Armitage 1957), Holm (1979) over pairs"
)
ROUNDING = 1e-9
MOST_PLACEMENTS = 200


@dataclass(frozen=True)
class Tally:
    """Placements so far of two policies: won by the first, by the second, and by none."""

    a: int
    b: int
    none: int

    @property
    def seen(self) -> int:
        return self.a + self.b + self.none

    @classmethod
    def of(cls, outcomes: Sequence[tuple[bool, bool]]) -> Tally:
        """outcomes: success of the first and of the second in each placement."""
        first = sum(one and not other for one, other in outcomes)
        second = sum(other and not one for one, other in outcomes)
        return cls(first, second, len(outcomes) - first - second)


class PairedTest:
    """The test for N planned placements at a level alpha: P(it ever says that equal policies differ) <= alpha.

    Raises ValueError for fewer than 1 or more than MOST_PLACEMENTS placements, or a level outside (0, 1).
    """

    def __init__(self, placements: int, alpha: float) -> None:
        if not 1 <= placements <= MOST_PLACEMENTS or not 0 < alpha < 1:
            raise ValueError(f"{placements} placements at level {alpha}: expected 1 to {MOST_PLACEMENTS}, 0 to 1")
        self.placements, self.alpha = placements, alpha
        self.evidence = _log_evidence(placements)  # (N + 1, N + 1) by wins of either

    @cached_property
    def threshold(self) -> float:
        """Lowest log evidence that settles; infinite where so few placements never can."""
        levels = _levels(self.placements)
        low, high = 0, len(levels)
        while low < high:  # the chance falls with the threshold
            middle = (low + high) // 2
            if chance_of_evidence(self.placements, levels[middle]) <= self.alpha:
                high = middle
            else:
                low = middle + 1
        return float(levels[low]) if low < len(levels) else float("inf")

    @property
    def size(self) -> float:
        """The exact chance of a false alarm where every placement is won by one of two equal policies; else it is
        smaller."""
        return 0.0 if self.threshold == float("inf") else chance_of_evidence(self.placements, self.threshold)

    def p_value(self, path: Sequence[Tally]) -> float:
        """P(a fair coin ever gives the largest evidence seen so far); path: the tally after each placement."""
        largest = max((float(self.evidence[tally.a, tally.b]) for tally in path), default=0.0)
        return 1.0 if largest <= ROUNDING else min(1.0, chance_of_evidence(self.placements, largest))

    def settled(self, path: Sequence[Tally]) -> bool:
        """If the evidence has reached the threshold at any time."""
        return any(self.evidence[tally.a, tally.b] >= self.threshold - ROUNDING for tally in path)

    def reachable(self, tally: Tally) -> bool:
        """False if the threshold is missed even where one policy wins all placements that are left."""
        left = self.placements - tally.seen
        a, b = tally.a, tally.b
        best = max(float(self.evidence[a + more, b + less]) for k in range(left + 1) for more, less in ((k, 0), (0, k)))
        return best >= self.threshold - ROUNDING

    @property
    def wins_needed(self) -> int | None:
        """Placements that one policy must win, the other none, to settle the question; None where it never can be."""
        over = np.flatnonzero(self.evidence[:, 0] >= self.threshold - ROUNDING)
        return int(over[0]) if len(over) else None

    def power(self, p: float, q: float) -> float:
        """Exact chance to settle at some time, for success rates p and q that are independent within a placement."""
        win, lose = p * (1 - q), q * (1 - p)
        return _crossing(self.evidence >= self.threshold - ROUNDING, self.placements, win, lose)

    def smallest_difference(self, power: float = 0.8) -> float | None:
        """Smallest difference, of rates as far above .5 as below, that is settled with this power; None if none is."""
        if self.power(1, 0) < power:
            return None
        low, high = 0.0, 1.0
        while high - low > 0.005:
            middle = (low + high) / 2
            if self.power(0.5 + middle / 2, 0.5 - middle / 2) >= power:
                high = middle
            else:
                low = middle
        return high


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which of several hypotheses are rejected with P(any false one) <= alpha (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > alpha / (len(p_values) - rank) + ROUNDING:
            break
        rejected[i] = True
    return rejected


@cache
def _log_evidence(placements: int) -> np.ndarray:
    wins, prior = np.arange(placements + 1), max(0.5, placements / 40)
    a, b = np.meshgrid(wins, wins, indexing="ij")
    found: np.ndarray = betaln(prior + a, prior + b) - betaln(prior, prior) + (a + b) * np.log(2)
    return found


@cache
def _levels(placements: int) -> np.ndarray:
    """All values that the evidence can take within so many placements, rising."""
    a, b = np.indices((placements + 1, placements + 1))
    return np.unique(_log_evidence(placements)[a + b <= placements].round(9))


@cache
def chance_of_evidence(placements: int, log_evidence: float) -> float:
    """P(the evidence of a fair coin reaches a value at one of its first throws, as many as placements)."""
    return _crossing(_log_evidence(placements) >= log_evidence - ROUNDING, placements, 0.5, 0.5)


def _crossing(over: np.ndarray, placements: int, win: float, lose: float) -> float:
    """P(wins of a and b ever reach a cell that is `over`); win, lose: the chances that a or b wins a placement."""
    chance: np.ndarray = np.ones((1, 1))
    crossed = 0.0
    for seen in range(1, placements + 1):
        before, reached = chance[:seen, :seen], over[: seen + 1, : seen + 1]
        after = np.zeros(reached.shape)
        after[:-1, :-1] = (1 - win - lose) * before
        after[1:, :-1] += win * before
        after[:-1, 1:] += lose * before
        crossed += float(after[reached].sum())
        after[reached] = 0
        chance = after
    return crossed
