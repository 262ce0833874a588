"""Picture quality on cases with known answers."""

import numpy as np
import pytest

from toolkit.evaluation.video_metrics import psnr, ssim


def noise(seed: int = 0, size: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, size, size, 3), dtype=np.uint8)


def test_psnr_of_a_constant_offset() -> None:
    frames = np.full((2, 8, 8, 3), 100, np.uint8)
    assert psnr(frames + 10, frames) == pytest.approx(20 * np.log10(255 / 10))
    assert psnr(frames - 10, frames) == pytest.approx(20 * np.log10(255 / 10))  # no wrap-around of uint8
    assert psnr(frames, frames) == 100


def test_ssim_of_flat_pictures_is_its_luminance_term() -> None:
    first, second = np.full((1, 16, 16, 3), 100, np.uint8), np.full((1, 16, 16, 3), 150, np.uint8)
    constant = (0.01 * 255) ** 2
    assert ssim(first, second) == pytest.approx((2 * 100 * 150 + constant) / (100**2 + 150**2 + constant))


def test_ssim_matches_its_definition() -> None:
    """Window by window, as Wang et al. 2004 write it: 11x11 Gaussian weights of deviation 1.5, mirrored borders."""
    x, y = noise(0, 14)[:1], noise(1, 14)[:1]
    reach = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    weights = (np.outer(reach, reach) / reach.sum() ** 2)[..., None]
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    wide_x, wide_y = (np.pad(f[0].astype(float), ((5, 5), (5, 5), (0, 0)), mode="symmetric") for f in (x, y))
    values = []
    for row, column in np.ndindex(14, 14):
        a, b = (wide[row : row + 11, column : column + 11] for wide in (wide_x, wide_y))
        mean_a, mean_b = (weights * a).sum((0, 1)), (weights * b).sum((0, 1))
        var_a, var_b = (weights * (a - mean_a) ** 2).sum((0, 1)), (weights * (b - mean_b) ** 2).sum((0, 1))
        covariance = (weights * (a - mean_a) * (b - mean_b)).sum((0, 1))
        value = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        values.append(value / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))
    assert ssim(x, y) == pytest.approx(np.mean(values), abs=1e-9)


def test_ssim_orders_distortions() -> None:
    frames = np.repeat(np.repeat(noise(0, 12), 4, axis=1), 4, axis=2)
    rng = np.random.default_rng(5)
    slight, strong = (
        np.clip(frames + scale * rng.standard_normal(frames.shape), 0, 255).astype(np.uint8) for scale in (8, 60)
    )
    assert ssim(frames, frames) == pytest.approx(1)
    assert 1 > ssim(slight, frames) > ssim(strong, frames) > 0
    assert ssim(slight, frames) == pytest.approx(ssim(frames, slight))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_shapes_must_agree(metric) -> None:
    with pytest.raises(ValueError, match="equal"):
        metric(noise(), noise()[:1])
