"""What a synthetic episode is worth in real ones, read off a learning curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toolkit.evaluation.systems import Trained, measured_quantity


def exchange_rate(
    mixed: Trained, curve: Mapping[int, Trained], few: int, synthetic: int, *, seed: int = 0
) -> dict[str, Any]:
    """How many real episodes one synthetic one replaces, as `measured_quantity`; 1 / value synthetic ones replace one.

    It is also the break-even cost: a synthetic episode pays off if it costs less than so many real ones.
    mixed: outcomes with `few` real and `synthetic` synthetic episodes of each task; curve: number of real episodes of
    each task -> outcomes with those alone, on the same scenes. Between its points the curve is linear in the logarithm
    of the number, after a running maximum. What does not beat `few` real episodes is worth 0; what beats the end of
    the curve counts as that end: where the upper bound of these checkpoints does, `at_end_of_curve` is 1, else 0.
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

    def worths(means: np.ndarray) -> np.ndarray:
        return np.array([worth(float(row[0]), row[1:]) for row in means])

    found = measured_quantity([mixed, *(curve[int(count)] for count in counts)], worths, seed=seed)
    at_end = np.isclose(found["high_these_checkpoints"], (counts[-1] - few) / synthetic)
    return {**found, "at_end_of_curve": float(at_end)}
