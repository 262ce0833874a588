"""Picture quality on cases with known answers."""

import numpy as np
import pytest

from toolkit.evaluation.video_metrics import gmsd, psnr, ssim


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


@pytest.mark.parametrize("metric", [psnr, ssim, gmsd])
def test_shapes_must_agree(metric) -> None:
    with pytest.raises(ValueError, match="equal"):
        metric(noise(), noise()[:1])


def test_gmsd_matches_its_definition() -> None:
    """Pixel by pixel, as Xue et al. 2014 write it: halved, Prewitt gradients of a third, constant 170."""
    frames = [noise(seed, 12)[:1] for seed in (0, 1)]
    vertical = np.array([[1, 1, 1], [0, 0, 0], [-1, -1, -1]]) / 3
    gradients = []
    for frame in frames:
        grey = 0.299 * frame[0, ..., 0] + 0.587 * frame[0, ..., 1] + 0.114 * frame[0, ..., 2]
        halved = np.array([[grey[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean() for c in range(6)] for r in range(6)])
        wide = np.pad(halved, 1, mode="symmetric")
        windows = [[wide[r : r + 3, c : c + 3] for c in range(6)] for r in range(6)]
        gradients.append([[np.hypot((w * vertical).sum(), (w * vertical.T).sum()) for w in row] for row in windows])
    x, y = map(np.array, gradients)
    assert gmsd(*frames) == pytest.approx(np.std((2 * x * y + 170) / (x * x + y * y + 170)))


def test_gmsd_orders_distortions_and_ignores_an_offset() -> None:
    frames = 40 + np.repeat(np.repeat(noise(0, 12) // 2, 4, axis=1), 4, axis=2)
    rng = np.random.default_rng(5)
    slight, strong = (
        np.clip(frames + scale * rng.standard_normal(frames.shape), 0, 255).astype(np.uint8) for scale in (8, 60)
    )
    assert gmsd(frames, frames) == 0
    assert gmsd(frames + 20, frames) == pytest.approx(0, abs=1e-9)
    assert 0 < gmsd(slight, frames) < gmsd(strong, frames)
    with pytest.raises(ValueError, match="2 pixels"):
        gmsd(frames[:, :1], frames[:, :1])
