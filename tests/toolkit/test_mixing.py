"""Which episodes make a dataset of a fraction: as many as fit, balanced over tasks, to within half an episode."""

import numpy as np
import pytest

from toolkit.data.mixing import Side, mixed, take


def side(count: int, seed: int, tasks: int = 3) -> Side:
    rng = np.random.default_rng(seed)
    return Side(rng.integers(20, 60, count), rng.integers(0, tasks, count))


def frames(of: Side, rounds: list[np.ndarray]) -> int:
    return sum(int(of.lengths[one].sum()) for one in rounds)


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("repeat", [False, True])
def test_the_fraction_is_met_to_within_half_an_episode(fraction: float, repeat: bool) -> None:
    real, synthetic = side(40, 0), side(60, 1)
    rounds = mixed(real, synthetic, fraction, repeat, seed=0)
    counts = [frames(real, rounds[0]), frames(synthetic, rounds[1])]
    wanted = (counts[0] * fraction / (1 - fraction), counts[1] * (1 - fraction) / fraction)
    assert abs(counts[1] - wanted[0]) <= 30 or abs(counts[0] - wanted[1]) <= 30
    whole = [
        len(turns) >= 1 and len(turns[0]) == len(one.lengths)
        for turns, one in zip(rounds, (real, synthetic), strict=True)
    ]
    assert all(whole) if repeat else sum(whole) >= 1
    for turns in rounds:
        assert repeat or len(turns) == 1
        for one in turns:
            assert (np.diff(one) > 0).all()


def test_no_fraction_takes_all_and_zero_or_one_leave_a_side_out() -> None:
    real, synthetic = side(4, 0), side(6, 1)
    assert [len(turns[0]) for turns in mixed(real, synthetic, None, False, 0)] == [4, 6]
    assert [len(turns) for turns in mixed(real, synthetic, 0.0, False, 0)] == [1, 0]
    assert [len(turns) for turns in mixed(real, synthetic, 1.0, False, 0)] == [0, 1]


def test_tasks_get_as_many_frames_each_and_the_seed_decides_which_episodes() -> None:
    many = side(300, 2)
    taken = take(many, 3000, seed=0)
    of_task = [int(many.lengths[taken][many.tasks[taken] == task].sum()) for task in range(3)]
    assert max(of_task) - min(of_task) <= 60
    assert set(taken) != set(take(many, 3000, seed=1))
    np.testing.assert_array_equal(taken, take(many, 3000, seed=0))


def test_the_lowest_ranks_of_each_task_come_first() -> None:
    lengths, tasks = np.full(8, 10), np.array([0, 0, 0, 0, 1, 1, 1, 1])
    ranked = Side(lengths, tasks, np.array([4.0, 3, 2, 1, 1, 2, 3, 4]))
    assert take(ranked, 40, seed=0).tolist() == [2, 3, 4, 5]
