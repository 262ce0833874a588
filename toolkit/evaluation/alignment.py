"""Do video and actions of a pair belong together? Measured on sets of pairs, real and generated.

Shapes: clips (B, F, H, W, 3) uint8, actions (B, T, A) in physical units, executed evenly from the first frame to the
last: T >= F - 1, and a stored window of F frames and F - 1 actions fits as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch.nn import functional as F

from toolkit.evaluation.clip_encoder import ClipEncoder, encode_clips
from toolkit.evaluation.distribution import frechet_distance, split_distance

ACTION_STEPS = 8
GRID = 16  # pixels a side of what inverse dynamics sees
PENALTIES = tuple(10.0**power for power in range(-4, 3))


class Pairs(NamedTuple):
    """Clips (B, F, H, W, 3) uint8 and their actions (B, T, A)."""

    clips: np.ndarray
    actions: np.ndarray


def action_features(actions: np.ndarray, steps: int = ACTION_STEPS) -> np.ndarray:
    """Trajectories (B, T, A) as (B, steps * A): the mean action of each of `steps` equal parts of the time.

    Raises ValueError unless actions are (B, T, A) with T >= steps, finite.
    """
    return _mean_actions(actions, steps).reshape(len(actions), -1)


@dataclass(frozen=True)
class Whitening:
    """Principal components with unit variance: features (N, D) -> (N, K)."""

    mean: np.ndarray  # (D,)
    components: np.ndarray  # (D, K)

    @classmethod
    def fit(cls, features: np.ndarray, components: int) -> Whitening:
        """The first `components` directions of features (N, D) standardised per dimension, fewer if they hold fewer."""
        mean, deviation = features.mean(0), features.std(0)
        scaled = (features - mean) / np.maximum(deviation, 1e-9)
        _, values, directions = np.linalg.svd(scaled, full_matrices=False)
        kept = min(components, int((values > 1e-6 * values[0]).sum())) if values[0] > 0 else 0
        spread = values[:kept] / np.sqrt(len(features))
        return cls(mean, (directions[:kept] / spread[:, None] / np.maximum(deviation, 1e-9)).T)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) @ self.components


def joint_distance(
    encoder: ClipEncoder,
    real: Pairs,
    generated: Pairs,
    *,
    groups: Sequence[Any] | None = None,
    components: int = 8,
    splits: int = 50,
    seed: int = 0,
    paired: bool = False,
) -> dict[str, Any]:
    """Frechet distance of the joint (video, action) features of pairs, beside that of the same pairs torn apart.

    Features of the clips and of the actions are each whitened on the real pairs to at most `components` dimensions
    (few, or rare directions drown the rest), then set side by side: what differs may be the clips, the actions, or
    how one follows from the other. The control changes the last alone: the generated clips with one another's
    actions, within the same group (such as the task, one label per generated pair) where groups are given. Returns
    what `split_distance` does (value, low, high, floor, n), shuffled (the control), and encoder_id. A value near
    `shuffled` says that actions do not follow from clips; one slightly below `floor` is chance, as the whitening also
    fits the noise of the real pairs. Covariances are not shrunk: shrinkage takes torn pairs, which are white, for
    less noisy than true ones. Raises ValueError as `encode_clips`, `action_features` and `split_distance`, and if
    lengths differ.
    """
    _check(real)
    _check(generated)
    if groups is not None and len(groups) != len(generated.clips):
        raise ValueError(f"groups: expected one of each of the {len(generated.clips)} pairs, got {len(groups)}")
    real_clips, real_actions = encode_clips(encoder, real.clips), action_features(real.actions)
    see, act = Whitening.fit(real_clips, components), Whitening.fit(real_actions, components)
    clips = see(encode_clips(encoder, generated.clips))
    actions = act(action_features(generated.actions))
    reference = np.hstack([see(real_clips), act(real_actions)])
    torn = actions[_exchange(groups if groups is not None else [0] * len(actions), seed)]
    distance = functools.partial(frechet_distance, shrink=False)
    control = split_distance(reference, np.hstack([clips, torn]), distance, splits=splits, seed=seed, paired=paired)
    return {
        **split_distance(reference, np.hstack([clips, actions]), distance, splits=splits, seed=seed, paired=paired),
        "shuffled": control["value"],
        "encoder_id": encoder.encoder_id,
    }


class InverseDynamics:
    """Linear map from the pictures around each interval between frames to its mean action, in closed form.

    Ridge regression (Hoerl and Kennard 1970). Of seven penalties, relative to the mean variance of the features, the
    one that predicts every fourth clip best from the others is taken, then all clips are fitted: steps of one clip
    are too alike for cross-validation over steps.
    """

    def __init__(self, pairs: Pairs) -> None:
        """Fit to real pairs. Raises ValueError if lengths or shapes do not fit together, or below four pairs."""
        _check(pairs)
        if len(pairs.clips) < 4:
            raise ValueError(f"inverse dynamics: need at least 4 pairs, got {len(pairs.clips)}")
        x, y = _transitions(pairs.clips), _mean_actions(pairs.actions, pairs.clips.shape[1] - 1)
        held_out = np.arange(len(x)) % 4 == 3
        self.x_mean, self.y_mean = x.mean((0, 1)), y.mean((0, 1))
        x, y = x - self.x_mean, y - self.y_mean
        trials = _ridge(x[~held_out], y[~held_out], PENALTIES)
        errors = [np.square(x[held_out] @ weights - y[held_out]).mean() for weights in trials]
        self.penalty = PENALTIES[int(np.argmin(errors))]
        (self.weights,) = _ridge(x, y, (self.penalty,))

    def predict(self, clips: np.ndarray) -> np.ndarray:
        """Mean action of every interval between two frames: (B, F, H, W, 3) uint8 -> (B, F - 1, A)."""
        return (_transitions(clips) - self.x_mean) @ self.weights + self.y_mean

    def errors(self, pairs: Pairs) -> np.ndarray:
        """Euclidean distance of predicted and given actions, averaged over time, (B,), in units of the actions.

        Raises ValueError if lengths or shapes do not fit together.
        """
        _check(pairs)
        actions = _mean_actions(pairs.actions, pairs.clips.shape[1] - 1)
        return np.linalg.norm(self.predict(pairs.clips) - actions, axis=-1).mean(1)


def inverse_dynamics_consistency(
    model: InverseDynamics, real: Pairs, generated: Pairs, *, seed: int = 0
) -> dict[str, Any]:
    """Error of inverse dynamics on held-out real and on generated pairs.

    real: pairs that the model was not fitted to. Returns `real` and `generated`, mean errors in units of the actions;
    `difference` (generated - real) with its 95 % interval low, high over clips (Welch 1947); and two references:
    `shuffled`, the error on generated clips with one another's actions, and `mean`, the held-out real error of the
    mean action, which a model that reads nothing from pictures has. A `real` near `mean` makes the rest say nothing.
    Raises ValueError if lengths or shapes do not fit together.
    """
    real_errors, errors = model.errors(real), model.errors(generated)
    torn = Pairs(generated.clips, generated.actions[_exchange([0] * len(generated.actions), seed)])
    true_actions = _mean_actions(real.actions, real.clips.shape[1] - 1)
    interval = stats.ttest_ind(errors, real_errors, equal_var=False).confidence_interval(0.95)
    return {
        "real": float(real_errors.mean()),
        "generated": float(errors.mean()),
        "difference": float(errors.mean() - real_errors.mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "shuffled": float(model.errors(torn).mean()),
        "mean": float(np.linalg.norm(true_actions - model.y_mean, axis=-1).mean()),
        "n_real": len(real_errors),
        "n_generated": len(errors),
    }


def _ridge(x: np.ndarray, y: np.ndarray, penalties: Sequence[float]) -> list[np.ndarray]:
    """Weights (D, A) of y (B, T, A) on x (B, T, D), both centred, for every penalty."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    values, vectors = np.linalg.eigh(x.T @ x)
    projected = vectors.T @ (x.T @ y)
    mean = max(float(values.mean()), 1e-12)
    return [vectors @ (projected / (values.clip(0) + penalty * mean)[:, None]) for penalty in penalties]


