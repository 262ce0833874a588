"""Scores of synthetic episodes, on trajectories made by hand."""

import numpy as np
import pytest

from toolkit.evaluation.episode_scores import FAR, Limits, limit_excess, nearest_distance, trusted

REAL = [np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]]), np.array([[4.0, 5.0], [3.0, 5.0]])]


@pytest.mark.parametrize(
    ("values", "excess"),
    [([0, 1, 2, 3, 4], 0), ([3, 4, 5], 0.25), ([-2, -1, 0], 0.5), ([0, 2, 3], 0.25)],  # too high, too low, too fast
)
def test_excess_over_what_real_episodes_did(values: list[float], excess: float) -> None:
    limits = Limits.joined(Limits.of_each(REAL))
    trajectory = np.stack([np.array(values, float), np.full(len(values), 99.0)], axis=1)  # the second never moved
    assert limit_excess(trajectory, limits) == excess


def test_nearest_distance_finds_copies_of_any_length() -> None:
    deviation = np.array([2.0, 1.0])
    assert nearest_distance(REAL[0][:2], REAL, deviation) == 0
    shifted = REAL[0] + np.array([2.0, 0.0])
    assert nearest_distance(shifted, REAL[:1], deviation) == pytest.approx(np.sqrt(0.5))
    assert nearest_distance(shifted, [], deviation) == FAR


def test_an_episode_is_trusted_where_no_score_is_beyond_the_recorded_ones() -> None:
    recorded = {"a": np.arange(1.0, 101), "b": np.ones(100), "c": np.full(100, FAR)}
    scores = {"a": np.array([0, 96, 97, 50]), "b": np.array([0, 1, 1, 2.0]), "c": np.array([1, FAR, 1, 1])}
    assert trusted(scores, recorded).tolist() == [True, True, False, False]
    assert trusted({"b": np.array([FAR, 3.0])}, recorded).tolist() == [True, False]  # nothing to be compared with
