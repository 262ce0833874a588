"""What a synthetic episode is worth in real ones, read off a learning curve."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from toolkit.evaluation.statistics import bootstrap_means, percentile_interval


def exchange_rate(
    mixed: np.ndarray, curve: Mapping[int, np.ndarray], few: int, synthetic: int, *, seed: int = 0
) -> dict[str, float]:
    """How many real episodes one synthetic episode replaces: value, low, high; 1 / value synthetic ones replace one.

    It is also the break-even cost: a synthetic episode pays off if it costs less than so many real ones.
    mixed: outcomes (training seeds, scenes) with `few` real and `synthetic` synthetic episodes of each task; curve:
    number of real episodes of each task -> outcomes with those alone, on the same scenes. Between its points the curve
    is linear in the logarithm of the number, after a running maximum. What does not beat `few` real episodes is worth
    0; what beats the end of the curve counts as that end: where the upper bound does, `at_end_of_curve` is 1, else 0.
    Raises ValueError unless the curve has `few` and a larger number.
    """
    counts = np.array(sorted(count for count in curve if count >= few))
    if few not in curve or len(counts) < 2:
        raise ValueError(f"exchange_rate: a curve over {sorted(curve)} real episodes; expected {few} and more")

    def worth(success: float, points: np.ndarray) -> float:
        rising = np.maximum.accumulate(points)
        kept = np.concatenate([[True], np.diff(rising) > 0])  # of equal neighbours the first: so many suffice
        numbers = np.log(counts)
        equivalent = np.exp(np.interp(success, rising[kept], numbers[kept], right=numbers[-1]))
        return max(0.0, equivalent - few) / synthetic

    tables = [mixed, *(curve[count] for count in counts)]
    value = worth(float(mixed.mean()), np.array([table.mean() for table in tables[1:]]))
    means = bootstrap_means(tables, seed=seed)
    found = percentile_interval(value, np.array([worth(float(row[0]), row[1:]) for row in means]))
    return {**found, "at_end_of_curve": float(np.isclose(found["high"], (counts[-1] - few) / synthetic))}
