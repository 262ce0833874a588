"""Distances between sets against closed forms, and their behaviour where the answer is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn

from toolkit.base.errors import UserError
from toolkit.evaluation.clip_encoder import random_clip_encoders
from toolkit.evaluation.distribution import (
    frechet_clip_distance,
    frechet_distance,
    i3d_fvd,
    split_distance,
)


def sample(n: int, mean: np.ndarray, covariance: np.ndarray, seed: int = 0) -> np.ndarray:
    """(n, D) whose mean and covariance are exactly those given."""
    raw = np.random.default_rng(seed).standard_normal((n, len(mean)))
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(raw, rowvar=False)))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def normal(n: int, d: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d))


def test_frechet_distance_of_diagonal_gaussians() -> None:
    first, second = sample(50, np.zeros(2), np.diag([1.0, 9])), sample(30, np.array([3.0, 4]), np.diag([4.0, 1]), 1)
    # |shift|^2 = 25, and (1 - 2)^2 + (3 - 1)^2 for the deviations
    assert frechet_distance(first, second, shrink=False) == pytest.approx(30)


def test_frechet_distance_of_covariances_that_do_not_commute() -> None:
    a, b = np.array([[2.0, 0.9], [0.9, 1]]), np.array([[1.0, -0.6], [-0.6, 3]])
    expected = np.trace(a + b - 2 * sqrtm(a @ b).real)
    first, second = sample(40, np.zeros(2), a), sample(60, np.zeros(2), b, 1)
    assert frechet_distance(first, second, shrink=False) == pytest.approx(expected)
    assert frechet_distance(second, first, shrink=False) == pytest.approx(expected)


@pytest.mark.parametrize("shrink", [True, False])
def test_frechet_distance_invariances(shrink: bool) -> None:
    first, second = normal(40) * np.arange(1, 7), normal(40, seed=1) + 0.5
    distance = frechet_distance(first, second, shrink)
    rotation = np.linalg.qr(normal(6, seed=2))[0]
    assert distance > 0.1
    assert frechet_distance(first, first[::-1], shrink) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first @ rotation + 7, second @ rotation + 7, shrink) == pytest.approx(distance)
    assert frechet_distance(3 * first, 3 * second, shrink) == pytest.approx(9 * distance)


def test_shrinkage_helps_small_sets_and_leaves_large_ones() -> None:
    few = [normal(20, 30, seed) for seed in (0, 1)]
    assert frechet_distance(*few) < 0.5 * frechet_distance(*few, shrink=False)
    scales = np.array([1, 2, 3, 4])
    many = [normal(20_000, 4, seed) * scale for seed, scale in ((0, 1), (1, scales))]
    assert frechet_distance(*many) == pytest.approx(np.square(scales - 1).sum(), rel=0.03)


def test_one_dimension_has_its_closed_form() -> None:
    first, second = sample(9, np.zeros(1), np.eye(1)), sample(9, np.ones(1), 4 * np.eye(1), 1)
    assert frechet_distance(first, second) == pytest.approx(1 + (2 - 1) ** 2)


def test_a_distance_names_what_is_wrong() -> None:
    for first, second in (
        (normal(5, 3), normal(5, 4)),
        (normal(1, 3), normal(5, 3)),
        (normal(5, 3)[0], normal(5, 3)),
    ):
        with pytest.raises(ValueError, match="expected"):
            frechet_distance(first, second)
    with pytest.raises(ValueError, match="NaN"):
        frechet_distance(np.full((4, 2), np.nan), normal(4, 2))


def test_split_distance_of_equals_is_its_floor() -> None:
    pairs = [(normal(120, seed=2 * i), normal(100, seed=2 * i + 1)) for i in range(20)]
    same = [split_distance(*pair, splits=20) for pair in pairs]
    assert {found["n"] for found in same} == {50}
    assert sum(found["low"] < found["floor"] < found["high"] for found in same) >= 17  # 95 % intervals
    other = split_distance(pairs[0][0], pairs[0][1] + 0.7, splits=20)
    assert other["floor"] == same[0]["floor"]
    assert other["floor"] < other["low"] < other["value"] < other["high"]
    assert split_distance(*pairs[0], splits=20) == same[0]


def test_split_interval_is_as_wide_as_theory_says() -> None:
    """For a difference of means, of which the deviation is known: sqrt(2 / n)."""
    first, second = sample(400, np.zeros(1), np.eye(1)), sample(400, np.zeros(1), np.eye(1), 1)
    found = split_distance(first, second, lambda a, b: float(a.mean() - b.mean()), splits=2000)
    assert found["value"] == pytest.approx(0, abs=0.01)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * np.sqrt(2 / 400), rel=0.06)


def test_split_distance_needs_four_of_each() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        split_distance(normal(10), normal(3))


def test_clip_distance_tells_worse_clips_and_names_its_encoder(reaches) -> None:
    real, generated = reaches(40)[0], reaches(20, seed=1)[0]
    (encoder,) = random_clip_encoders(1, reference=real)
    same = frechet_clip_distance(encoder, real, generated, splits=20)
    frozen = frechet_clip_distance(encoder, real, np.repeat(generated[:, :1], 13, axis=1), splits=20)
    assert same["encoder_id"] == frozen["encoder_id"] == encoder.encoder_id
    assert same["n"] == 10
    assert same["floor"] == frozen["floor"]
    assert same["high"] < frozen["low"]


class StandIn(nn.Module):
    """Called as I3D is; its features are the mean colour of the first and of the last frame."""

    def forward(self, x: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        if not (rescale and resize and return_features):
            raise RuntimeError("called in another way")
        if x.shape[1] != 3 or x.shape[2] < 9:
            raise RuntimeError("clip is too short")
        return torch.cat([x[:, :, 0].mean((2, 3)), x[:, :, -1].mean((2, 3))], dim=1)


def test_i3d_fvd_is_the_plain_frechet_distance_of_its_features(tmp_path: Path) -> None:
    torch.jit.script(StandIn()).save(str(tmp_path / "i3d.pt"))
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 200, (2, 10, 12, 1, 1, 3), dtype=np.uint8)
    real, generated = np.broadcast_to(levels, (2, 10, 12, 16, 16, 3))
    found = i3d_fvd(tmp_path / "i3d.pt", real, generated[:9], batch_size=4)
    features = [np.hstack([clips[:, 0].mean((1, 2)), clips[:, -1].mean((1, 2))]) for clips in (real, generated[:9])]
    assert found["fvd"] == pytest.approx(frechet_distance(*features, shrink=False), rel=1e-4)
    assert (found["n_real"], found["n_generated"], found["frames"]) == (10, 9, 12)
    assert len(found["weights"]) == 12
    with pytest.raises(UserError, match="too short"):
        i3d_fvd(tmp_path / "i3d.pt", real[:, :5], generated)


def test_i3d_fvd_needs_its_file(tmp_path: Path) -> None:
    clips = np.zeros((4, 12, 16, 16, 3), np.uint8)
    (tmp_path / "text.pt").write_text("not a network")
    for name in ("text.pt", "missing.pt"):
        with pytest.raises(UserError, match=f"{name}: not a TorchScript file"):
            i3d_fvd(tmp_path / name, clips, clips)


def test_scenes_in_common_do_not_count_as_likeness() -> None:
    """Generated features that equal the real ones are exactly as far as real ones from each other, once paired."""
    real = np.random.default_rng(0).standard_normal((60, 6))
    paired = split_distance(real, real, paired=True)
    assert paired["value"] == paired["floor"]
    assert split_distance(real, real)["value"] < 0.8 * paired["floor"]
    with pytest.raises(ValueError, match="as many real as generated"):
        split_distance(real, real[:50], paired=True)
