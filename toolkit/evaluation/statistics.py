"""Intervals and tests for success rates; scipy does the mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from toolkit.evaluation.rates import Outcome, Rate, RolloutRates, TaskRates


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927). Raises ValueError unless 0 <= successes <= n, n > 0."""
    if n <= 0 or not 0 <= successes <= n:  # scipy answers NaN
        raise ValueError(f"no success rate: {successes} of {n}")
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p of McNemar's test on paired outcomes of the same scenes (McNemar 1947).

    Raises ValueError if the lengths differ.
    """
    pairs = list(zip(first, second, strict=True))
    only_first = sum(a and not b for a, b in pairs)
    only_second = sum(b and not a for a, b in pairs)
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Mean of first - second on the same scenes, with its percentile interval (Efron 1979) over scenes.

    Returns difference, low, high. Raises ValueError if the lengths differ or nothing is given.
    """
    differences = np.array([float(a) - float(b) for a, b in zip(first, second, strict=True)])
    if len(differences) == 0:
        raise ValueError("paired_bootstrap: no outcomes")
    rng = np.random.default_rng(seed)
    means = [differences[rng.integers(len(differences), size=len(differences))].mean() for _ in range(resamples)]
    return _difference(differences.mean(), means, confidence)


def hierarchical_bootstrap(
    first: Sequence[Sequence[float]],
    second: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """Mean of first - second when each was trained with several seeds and evaluated on the same scenes.

    first, second: (training seeds, scenes) outcomes; the numbers of training seeds may differ. Training seeds are
    drawn for each side alone, scenes for both together, so the interval covers both sources of chance (Davison and
    Hinkley 1997, section 3.8). Two or three training seeds say little about their spread: read it as a lower bound.
    Returns difference, low, high. Raises ValueError unless both are matrices over equally many scenes.
    """
    tables = [np.asarray(table, dtype=float) for table in (first, second)]
    means = bootstrap_means(tables, resamples=resamples, seed=seed)
    return _difference(tables[0].mean() - tables[1].mean(), means[:, 0] - means[:, 1], confidence)


def compare_systems(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Two systems on the same scenes: `hierarchical_bootstrap`, and as p the largest `mcnemar` of a training seed.

    first, second: (training seeds, scenes) outcomes of 0 and 1. Not one test over all seeds: outcomes of the same
    scenes, or of the same weights, are no independent pairs.
    """
    pairs = [(a.astype(bool).tolist(), b.astype(bool).tolist()) for a, b in zip(first, second, strict=False)]
    p = max(mcnemar(a, b) for a, b in pairs)
    return {**hierarchical_bootstrap(first.tolist(), second.tolist()), "p": p}


def bootstrap_means(tables: Sequence[np.ndarray], *, resamples: int = 10_000, seed: int = 0) -> np.ndarray:
    """Mean outcome of several systems in many resamples, (resamples, systems): whatever follows from means follows.

    tables: (training seeds, scenes) each, over the same scenes; drawn as in `hierarchical_bootstrap`, which see.
    Raises ValueError unless all are matrices over equally many scenes.
    """
    shapes = [table.shape for table in tables]
    if any(len(shape) != 2 or shape[1] != shapes[0][1] or 0 in shape for shape in shapes):
        raise ValueError(f"expected (training seeds, scenes) over the same scenes, got {shapes}")
    rng, scenes = np.random.default_rng(seed), shapes[0][1]
    means = np.empty((resamples, len(tables)))
    for block in np.array_split(means, -(-resamples // 500)):
        drawn = rng.integers(scenes, size=(len(block), scenes))
        for i, table in enumerate(tables):
            seeds = rng.multinomial(len(table), np.full(len(table), 1 / len(table)), size=len(block))
            block[:, i] = np.take_along_axis(seeds @ table, drawn, axis=1).mean(1) / len(table)
    return means


def success_interval(table: np.ndarray) -> tuple[float, float]:
    """95 % bounds of the mean of outcomes (training seeds, scenes): the outer ones of Wilson's and a bootstrap's.

    Wilson's interval over all rollouts does not know that training seeds differ and that they share their scenes; the
    bootstrap over both has no width where all outcomes are alike.
    """
    low, high = wilson_interval(int(table.sum()), table.size)
    drawn = percentile_interval(float(table.mean()), bootstrap_means([table])[:, 0])
    return min(low, drawn["low"]), max(high, drawn["high"])


def percentile_interval(value: float, resampled: np.ndarray, confidence: float = 0.95) -> dict[str, float]:
    """value, low, high: a quantity and its percentile interval (Efron 1979) from what it was in each resample."""
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"value": float(value), "low": float(low), "high": float(high)}


def two_proportion_sample_size(p: float, q: float, power: float = 0.8, significance: float = 0.05) -> int:
    """Outcomes a side that a two-sided z-test needs to tell the rates p and q apart (Cohen 1988, chapter 6).

    Raises ValueError if p equals q: no number suffices.
    """
    if p == q:
        raise ValueError(f"equal rates {p} cannot be told apart")
    needed = stats.norm.isf(significance / 2) + stats.norm.isf(1 - power)
    return int(np.ceil(2 * (needed / _effect_size(p, q)) ** 2))


def design_power(
    p: float, q: float, scenes: int, seeds: int, seed_deviation: float, significance: float = 0.05
) -> float:
    """Chance to tell the rates p and q apart with several training seeds a side, each on the same number of scenes.

    seed_deviation: of the rate from one training seed to the next; more scenes do not help against it. A two-sided
    z-test that does not use that the scenes are paired, so it rather says too little.
    """
    variance = (p * (1 - p) + q * (1 - q)) / (scenes * seeds) + 2 * seed_deviation**2 / seeds
    shift, critical = abs(p - q) / np.sqrt(variance), stats.norm.isf(significance / 2)
    return float(stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift))


def _effect_size(p: float, q: float) -> float:
    return float(2 * (np.arcsin(np.sqrt(p)) - np.arcsin(np.sqrt(q))))


def _difference(value: float, means: Sequence[float], confidence: float) -> dict[str, float]:
    found = percentile_interval(value, np.asarray(means), confidence)
    return {"difference": found.pop("value"), **found}


def counted_rate(successes: int, n: int) -> Rate:
    """The rate with its 95 % Wilson interval."""
    low, high = wilson_interval(successes, n)
    return Rate(successes=successes, n=n, rate=successes / n, low=low, high=high)


def table_rate(table: np.ndarray) -> Rate:
    """`counted_rate` of outcomes (training seeds, scenes), with the bounds of `success_interval`."""
    low, high = success_interval(table)
    return replace(counted_rate(int(table.sum()), table.size), low=low, high=high)


def measured_success(table: np.ndarray) -> dict[str, Any]:
    """The same as a row of a record has it: value, low, high, n and the number of training seeds."""
    found = table_rate(table)
    return {"value": found.rate, "low": found.low, "high": found.high, "n": found.n, "seeds": len(table)}


def success_table(tasks: Sequence[str], outcomes: Sequence[bool]) -> TaskRates:
    """`counted_rate` of all outcomes and of those of each task."""
    by_task: dict[str, list[bool]] = {}
    for task, outcome in zip(tasks, outcomes, strict=True):
        by_task.setdefault(task, []).append(bool(outcome))
    rates = {task: counted_rate(sum(part), len(part)) for task, part in sorted(by_task.items())}
    return TaskRates(**vars(counted_rate(sum(map(bool, outcomes)), len(outcomes))), tasks=rates)


def rollout_rates(outcomes: Sequence[Outcome]) -> RolloutRates:
    """`success_table` of rollouts, with the outcomes themselves."""
    table = success_table([task for task, _, _ in outcomes], [success for _, _, success in outcomes])
    return RolloutRates(**vars(table), outcomes=list(outcomes))
