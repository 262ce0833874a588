"""Intervals of systems and of their checkpoints: how often they hold the truth, and when there is none.

The simulations draw generators and training seeds that differ by .10, scenes that are easy or hard, and successes.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pytest

from toolkit.evaluation.statistics import wilson_interval
from toolkit.evaluation.systems import (
    BOOTSTRAP_CLUSTERS,
    Trained,
    compare_means,
    compare_success,
    measured_mean,
    measured_quantity,
    measured_success,
    permutation_p,
    scene_rate_interval,
)

SEED_DEVIATION = GENERATOR_DEVIATION = 0.10
LEAST_COVERAGE = 0.93
SCENES = 100
Labels = Sequence[Hashable] | None


class World:
    """Generators, scenes and trainings of one simulated study."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.generators = dict(zip("abcdefghijkl", rng.normal(0, GENERATOR_DEVIATION, 12), strict=True))
        self.scenes = rng.uniform(-0.2, 0.2, SCENES)

    def rates(self, clusters: Labels, runs: int = 3, rate: float = 0.5) -> np.ndarray:
        """(runs, scenes) chances of success; the effect of a generator is that on every system that learns from it."""
        runs = len(clusters) if clusters else runs
        trained = rate + self.rng.normal(0, SEED_DEVIATION, (runs, 1))
        if clusters:
            trained += np.array([[self.generators[str(label)]] for label in clusters])
        chances: np.ndarray = np.clip(trained + self.scenes, 0, 1)
        return chances

    def outcomes(self, clusters: Labels, runs: int = 3, rate: float = 0.5) -> np.ndarray:
        chances = self.rates(clusters, runs, rate)
        return (self.rng.random(chances.shape) < chances).astype(float)

    def system(self, clusters: Labels, runs: int = 3, rate: float = 0.5) -> Trained:
        return Trained(self.outcomes(clusters, runs, rate), clusters)


def coverage(measure: Callable[[World], dict[str, Any]], truth: float, studies: int = 400) -> float:
    rng = np.random.default_rng(0)
    found = [measure(World(rng)) for _ in range(studies)]
    return float(np.mean([one["low"] <= truth <= one["high"] for one in found]))


@pytest.mark.parametrize("clusters", [None, "abc", "abcde", "aabbcc", "aabc", "aaaaaaabc", "abcdefghijkl"])
def test_the_interval_of_a_rate_holds_what_other_trainings_give(clusters: str | None) -> None:
    assert coverage(lambda world: measured_success(world.system(clusters)), 0.5) >= LEAST_COVERAGE
    assert coverage(lambda world: measured_mean(world.system(clusters)), 0.5, studies=200) >= LEAST_COVERAGE


def test_runs_of_one_generator_are_no_independent_runs() -> None:
    """Without labels nine runs of three generators look like nine trainings."""
    clusters = "aaabbbccc"
    assert coverage(lambda world: measured_success(Trained(world.outcomes(clusters))), 0.5) < LEAST_COVERAGE - 0.05
    assert coverage(lambda world: measured_success(world.system(clusters)), 0.5) >= LEAST_COVERAGE


@pytest.mark.parametrize(
    ("first", "second"), [("abc", None), ("abc", "abc"), (None, None), ("aabc", "abcc"), ("aaaabc", "abcccc")]
)
def test_the_interval_of_a_difference_holds_what_other_trainings_give(first: str | None, second: str | None) -> None:
    def compared(compare: Callable[..., dict[str, Any]], world: World) -> dict[str, Any]:
        return compare(world.system(first), world.system(second))

    quick: Any = {"permutations": 1}
    assert coverage(lambda world: compared(lambda a, b: compare_success(a, b, **quick), world), 0) >= LEAST_COVERAGE
    assert coverage(lambda world: compared(compare_means, world), 0, studies=200) >= LEAST_COVERAGE


def test_the_interval_of_what_is_no_mean_holds_what_other_trainings_give() -> None:
    def share(means: np.ndarray) -> np.ndarray:
        gap: np.ndarray = (means[:, 0] - means[:, 1]) / (means[:, 2] - means[:, 1])
        return gap

    runs = BOOTSTRAP_CLUSTERS
    systems: tuple[tuple[Labels, float], ...] = (("abcdefghijkl", 0.5), (None, 0.3), (None, 0.7))

    def measure(world: World) -> dict[str, Any]:
        return measured_quantity([world.system(c, runs, rate) for c, rate in systems], share, resamples=200)

    assert coverage(measure, 0.5, studies=200) >= LEAST_COVERAGE
    world = World(np.random.default_rng(0))
    few = measured_quantity([world.system(c, 3, rate) for c, rate in systems], share, resamples=200)
    assert few["low"] is few["high"] is None
    assert few["note"] == "no interval of systems: 3 training runs, it takes 12"
    assert few["low_these_checkpoints"] < few["value"] < few["high_these_checkpoints"]


