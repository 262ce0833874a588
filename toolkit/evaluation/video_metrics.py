"""Picture quality of generated frames against recorded ones. Frames are (T, H, W, 3) uint8."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter


def psnr(generated: np.ndarray, recorded: np.ndarray) -> float:
    """Peak signal-to-noise ratio [dB] over all frames; 100 for equal frames. Raises ValueError if shapes differ."""
    _check(generated, recorded)
    error = np.square(generated.astype(np.float64) - recorded.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / error)) if error > 0 else 100.0


def ssim(generated: np.ndarray, recorded: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), Gaussian window of deviation 1.5, mean over frames and channels.

    Borders are mirrored, not cropped. Raises ValueError if shapes differ.
    """
    _check(generated, recorded)
    x, y = generated.astype(np.float64), recorded.astype(np.float64)

    def blur(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, (0, 1.5, 1.5, 0), truncate=3.5)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(similarity.mean())


def _check(generated: np.ndarray, recorded: np.ndarray) -> None:
    if generated.shape != recorded.shape or generated.ndim != 4 or generated.shape[-1] != 3:
        raise ValueError(f"frames: expected two equal (T, H, W, 3), got {generated.shape} and {recorded.shape}")
