"""How far a generated action trajectory is from a recorded one. Trajectories are (T, A) in physical units."""

from __future__ import annotations

import numpy as np


def action_distance(generated: np.ndarray, recorded: np.ndarray) -> float:
    """Euclidean distance of the actions, averaged over time: the distance of VAG (arXiv 2604.09330)."""
    _check(generated, recorded)
    return float(np.linalg.norm(generated - recorded, axis=-1).mean())


def dimension_errors(generated: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Mean absolute error per dimension, (A,)."""
    _check(generated, recorded)
    return np.abs(generated - recorded).mean(axis=0)


def jerk_ratio(generated: np.ndarray, recorded: np.ndarray) -> float:
    """Mean size of the third difference, generated over recorded: 1 = as smooth as recorded, larger = rougher."""
    _check(generated, recorded)
    generated_jerk, recorded_jerk = (
        np.linalg.norm(np.diff(actions, n=3, axis=0), axis=-1).mean() for actions in (generated, recorded)
    )
    return float(generated_jerk / max(recorded_jerk, 1e-9))


def end_effector_error_cm(generated: np.ndarray, recorded: np.ndarray) -> np.ndarray:
    """Distance of the hand at every step, (T,) [cm]. States are (T, S), of which the first three are its place [m]."""
    _check(generated, recorded)
    return 100 * np.linalg.norm(generated[:, :3] - recorded[:, :3], axis=-1)


def success_curve(errors: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of the errors (N,) at or below each threshold (K,): success as a function of what counts as success.

    Returns (K,). An error that is not finite never counts. Raises ValueError if there are no errors.
    """
    if errors.ndim != 1 or len(errors) == 0:
        raise ValueError(f"errors: expected (N,) with N > 0, got {errors.shape}")
    return (errors[:, None] <= thresholds).mean(axis=0)


def _check(generated: np.ndarray, recorded: np.ndarray) -> None:
    if generated.shape != recorded.shape or generated.ndim != 2:
        raise ValueError(f"trajectories: expected two equal (T, A), got {generated.shape} and {recorded.shape}")
