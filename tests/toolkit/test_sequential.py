"""The sequential test: its error is counted by hand, and simulated with a look after every placement."""

from itertools import product

import numpy as np
import pytest

from recipes.trial_schema import MOST_PLACEMENTS as MOST_IN_SCHEMA
from toolkit.evaluation.sequential import MOST_PLACEMENTS, PairedTest, Tally, holm
from toolkit.evaluation.trials import judge_pairs


def path_of(wins: list[int]) -> list[Tally]:
    """wins: of each placement 1 for the first, -1 for the second, 0 for none."""
    pairs = [(one > 0, one < 0) for one in wins]
    return [Tally.of(pairs[:seen]) for seen in range(len(pairs) + 1)]


def simulate(test: PairedTest, p: float, q: float, studies: int = 20_000) -> float:
    """Share of studies that settle at some time; the threshold is looked at after every placement."""
    rng = np.random.default_rng(0)
    first, second = (rng.random((studies, test.placements)) < rate for rate in (p, q))
    a, b = np.cumsum(first & ~second, axis=1), np.cumsum(second & ~first, axis=1)
    return float((test.evidence[a, b] >= test.threshold - 1e-9).any(axis=1).mean())


def test_the_chance_of_a_false_alarm_is_counted_over_all_sequences() -> None:
    test = PairedTest(10, 0.05)
    alarms = [test.settled(path_of(list(wins))) for wins in product((1, -1), repeat=10)]
    assert np.mean(alarms) == test.size
    assert 0 < test.size <= 0.05


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3, 0.01])
def test_no_number_of_placements_has_more_false_alarms_than_alpha(alpha: float) -> None:
    sizes = [PairedTest(placements, alpha).size for placements in [*range(1, 61), 100]]
    assert max(sizes) <= alpha
    assert sizes[-1] > 0.9 * alpha


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
def test_equal_policies_are_told_apart_no_more_often_than_alpha_whenever_one_looks(rate: float) -> None:
    for placements in (20, 60):
        test = PairedTest(placements, 0.05)
        assert simulate(test, rate, rate) <= test.size + 0.004  # two and a half standard errors of 20,000 studies


def test_placements_that_differ_in_difficulty_do_not_harm() -> None:
    rng = np.random.default_rng(1)
    test = PairedTest(20, 0.05)
    rates = rng.choice([0.1, 0.5, 0.9], (20_000, 20))
    first, second = (rng.random(rates.shape) < rates for _ in range(2))
    a, b = np.cumsum(first & ~second, axis=1), np.cumsum(second & ~first, axis=1)
    assert (test.evidence[a, b] >= test.threshold - 1e-9).any(axis=1).mean() <= 0.05


@pytest.mark.parametrize(("p", "q"), [(0.7, 0.3), (0.75, 0.25), (0.6, 0.4), (0.1, 0.5)])
def test_power_is_what_is_told(p: float, q: float) -> None:
    for placements in (20, 50):
        test = PairedTest(placements, 0.05)
        assert simulate(test, p, q) == pytest.approx(test.power(p, q), abs=0.012)


def test_the_smallest_difference_has_its_power() -> None:
    test = PairedTest(20, 0.05)
    gap = test.smallest_difference(0.8)
    assert gap is not None
    assert test.power(0.5 + gap / 2, 0.5 - gap / 2) >= 0.8 > test.power(0.49 + gap / 2, 0.51 - gap / 2)
    assert 0.45 < gap < 0.55
    assert PairedTest(5, 0.05).smallest_difference() is None


def test_wins_that_are_needed() -> None:
    assert [PairedTest(n, 0.05).wins_needed for n in (5, 6, 20, 100)] == [None, 6, 6, 8]
    test = PairedTest(20, 0.05)
    assert not test.settled(path_of([1] * 5))
    assert test.settled(path_of([1] * 6))
    assert test.settled(path_of([1] * 6 + [-1] * 14))  # it stays settled


def test_p_is_at_most_alpha_exactly_where_the_question_is_settled() -> None:
    test, rng = PairedTest(20, 0.05), np.random.default_rng(2)
    for _ in range(300):
        wins = rng.choice([1, -1, 0], int(rng.integers(21)), p=[0.6, 0.2, 0.2]).tolist()
        path = path_of(wins)
        assert (test.p_value(path) <= 0.05) == test.settled(path)
        assert test.p_value(path) <= test.p_value(path[:-1] or path)
    assert test.p_value(path_of([])) == 1


def test_what_cannot_be_settled_is_said_exactly_then() -> None:
    test = PairedTest(9, 0.05)
    for seen in range(10):
        for wins in product((1, -1, 0), repeat=min(seen, 4)):
            so_far = [*wins, *[0] * (seen - len(wins))]
            ends = [path_of([*so_far, *more]) for more in product((1, -1, 0), repeat=min(9 - seen, 5))]
            if 9 - seen <= 5 and not test.settled(path_of(so_far)):
                assert test.reachable(path_of(so_far)[-1]) == any(map(test.settled, ends)), so_far


def test_holm_bounds_any_false_alarm_of_three_equal_policies() -> None:
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(1500):
        outcomes = {name: (rng.random(20) < 0.5).tolist() for name in "abc"}
        alarms += any(verdict.better for verdict in judge_pairs(outcomes, 20, 0.05))
    assert alarms / 1500 <= 0.05
    assert holm([0.01, 0.04, 0.02], 0.05) == [True, True, True]
    assert holm([0.02, 0.04, 0.03], 0.05) == [False, False, False]
    assert holm([0.01, 0.04, 0.03], 0.05) == [True, False, False]


def test_the_better_one_is_named() -> None:
    outcomes = {"a": [False] * 8, "b": [True] * 8, "c": [True, False] * 4}
    first, second, third = judge_pairs(outcomes, 20, 0.05)
    assert (first.better, first.wins_a, first.wins_b) == ("b", 0, 8)
    assert first.p <= 0.05 / 3
    assert (second.better, second.reachable) == (third.better, third.reachable) == (None, True)


def test_impossible_designs_are_refused() -> None:
    for placements, alpha in ((0, 0.05), (MOST_PLACEMENTS + 1, 0.05), (20, 0.0), (20, 1.0)):
        with pytest.raises(ValueError, match="expected 1 to"):
            PairedTest(placements, alpha)
    assert MOST_IN_SCHEMA == MOST_PLACEMENTS
