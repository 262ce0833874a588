"""Schedules, sealed keys and what is left to do."""

import base64

import pytest

from toolkit.base.typed_json import read_as, to_json
from toolkit.evaluation.trials import (
    Attempt,
    Schedule,
    draw_schedule,
    finished_placements,
    next_trial,
    plan_text,
    unseal,
)


def attempt_of(schedule: Schedule, number: int, judgement: str, attempt: int = 1) -> Attempt:
    planned = schedule.trials[number]
    return Attempt(
        placement=planned.placement, code_word=planned.code_word, attempt=attempt, judgement=judgement, reason="why"
    )


def test_every_policy_has_a_trial_in_each_placement_in_random_order() -> None:
    schedule, key, _ = draw_schedule(["a", "b", "c"], 30, {})
    assert len(schedule.trials) == len(key) == 90
    orders = set()
    for placement in range(1, 31):
        order = tuple(key[planned.code_word] for planned in schedule.trials if planned.placement == placement)
        assert sorted(order) == ["a", "b", "c"]
        orders.add(order)
    assert len(orders) > 3
    assert key != draw_schedule(["a", "b", "c"], 30, {})[1]
    assert read_as(Schedule, to_json(schedule), "schedule") == schedule


def test_neither_schedule_nor_sealed_key_tells_the_policy() -> None:
    schedule, key, sealed = draw_schedule(["alpha_policy", "beta_policy"], 5, {})
    assert "policy" not in str([*schedule.trials, schedule.commitment]) + sealed
    assert unseal(sealed, schedule.commitment) == key


def test_a_key_that_was_changed_is_refused() -> None:
    schedule, _, sealed = draw_schedule(["a", "b"], 5, {})
    data = bytearray(base64.b85decode(sealed))
    data[20] ^= 1
    with pytest.raises(ValueError, match="not the one that the schedule was written with"):
        unseal(base64.b85encode(bytes(data)).decode(), schedule.commitment)
    with pytest.raises(ValueError, match="not the one"):
        unseal(draw_schedule(["a", "b"], 5, {})[2], schedule.commitment)


def test_discarded_trials_come_later_in_their_placement() -> None:
    schedule, key, _ = draw_schedule(["a", "b", "c"], 2, {})
    first, second, third, fourth, *_ = schedule.trials
    attempts = [attempt_of(schedule, 0, "discard")]
    assert next_trial(schedule, []) == first
    assert next_trial(schedule, attempts) == second
    attempts += [attempt_of(schedule, 1, "success"), attempt_of(schedule, 2, "lost")]
    assert next_trial(schedule, attempts) == first
    attempts.append(attempt_of(schedule, 0, "failure", 2))
    assert next_trial(schedule, attempts) == third
    assert set(map(len, finished_placements(schedule, key, attempts).values())) == {0}
    attempts.append(attempt_of(schedule, 2, "success", 2))
    assert next_trial(schedule, attempts) == fourth
    found = finished_placements(schedule, key, attempts)
    assert found == {
        key[first.code_word]: [False],
        key[second.code_word]: [True],
        key[third.code_word]: [True],
    }
    attempts += [attempt_of(schedule, number, "failure") for number in (3, 4, 5)]
    assert next_trial(schedule, attempts) is None


def test_the_plan_says_what_so_many_placements_can_settle() -> None:
    text = plan_text(2, 20, 0.05)
    assert "20 placements, 40 trials of 2 policies: it takes 6 placements that one policy alone solves" in text
    assert "0.51 apart (0.76 and 0.24)" in text
    assert "too few to settle anything" in plan_text(2, 5, 0.05)
    assert "it takes 7 placements" in plan_text(3, 8, 0.05)
