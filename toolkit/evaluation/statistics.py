"""Intervals and tests for success rates; scipy does the mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scipy import stats


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927). Raises ValueError unless 0 <= successes <= n, n > 0."""
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


def success_rate(outcomes: Sequence[bool]) -> dict[str, Any]:
    """successes, n, rate and the bounds low, high of the 95 % Wilson interval."""
    successes, n = sum(map(bool, outcomes)), len(outcomes)
    low, high = wilson_interval(successes, n)
    return {"successes": successes, "n": n, "rate": successes / n, "low": low, "high": high}


def success_table(tasks: Sequence[str], outcomes: Sequence[bool]) -> dict[str, Any]:
    """`success_rate` of all outcomes and, under "tasks", of each task."""
    by_task: dict[str, list[bool]] = {}
    for task, outcome in zip(tasks, outcomes, strict=True):
        by_task.setdefault(task, []).append(bool(outcome))
    return {
        **success_rate(outcomes),
        "tasks": {task: success_rate(part) for task, part in sorted(by_task.items())},
    }
