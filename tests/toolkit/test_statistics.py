"""Intervals and tests against textbook values."""

from dataclasses import replace

import numpy as np
import pytest

from toolkit.evaluation.statistics import (
    compare_systems,
    design_power,
    hierarchical_bootstrap,
    mcnemar,
    paired_bootstrap,
    rollout_rates,
    success_interval,
    success_table,
    table_rate,
    two_proportion_sample_size,
    wilson_interval,
)


def test_wilson_known_answers() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, table I), method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_an_interval_of_what_is_no_rate_is_refused() -> None:
    for successes, n in ((3, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=r".+"):
            wilson_interval(successes, n)


def test_mcnemar_is_the_exact_test() -> None:
    # 1 against 7 discordant pairs: 2 * (C(8,0) + C(8,1)) / 2^8
    first = [True] * 1 + [False] * 7 + [True] * 9
    second = [False] * 1 + [True] * 7 + [True] * 9
    assert mcnemar(first, second) == pytest.approx(2 * 9 / 256)
    assert mcnemar(second, first) == mcnemar(first, second)
    assert mcnemar([True, False], [True, False]) == 1.0
    with pytest.raises(ValueError, match=r".+"):
        mcnemar([True], [True, False])


def test_paired_bootstrap_agrees_with_the_normal_interval() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(400) < 0.7, rng.random(400) < 0.5
    found = paired_bootstrap(first, second)
    differences = first.astype(float) - second
    margin = 1.96 * differences.std(ddof=1) / 20
    assert found["difference"] == pytest.approx(differences.mean())
    assert found["low"] == pytest.approx(differences.mean() - margin, abs=0.01)
    assert found["high"] == pytest.approx(differences.mean() + margin, abs=0.01)
    assert paired_bootstrap(first, second) == found


def test_pairing_removes_what_the_scenes_share() -> None:
    scenes = np.random.default_rng(1).random(200)
    found = paired_bootstrap(scenes + 0.1, scenes)
    assert found["low"] == pytest.approx(0.1)
    assert found["high"] == pytest.approx(0.1)


def test_hierarchical_bootstrap_sees_the_training_seeds() -> None:
    rng = np.random.default_rng(2)
    same = rng.random((1, 100)) < 0.5
    steady, shaky = np.repeat(same, 4, axis=0), (rng.random((4, 100)) < np.array([[0.1], [0.9], [0.2], [0.8]]))
    narrow = hierarchical_bootstrap(steady, steady, resamples=2000)
    wide = hierarchical_bootstrap(shaky, steady, resamples=2000)
    assert narrow["difference"] == narrow["low"] == narrow["high"] == 0
    only_scenes = paired_bootstrap(shaky.mean(0), steady.mean(0), resamples=2000)
    assert wide["high"] - wide["low"] > 1.5 * (only_scenes["high"] - only_scenes["low"])
    with pytest.raises(ValueError, match="same scenes"):
        hierarchical_bootstrap(steady, steady[:, :50])


def test_p_is_that_of_the_least_favourable_seed() -> None:
    better, worse = np.ones((2, 20)), np.zeros((2, 20))
    better[1, 2:] = 0  # the second training seed wins two scenes alone
    found = compare_systems(better, worse)
    assert found["difference"] == pytest.approx(0.55)
    assert found["p"] == mcnemar([True] * 2 + [False] * 18, [False] * 20) == 0.5


def test_power_known_answers() -> None:
    # Cohen 1988: h(0.65, 0.45) = 0.4062, hence 2 * ((1.95996 + 0.84162) / 0.4062)^2 = 95.1 a side
    assert two_proportion_sample_size(0.65, 0.45) == 96
    assert design_power(0.65, 0.45, 96, 1, 0) == pytest.approx(0.80, abs=0.02)  # another approximation
    assert design_power(0.5, 0.5, 100, 1, 0) == pytest.approx(0.05)
    assert design_power(0.65, 0.45, 10**6, 3, 0.1) < 0.8  # scenes do not help against training seeds
    assert design_power(0.65, 0.45, 48, 2, 0) == design_power(0.65, 0.45, 96, 1, 0)
    with pytest.raises(ValueError, match="equal rates"):
        two_proportion_sample_size(0.5, 0.5)


def test_success_interval_is_as_wide_as_the_doubt_about_scenes_and_training_seeds() -> None:
    rng = np.random.default_rng(0)
    alike = np.ones((3, 20))
    assert success_interval(alike) == wilson_interval(60, 60)  # a bootstrap alone would say 1 to 1
    apart = np.stack([rng.random(200) < rate for rate in (0.2, 0.5, 0.8)]).astype(float)
    low, high = success_interval(apart)
    wilson = wilson_interval(int(apart.sum()), apart.size)
    assert low < wilson[0] - 0.1
    assert high > wilson[1] + 0.1
    counts = {"successes": int(apart.sum()), "n": 600, "rate": apart.mean()}
    assert vars(table_rate(apart)) == {**counts, "low": low, "high": high}


def test_success_table_counts_by_task() -> None:
    table = success_table(["push", "push", "reach"], [True, False, True])
    assert (table.successes, table.n) == (2, 3)
    assert {task: (rate.successes, rate.n) for task, rate in table.tasks.items()} == {"push": (1, 2), "reach": (1, 1)}
    rolled = rollout_rates([("push", 3, True), ("reach", 4, False)])
    assert (rolled.successes, rolled.outcomes) == (1, [("push", 3, True), ("reach", 4, False)])
    for numbers in ({"successes": 3}, {"n": 0}, {"rate": 1.5}):
        with pytest.raises(ValueError, match="are no rate"):
            replace(table.tasks["push"], **numbers)