@pytest.mark.parametrize(
    ("clusters", "why"), [("aba", "2 generators behind 3 training runs"), ("ab", "2 training runs")]
)
def test_too_few_clusters_have_no_interval_and_say_why(clusters: str, why: str) -> None:
    world = World(np.random.default_rng(0))
    system, other = world.system(clusters), world.system(None)
    for found in (
        measured_success(system),
        measured_mean(system),
        compare_success(system, other),
        compare_means(system, other),
    ):
        assert found["low"] is found["high"] is None
        assert found["note"] == f"no interval of systems: {why}, it takes 3"
        value = found.get("value", found.get("difference"))
        assert found["low_these_checkpoints"] < value < found["high_these_checkpoints"]
    assert "note" not in measured_success(other)


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("rate", [0.5, 0.9, 0.02])
def test_intervals_of_checkpoints_hold_their_own_rate_over_all_scenes(runs: int, rate: float) -> None:
    rng, hits, differences = np.random.default_rng(1), [], []
    for _ in range(300):
        trained = np.clip(rate + rng.normal(0, min(rate, 1 - rate) / 4, (2, runs, 1)), 0, 1)
        scenes = rng.uniform(-1, 1, SCENES) * min(rate, 1 - rate) / 2
        chances = np.clip(trained + scenes, 0, 1)
        first, second = (rng.random(chances.shape) < chances).astype(float)
        low, high = scene_rate_interval(first)
        hits.append(low <= trained[0].mean() <= high)
        found = compare_success(Trained(first), Trained(second), permutations=1)
        truth = trained[0].mean() - trained[1].mean()
        differences.append(found["low_these_checkpoints"] <= truth <= found["high_these_checkpoints"])
    assert np.mean(hits) >= LEAST_COVERAGE
    assert np.mean(differences) >= LEAST_COVERAGE


def test_runs_that_share_scenes_are_worth_fewer_outcomes() -> None:
    rng = np.random.default_rng(0)
    one = (rng.random((1, 60)) < 0.4).astype(float)
    assert scene_rate_interval(one) == wilson_interval(one.sum(), 60)
    assert scene_rate_interval(np.repeat(one, 3, axis=0)) == pytest.approx(wilson_interval(one.sum(), 60))
    apart = (rng.random((3, 60)) < 0.4).astype(float)
    pooled = wilson_interval(apart.sum(), 180)
    found = scene_rate_interval(apart)
    assert found[0] <= pooled[0] + 1e-9
    assert found[1] >= pooled[1] - 1e-9
    assert scene_rate_interval(np.ones((3, 20))) == wilson_interval(20, 20)  # not of sixty


def test_where_all_outcomes_are_alike_there_is_still_doubt() -> None:
    alike = Trained(np.ones((3, 20)))
    found = measured_success(alike)
    assert (found["low"], found["high"]) == wilson_interval(20, 20)
    same = compare_success(alike, alike)
    assert (same["difference"], same["p_these_checkpoints"]) == (0, 1)
    assert same["low"] <= same["low_these_checkpoints"] < -0.05
    assert same["high"] >= same["high_these_checkpoints"] > 0.05


def test_pairing_takes_away_what_systems_share() -> None:
    """Generators that differ by far more than the two arms do."""
    rng = np.random.default_rng(0)
    generators = np.array([[0.1], [0.5], [0.9]])
    first, second = (rng.random((3, 300)) < generators + shift for shift in (0.05, -0.05))
    sides = first.astype(float), second.astype(float)
    paired = compare_success(*(Trained(side, "abc") for side in sides))
    apart = compare_success(*(Trained(side) for side in sides))
    assert paired["high"] - paired["low"] < 0.5 * (apart["high"] - apart["low"])
    assert paired["low_these_checkpoints"] == apart["low_these_checkpoints"]


def test_p_of_one_run_each_is_that_of_mcnemar_and_of_more_runs_that_of_their_scenes() -> None:
    # 1 against 7 discordant pairs: 2 * (C(8,0) + C(8,1)) / 2^8
    by_scene = np.array([1.0] + [-1.0] * 7 + [0.0] * 3)
    assert permutation_p(by_scene, 4000) == pytest.approx(2 * 9 / 256, abs=1e-3)
    assert permutation_p(-by_scene, 4000) == permutation_p(by_scene, 4000)
    assert permutation_p(np.zeros(5)) == 1
    better, worse = np.ones((2, 20)), np.zeros((2, 20))
    better[1, 2:] = 0  # the second training seed wins two scenes alone
    found = compare_success(Trained(better), Trained(worse))
    assert found["difference"] == pytest.approx(0.55)
    assert found["p_these_checkpoints"] < 0.01
    assert "p" not in found


def test_what_cannot_be_compared_is_refused() -> None:
    three = Trained(np.ones((3, 4)))
    with pytest.raises(ValueError, match="same scenes"):
        compare_success(three, Trained(np.ones((3, 5))))
    with pytest.raises(ValueError, match="same scenes"):
        measured_quantity([three, Trained(np.ones((3, 5)))], lambda means: means[:, 0])
    with pytest.raises(ValueError, match=r"expected outcomes \(runs, scenes\)"):
        Trained(np.ones(3))
    with pytest.raises(ValueError, match="2 clusters of 3 runs"):
        Trained(np.ones((3, 4)), "ab")
    lone = measured_success(Trained(np.ones((3, 1))))
    assert lone["note"] == "no interval of systems: a single scene"
