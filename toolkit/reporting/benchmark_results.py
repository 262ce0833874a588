"""What the benchmarks and the study found: rows, differences, leaderboards, and the record of them all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolkit.base.typed_json import check_lengths, rest
from toolkit.evaluation.rates import Rate


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of a benchmark, from n measurements, with two 95 % intervals. axes: the cell of a study, and the like.

    low, high: of systems, what another training would give on other scenes; null where too few were trained, which the
    note says. low_these_checkpoints, high_these_checkpoints: over scenes alone. Of metrics that no scenes have (times,
    distances between sets) low and high are what the notes of the record say. Of early records low and high are what
    their note says.
    """

    system: str
    suite: str
    metric: str
    value: float
    low: float | None
    high: float | None
    low_these_checkpoints: float | None = None
    high_these_checkpoints: float | None = None
    n: int
    note: str | None = None
    seeds: int | None = None
    policy: str | None = None
    arm: str | None = None
    generator_data: str | None = None
    few: int | None = None
    synthetic_fraction: float | None = None
    synthetic_per_task: int | None = None
    weight_by: str | None = None
    more: dict[str, Any] = rest()  # other axes, and what the value is read beside

    @property
    def rate(self) -> Rate:
        """Of a row whose value is a share of n trials, with the interval of these checkpoints where it is known."""
        low, high = narrowest(self)
        return Rate(successes=round(self.value * self.n), n=self.n, rate=self.value, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """System a minus system b on the same suite, with the intervals of a `Row`. arm, control: those of a and b.

    p_these_checkpoints: of a permutation over scenes, no test of systems. p: of early records, the largest p of
    McNemar's test of a single training seed, which is no test of systems either.
    """

    a: str
    b: str
    policy: str | None = None
    suite: str
    arm: str | None = None
    control: str | None = None
    metric: str
    paired: bool
    seeds: int | None = None
    difference: float
    low: float | None
    high: float | None
    low_these_checkpoints: float | None = None
    high_these_checkpoints: float | None = None
    p_these_checkpoints: float | None = None
    p: float | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """System a over system b on the same suite, with its quartiles."""

    a: str
    b: str
    policy: str | None = None
    suite: str
    metric: str
    value: float
    low: float
    high: float
    paired: bool


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """Distances of clips that were corrupted at several strengths."""

    corruption: str
    unit: str
    strengths: list[float]
    distances: list[float]
    monotone: bool

    def __post_init__(self) -> None:
        check_lengths(self.strengths, self.distances)


@dataclass(frozen=True, kw_only=True)
class ValidityCard:
    """What a distance of clips is worth; floor: that of uncorrupted clips."""

    encoder_id: str
    n: int
    floor: float
    rows: list[Corruption]


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A system's place among others, with the intervals of a `Row`."""

    rank: int
    system: str
    successes: int
    n: int
    rate: float
    low: float | None
    high: float | None
    low_these_checkpoints: float | None = None
    high_these_checkpoints: float | None = None
    note: str | None = None
    seeds: int
    not_distinguishable_from: str | None

    @property
    def alone(self) -> Rate:
        """The rate with the interval of these checkpoints where it is known."""
        low, high = narrowest(self)
        return Rate(successes=self.successes, n=self.n, rate=self.rate, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """One cell of a study on one suite. axes: what it is."""

    axes: dict[str, str | float] = rest()
    suite: str
    successes: int | None
    n: int | None
    rate: float | None
    low: float | None
    high: float | None
    status: str
    error: str | None


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord:
    """What a benchmark writes as `record.json`."""

    benchmark: str
    command: str
    git_sha: str
    hardware: str
    date: str
    versions: dict[str, str]
    notes: dict[str, str]
    rows: list[Row]
    comparisons: list[Difference | Ratio]
    leaderboards: dict[str, list[Ranked]] | None = None


def narrowest(row: Row | Ranked) -> tuple[float, float]:
    """The interval of these checkpoints; of early records, and of what no scenes have, low and high."""
    value = row.value if isinstance(row, Row) else row.rate
    for low, high in ((row.low_these_checkpoints, row.high_these_checkpoints), (row.low, row.high)):
        if low is not None and high is not None:
            return low, high
    return value, value


@dataclass(frozen=True, kw_only=True)
class BenchmarkDataResult:
    rows: list[Row]
    comparisons: list[Ratio]


@dataclass(frozen=True, kw_only=True)
class BenchmarkLerobotResult:
    rows: list[Row]
    comparisons: list[Ratio]


@dataclass(frozen=True, kw_only=True)
class BenchmarkEngineResult:
    rows: list[Row]
    comparisons: list[Ratio]


@dataclass(frozen=True, kw_only=True)
class BenchmarkGeneratorsResult:
    rows: list[Row]
    comparisons: list[Difference]
    validity_cards: dict[str, ValidityCard] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BenchmarkPoliciesResult:
    rows: list[Row]
    comparisons: list[Difference]
    leaderboards: dict[str, list[Ranked]]
    notes: dict[str, str]
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AblateResult:
    rows: list[Row]
    comparisons: list[Difference]
    notes: dict[str, str]
    failed: list[str] = field(default_factory=list)
    cells: list[CellRow] = field(default_factory=list)
