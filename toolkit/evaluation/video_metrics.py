"""Picture quality of generated frames against recorded ones. Frames are (T, H, W, 3) uint8."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d, gaussian_filter


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


def gmsd(generated: np.ndarray, recorded: np.ndarray) -> float:
    """Gradient magnitude similarity deviation (Xue et al. 2014, IEEE Trans. Image Processing 23, eqs. 2 to 6).

    Mean over frames; 0 for equal frames, larger is worse. As published: luminance, 2x2 means at every second pixel,
    Prewitt gradients, constant 170 for 255 grey levels. Perceived structure only: a constant offset costs nothing.
    Borders are mirrored. Raises ValueError if shapes differ or a side has fewer than 2 pixels.
    """
    _check(generated, recorded)
    if min(generated.shape[1:3]) < 2:
        raise ValueError(f"frames: a side of fewer than 2 pixels has no gradient, got {generated.shape}")
    x, y = (_gradient_magnitude(frames) for frames in (generated, recorded))
    similarity = (2 * x * y + 170) / (x**2 + y**2 + 170)  # (T, H/2, W/2)
    return float(similarity.std(axis=(1, 2)).mean())


def _gradient_magnitude(frames: np.ndarray) -> np.ndarray:
    """Prewitt gradients of the halved luminance (ITU-R BT.601): (T, H, W, 3) -> (T, H // 2, W // 2)."""
    grey = frames @ np.array([0.299, 0.587, 0.114])
    height, width = (side // 2 * 2 for side in grey.shape[1:])
    grey = grey[:, :height, :width].reshape(len(grey), height // 2, 2, width // 2, 2).mean((2, 4))
    slope, mean = np.array([-1, 0, 1]), np.ones(3) / 3
    down, right = (correlate1d(correlate1d(grey, slope, axis=a), mean, axis=3 - a) for a in (1, 2))
    return np.hypot(down, right)


def _check(generated: np.ndarray, recorded: np.ndarray) -> None:
    if generated.shape != recorded.shape or generated.ndim != 4 or generated.shape[-1] != 3 or not generated.size:
        shapes = f"{generated.shape} and {recorded.shape}"
        raise ValueError(f"frames: expected two equal (T, H, W, 3) with T > 0, got {shapes}")
