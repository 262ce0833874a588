"""Statistics do not depend on the unit that data come in, nor on how many rows there are."""

from dataclasses import replace

import numpy as np
import pytest

from toolkit.data.clips import ClipStore
from toolkit.data.episode import ACTION, STATE
from toolkit.data.normalizer import ACTION_FLOOR, STATE_FLOOR, compute_statistics, describe, dimension_names, moments


def motion(rows: int = 2000) -> np.ndarray:
    """Steps of 6 mm, a rotation of the wrist, a gripper that closes, and a dimension that never moves."""
    rng = np.random.default_rng(0)
    steps = np.clip(rng.normal(0, 0.006, (rows, 2)), -0.02, 0.02)
    wrist, gripper = rng.normal(0, 0.05, (rows, 1)), rng.random((rows, 1)) < 0.3
    return np.hstack([steps, wrist, gripper, np.full((rows, 1), 0.1)]).astype(np.float32)


@pytest.mark.parametrize("floor", [STATE_FLOOR, ACTION_FLOOR])
@pytest.mark.parametrize("scale", [0.03, 0.1, 0.3, 1000])
def test_the_same_motion_in_another_unit_is_normalised_alike(floor: float, scale: float) -> None:
    """From deviations of 6 mm to .6 mm a step and less, to millimetres and degrees instead of metres and radians."""
    values = motion()
    found, other = describe(values, floor), describe(values * np.float32(scale), floor)
    for moved, statistics in ((values, found), (values * np.float32(scale), other)):
        by_deviation = (moved - statistics["mean"]) / statistics["std"]
        assert by_deviation[:, :4].std(0) == pytest.approx(np.ones(4), rel=1e-4)
        assert np.abs(by_deviation[:, 4]).max() < 1e-3
    for middle, half in (("mean", "std"), ("q01", "q99")):
        width, scaled = (s[half] - (s[middle] if middle == "q01" else 0) for s in (found, other))
        first, second = (values - found[middle]) / width, (values * np.float32(scale) - other[middle]) / scaled
        np.testing.assert_allclose(first[:, :4], second[:, :4], atol=1e-3)


def test_a_dimension_that_seldom_moves_has_a_floor_and_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    values = np.zeros((10_000, 3), np.float32)
    values[:3, 1] = 1000  # a switch, in whatever unit
    values[:, 2] = np.linspace(-1, 1, 10_000)
    found = describe(values, ACTION_FLOOR, ["demo: action 0", "demo: action 1 (switch)", "demo: action 2"])
    assert found["std"] == pytest.approx([ACTION_FLOOR, 25, 0.577], rel=1e-3)
    assert (found["q99"] - found["q01"])[:2] == pytest.approx([2 * ACTION_FLOOR, 50])
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "vag: warning: demo: action 1 (switch) lies in [0, 1000] and moves so seldom that its deviation is 17.32; "
        "normalised with 25, or rare values would be enormous"
    ]


def test_floors_are_as_ever_where_actions_span_what_those_of_simulators_do() -> None:
    """A deviation that is small beside a range of [-1, 1] is lifted to .05."""
    values = np.zeros((5000, 1), np.float32)
    values[0], values[1] = -1, 1
    assert describe(values, ACTION_FLOOR)["std"] == pytest.approx([0.05])


@pytest.mark.parametrize("noise", [1e-6, 1e-3])
def test_rare_events_of_a_dimension_that_is_else_nearly_still_are_not_enormous(noise: float) -> None:
    """A contact in one row of two hundred, on a sensor that is never quite at rest."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, noise, (20_000, 1)).astype(np.float32)
    values[rng.random(20_000) < 0.005] += 1
    found = describe(values, STATE_FLOOR)
    assert np.abs((values - found["q01"]) / (found["q99"] - found["q01"])).max() < 50


def test_outliers_do_not_raise_the_floor_above_what_the_others_span() -> None:
    values = motion()
    values[0, 0] = 1e4
    spread = np.subtract(*np.quantile(values[:, 0], [0.99, 0.01]))
    found = describe(values, ACTION_FLOOR)
    assert found["q99"][0] - found["q01"][0] == pytest.approx(spread, rel=1e-3)


def test_millions_of_rows_are_summed_in_double_precision() -> None:
    rows = np.broadcast_to(np.array([0.3, 0.1], np.float32), (3_000_000, 2))
    mean, deviation = moments(rows)
    assert mean == pytest.approx([0.3, 0.1], abs=1e-6)
    assert deviation == pytest.approx([0, 0], abs=1e-6)
    assert describe(rows, ACTION_FLOOR)["mean"] == pytest.approx([0.3, 0.1], abs=1e-6)


def test_moments_are_those_of_numpy_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(3, 2, (1000, 3))
    monkeypatch.setattr("toolkit.data.normalizer.ROWS", 300)
    mean, deviation = moments(values)
    np.testing.assert_allclose(mean, values.mean(0))
    np.testing.assert_allclose(deviation, values.std(0))


def test_statistics_of_a_dataset_name_its_dimensions(store: ClipStore, capsys: pytest.CaptureFixture[str]) -> None:
    rows = len(store.actions) * 50
    actions, states = np.zeros((rows, 2), np.float32), np.repeat(store.states, 50, axis=0)
    actions[5, 1] = 7
    rare = replace(store, actions=actions, states=states, action_names=["dy", "grip"], state_names=(), source="demo")
    assert dimension_names([rare], ACTION) == ["demo: action 0 (dy)", "demo: action 1 (grip)"]
    assert dimension_names([rare], STATE)[1] == "demo: state 1"
    compute_statistics([rare])
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("vag: warning: demo: action 1 (grip) lies in [0, 7] and moves so seldom")