def _transitions(clips: np.ndarray) -> np.ndarray:
    """Small pictures before each interval and their change over it: (B, F, H, W, 3) -> (B, F - 1, 2 * 3 * 16 * 16)."""
    frames = torch.from_numpy(np.ascontiguousarray(clips)).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    small = F.interpolate(frames, (GRID, GRID), mode="area").flatten(1).double().numpy()
    small = small.reshape(*clips.shape[:2], -1)  # (B, F, D)
    return np.concatenate([np.diff(small, axis=1), small[:, :-1]], axis=-1)


def _mean_actions(actions: np.ndarray, parts: int) -> np.ndarray:
    """(B, T, A) -> (B, parts, A), means over equal parts of the time."""
    if actions.ndim != 3 or actions.shape[1] < parts or not np.isfinite(actions).all():
        raise ValueError(f"actions: expected finite (B, T, A) with T >= {parts}, got {actions.shape}")
    edges = np.round(np.linspace(0, actions.shape[1], parts + 1)).astype(int)[:-1]
    return np.add.reduceat(actions.astype(np.float64), edges, axis=1) / np.diff([*edges, actions.shape[1]])[:, None]


def _exchange(groups: Sequence[Any], seed: int) -> np.ndarray:
    """Indices (B,) that give every row another row of its group; a row alone in its group keeps itself."""
    rng, labels = np.random.default_rng(seed), np.asarray(groups)
    exchanged = np.arange(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        exchanged[members] = np.roll(members, 1)
    return exchanged


def _check(pairs: Pairs) -> None:
    clips, actions = pairs.clips, pairs.actions
    if clips.ndim != 5 or actions.ndim != 3 or len(clips) != len(actions):
        raise ValueError(f"pairs: expected (B, F, H, W, 3) and (B, T, A), got {clips.shape} and {actions.shape}")
