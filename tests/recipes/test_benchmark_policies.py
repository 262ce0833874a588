"""Ranks are shared by what the data cannot tell apart, and intervals know that checkpoints differ."""

import numpy as np

from recipes.benchmark_policies import leaderboard
from toolkit.evaluation.statistics import wilson_interval


def outcomes(*rates: float) -> np.ndarray:
    """(checkpoints, scenes); the same scenes are easy for all."""
    difficulty = np.random.default_rng(0).permutation(np.linspace(0, 1, 200, endpoint=False))
    return np.stack([difficulty < rate for rate in rates]).astype(float)


def test_rank_is_shared_by_what_is_not_distinguishable() -> None:
    tables = {"weak": outcomes(0.2, 0.3), "best": outcomes(0.8, 0.9), "close": outcomes(0.7, 0.95)}
    board = {row["system"]: row for row in leaderboard(tables)}
    assert {name: row["rank"] for name, row in board.items()} == {"best": 1, "close": 1, "weak": 3}
    assert board["close"]["not_distinguishable_from"] == "best"
    assert board["weak"]["not_distinguishable_from"] is None


def test_intervals_are_wider_than_those_of_as_many_rollouts_of_one_checkpoint() -> None:
    (row,) = leaderboard({"uneven": outcomes(0.2, 0.5, 0.8)})
    low, high = wilson_interval(row["successes"], row["n"])
    assert (row["successes"], row["n"], row["seeds"]) == (300, 600, 3)
    assert row["low"] < low - 0.1
    assert row["high"] > high + 0.1
