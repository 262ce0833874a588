"""Alignment of video and action where the video determines the actions, and where it does not."""

import numpy as np
import pytest

from toolkit.evaluation.alignment import (
    InverseDynamics,
    Pairs,
    Whitening,
    action_features,
    inverse_dynamics_consistency,
    joint_distance,
)
from toolkit.evaluation.clip_encoder import random_clip_encoders

N = 96


@pytest.fixture(name="pairs", scope="module")
def _pairs(reaches) -> list[Pairs]:
    """Two real sets and a generated one that is as good as real."""
    return [Pairs(*reaches(N, seed=seed)) for seed in range(3)]


@pytest.fixture(name="model", scope="module")
def _model(pairs: list[Pairs]) -> InverseDynamics:
    return InverseDynamics(pairs[0])


def torn(pairs: Pairs) -> Pairs:
    return Pairs(pairs.clips, np.roll(pairs.actions, 1, axis=0))


def test_action_features_are_means_of_equal_parts() -> None:
    actions = np.arange(12.0).reshape(1, 6, 2)
    assert action_features(actions, steps=2).tolist() == [[2, 3, 8, 9]]
    assert action_features(actions, steps=6).tolist() == [list(range(12))]
    long = np.repeat(actions, 5, axis=1)
    assert np.array_equal(action_features(long, steps=6), action_features(actions, steps=6))
    for wrong in (actions[:, :1], actions[0], np.full((2, 6, 2), np.nan)):
        with pytest.raises(ValueError, match="actions"):
            action_features(wrong, steps=2)


def test_whitening_makes_unit_variance_whatever_the_units() -> None:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 5)) * np.array([1, 1e3, 1e-3, 1, 1]) + 7
    white = Whitening.fit(mixed, 8)(mixed)
    assert white.shape == (200, 3)  # no more than they hold
    assert np.allclose(white.mean(0), 0, atol=1e-6)
    assert np.allclose(np.cov(white, rowvar=False, bias=True), np.eye(3), atol=1e-6)
    other_units = mixed * 10
    assert np.allclose(np.abs(Whitening.fit(other_units, 8)(other_units)), np.abs(white), atol=1e-5)
    assert Whitening.fit(np.ones((9, 4)), 3)(np.ones((2, 4))).shape == (2, 0)


def test_joint_distance_knows_true_pairs_from_shuffled(pairs: list[Pairs]) -> None:
    real, _, generated = pairs
    for encoder in random_clip_encoders(2, reference=pairs[1].clips[:32]):
        true = joint_distance(encoder, real, generated, splits=12)
        assert true["encoder_id"] == encoder.encoder_id
        assert true["n"] == N // 2
        assert true["value"] < 2 * true["floor"]
        assert true["shuffled"] > true["high"]
        wrong = joint_distance(encoder, real, torn(generated), splits=12)
        assert wrong["value"] == pytest.approx(true["shuffled"], rel=0.25)  # already torn: nothing left to tear


def test_joint_distance_also_sees_each_side_alone(pairs: list[Pairs]) -> None:
    real, _, generated = pairs
    (encoder,) = random_clip_encoders(1, reference=pairs[1].clips)
    true = joint_distance(encoder, real, generated, splits=10)["high"]
    assert joint_distance(encoder, real, Pairs(generated.clips, 3 * generated.actions), splits=10)["low"] > true
    assert joint_distance(encoder, real, Pairs(generated.clips[:, ::-1], generated.actions), splits=10)["low"] > true


def test_control_shuffles_within_groups(pairs: list[Pairs]) -> None:
    real, _, generated = pairs
    (encoder,) = random_clip_encoders(1, reference=pairs[1].clips)
    alone = joint_distance(encoder, real, generated, groups=range(N), splits=5)
    assert alone["shuffled"] == alone["value"]
    height = generated.actions[..., 0].sum(1)
    alike = joint_distance(encoder, real, generated, groups=np.argsort(np.argsort(height)) // 4, splits=10)
    free = joint_distance(encoder, real, generated, splits=10)
    assert alike["value"] == free["value"] < alike["shuffled"] < free["shuffled"]
    with pytest.raises(ValueError, match="groups"):
        joint_distance(encoder, real, generated, groups=["a"])


def test_inverse_dynamics_reads_motion_from_pictures(model: InverseDynamics, pairs: list[Pairs]) -> None:
    _, real, generated = pairs
    found = inverse_dynamics_consistency(model, real, generated)
    assert found["real"] < 0.35 * found["mean"]
    assert found["generated"] == pytest.approx(found["real"], rel=0.3)
    assert found["shuffled"] > 2 * found["generated"]
    assert found["low"] < 0 < found["high"]
    assert inverse_dynamics_consistency(model, real, torn(generated))["low"] > found["real"]
    assert found["difference"] == pytest.approx(found["generated"] - found["real"])
    assert (found["n_real"], found["n_generated"]) == (N, N)


@pytest.mark.parametrize("damage", ["torn", "reversed", "frozen"])
def test_inverse_dynamics_convicts_wrong_pairs(model: InverseDynamics, pairs: list[Pairs], damage: str) -> None:
    clips, actions = pairs[2]
    wrong = {
        "torn": torn(pairs[2]),
        "reversed": Pairs(clips[:, ::-1], actions),
        "frozen": Pairs(np.repeat(clips[:, :1], 13, axis=1), actions),
    }
    assert model.errors(wrong[damage]).mean() > 1.5 * model.errors(pairs[1]).mean()


def test_inverse_dynamics_errors_are_in_units_of_the_actions(model: InverseDynamics, pairs: list[Pairs]) -> None:
    training, real, _ = pairs
    predicted = model.predict(real.clips)
    assert predicted.shape == (N, 12, 2)
    assert model.errors(Pairs(real.clips, predicted + np.array([3, 4]))) == pytest.approx(np.full(N, 5))
    scaled = InverseDynamics(Pairs(training.clips, 100 * training.actions)).errors(
        Pairs(real.clips, 100 * real.actions)
    )
    assert scaled == pytest.approx(100 * model.errors(real), rel=1e-4)


def test_finer_actions_are_averaged_over_frame_intervals(model: InverseDynamics, pairs: list[Pairs]) -> None:
    real = pairs[1]
    finer = Pairs(real.clips, np.repeat(real.actions, 4, axis=1))
    assert model.errors(finer) == pytest.approx(model.errors(real))


def test_lengths_must_fit(pairs: list[Pairs]) -> None:
    clips, actions = pairs[0]
    with pytest.raises(ValueError, match="pairs"):
        InverseDynamics(Pairs(clips[:3], actions))
    with pytest.raises(ValueError, match="at least 4 pairs"):
        InverseDynamics(Pairs(clips[:3], actions[:3]))
    with pytest.raises(ValueError, match="T >= 12"):
        InverseDynamics(Pairs(clips, actions[:, :5]))
    with pytest.raises(ValueError, match="pairs"):
        joint_distance(random_clip_encoders(1)[0], pairs[0], Pairs(clips, actions[:9]))
