"""Success rates with their intervals, as results hold them. Plain dataclasses: reading them needs no statistics."""

from __future__ import annotations

from dataclasses import dataclass

ROUNDING = 1e-9
Outcome = tuple[str, int, bool]  # task, seed of the scene, success


@dataclass(frozen=True, kw_only=True)
class Rate:
    """`successes` of `n` trials, their share `rate`, and the bounds of its 95 % interval, all three from 0 to 1.

    Raises ValueError for numbers that are none of a rate.
    """

    successes: int
    n: int
    rate: float
    low: float
    high: float

    def __post_init__(self) -> None:
        shares = (self.rate, self.low, self.high)
        if not (0 <= self.successes <= self.n > 0 and all(-ROUNDING <= share <= 1 + ROUNDING for share in shares)):
            raise ValueError(f"{self.successes} of {self.n} and {self.rate} [{self.low}, {self.high}] are no rate")

    @property
    def alone(self) -> Rate:
        """The rate without what else a table has of it."""
        return Rate(successes=self.successes, n=self.n, rate=self.rate, low=self.low, high=self.high)


@dataclass(frozen=True, kw_only=True)
class TaskRates(Rate):
    """The rate of all trials, and that of each task."""

    tasks: dict[str, Rate]


@dataclass(frozen=True, kw_only=True)
class RolloutRates(TaskRates):
    """The same with every outcome, so that two systems can be compared scene by scene."""

    outcomes: list[Outcome]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.outcomes) != self.n:
            raise ValueError(f"{len(self.outcomes)} outcomes of {self.n} trials")
