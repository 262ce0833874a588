"""Distances of trajectories on cases worked by hand."""

import numpy as np
import pytest

from toolkit.evaluation.action_metrics import (
    action_distance,
    dimension_errors,
    end_effector_error_cm,
    jerk_ratio,
    success_curve,
)


def test_action_distance_is_euclidean_then_averaged_over_time() -> None:
    generated = np.array([[3.0, 4.0], [0.0, 0.0]])
    assert action_distance(generated, np.zeros((2, 2))) == pytest.approx(2.5)  # (5 + 0) / 2
    np.testing.assert_allclose(dimension_errors(generated, np.zeros((2, 2))), [1.5, 2.0])


def test_jerk_ratio() -> None:
    time = np.linspace(0, 1, 50)[:, None]
    recorded = np.hstack([time**3, time**2])  # third difference of a cubic is constant
    assert jerk_ratio(recorded, recorded) == pytest.approx(1)
    assert jerk_ratio(3 * recorded, recorded) == pytest.approx(3)
    shaky = recorded + 0.01 * np.random.default_rng(0).standard_normal(recorded.shape)
    assert jerk_ratio(shaky, recorded) > 10


def test_hand_error_is_in_centimetres_and_leaves_the_gripper_out() -> None:
    recorded = np.zeros((3, 4))
    generated = recorded + np.array([0.03, 0.0, 0.04, 1.0])
    np.testing.assert_allclose(end_effector_error_cm(generated, recorded), [5, 5, 5])


def test_success_curve_counts_errors_up_to_the_threshold() -> None:
    errors = np.array([1.0, 2.0, 3.0, np.nan])
    np.testing.assert_allclose(success_curve(errors, np.array([0.5, 2.0, 10.0])), [0, 0.5, 0.75])
    with pytest.raises(ValueError, match="N > 0"):
        success_curve(np.array([]), np.array([1.0]))


@pytest.mark.parametrize("metric", [action_distance, dimension_errors, jerk_ratio, end_effector_error_cm])
def test_shapes_must_agree(metric) -> None:
    with pytest.raises(ValueError, match="equal"):
        metric(np.zeros((5, 4)), np.zeros((6, 4)))
