"""Intervals of success rates and the power of designs. Of systems that were trained several times: `systems`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from toolkit.evaluation.rates import Outcome, Rate, RolloutRates, TaskRates


def wilson_interval(successes: float, n: float) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate (Wilson 1927). Raises ValueError unless 0 <= successes <= n, n > 0.

    Neither needs to be whole, which scipy's wants: outcomes that are alike are worth fewer independent ones.
    """
    if not 0 <= successes <= n or n <= 0:
        raise ValueError(f"no success rate: {successes} of {n}")
    rate, z = successes / n, float(stats.norm.isf(0.025))
    middle, half = rate + z**2 / (2 * n), z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    low, high = (float(np.clip((middle + sign * half) / (1 + z**2 / n), 0, 1)) for sign in (-1, 1))
    return (0.0 if successes == 0 else low), (1.0 if successes == n else high)


def mean_interval(values: Sequence[float], *, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval (Efron 1979) of the mean of values. Raises ValueError if there are none."""
    found = np.asarray(values, dtype=float)
    if len(found) == 0:
        raise ValueError("mean_interval: no values")
    rng = np.random.default_rng(seed)
    means = [found[rng.integers(len(found), size=len(found))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


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

    seed_deviation: of the rate from one training seed to the next; more scenes do not help against it. Of a two-sided
    z-test, which does not use that the scenes are paired, but takes seed_deviation for known: with few seeds too much.
    """
    variance = (p * (1 - p) + q * (1 - q)) / (scenes * seeds) + 2 * seed_deviation**2 / seeds
    shift, critical = abs(p - q) / np.sqrt(variance), stats.norm.isf(significance / 2)
    return float(stats.norm.sf(critical - shift) + stats.norm.cdf(-critical - shift))


def _effect_size(p: float, q: float) -> float:
    return float(2 * (np.arcsin(np.sqrt(p)) - np.arcsin(np.sqrt(q))))


def counted_rate(successes: int, n: int) -> Rate:
    """The rate with its 95 % Wilson interval."""
    low, high = wilson_interval(successes, n)
    return Rate(successes=successes, n=n, rate=successes / n, low=low, high=high)


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
