"""Intervals and tests against textbook values."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from toolkit.evaluation.statistics import (
    design_power,
    mean_interval,
    rollout_rates,
    success_table,
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


def test_the_interval_of_a_mean_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(0.2, 0.7, 400)
    low, high = mean_interval(values)
    margin = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - margin, abs=0.01)
    assert high == pytest.approx(values.mean() + margin, abs=0.01)
    assert mean_interval(values) == (low, high)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_wilson_is_scipys_where_counts_are_whole() -> None:
    for successes, n in ((0, 7), (3, 7), (7, 7), (81, 263)):
        wanted = stats.binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson_interval(successes, n) == pytest.approx((wanted.low, wanted.high))
    low, high = wilson_interval(2.5, 5.5)
    assert wilson_interval(2, 5)[0] < low < 2.5 / 5.5 < high < wilson_interval(3, 6)[1]


def test_power_known_answers() -> None:
    # Cohen 1988: h(0.65, 0.45) = 0.4062, hence 2 * ((1.95996 + 0.84162) / 0.4062)^2 = 95.1 a side
    assert two_proportion_sample_size(0.65, 0.45) == 96
    assert design_power(0.65, 0.45, 96, 1, 0) == pytest.approx(0.80, abs=0.02)  # another approximation
    assert design_power(0.5, 0.5, 100, 1, 0) == pytest.approx(0.05)
    assert design_power(0.65, 0.45, 10**6, 3, 0.1) < 0.8  # scenes do not help against training seeds
    assert design_power(0.65, 0.45, 48, 2, 0) == design_power(0.65, 0.45, 96, 1, 0)
    with pytest.raises(ValueError, match="equal rates"):
        two_proportion_sample_size(0.5, 0.5)


def test_success_table_counts_by_task() -> None:
    table = success_table(["push", "push", "reach"], [True, False, True])
    assert (table.successes, table.n) == (2, 3)
    assert {task: (rate.successes, rate.n) for task, rate in table.tasks.items()} == {"push": (1, 2), "reach": (1, 1)}
    rolled = rollout_rates([("push", 3, True), ("reach", 4, False)])
    assert (rolled.successes, rolled.outcomes) == (1, [("push", 3, True), ("reach", 4, False)])
    for numbers in ({"successes": 3}, {"n": 0}, {"rate": 1.5}):
        with pytest.raises(ValueError, match="are no rate"):
            replace(table.tasks["push"], **numbers)
