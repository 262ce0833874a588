"""Distances between two sets of feature vectors, and between two sets of clips through an encoder.

Shapes: features (N, D) float, clips (N, F, H, W, 3) uint8. A distance that is not of I3D features is not an FVD.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toolkit.base.errors import UserError, first_line
from toolkit.evaluation.clip_encoder import ClipEncoder, encode_clips

Distance = Callable[[np.ndarray, np.ndarray], float]


def frechet_distance(first: np.ndarray, second: np.ndarray, shrink: bool = True) -> float:
    """Squared Frechet distance of Gaussians with the features' means and covariances (Dowson and Landau 1982).

    first: (N, D), second: (M, D). With `shrink`, each covariance is drawn towards a multiple of the identity by
    oracle approximating shrinkage (Chen et al. 2010, IEEE Trans. Signal Processing 58, eq. 23), which vanishes as N
    grows; it tames the noise where N is not far above D. Rotations and shifts of both sets change nothing.
    Raises ValueError unless both are (N, D) of the same D, finite, with N >= 2.
    """
    first, second = _checked(first, second)
    a, b = (_covariance(features, shrink) for features in (first, second))
    # tr((A^1/2 B A^1/2)^1/2) is the sum of the singular values of A^1/2 B^1/2: no root of a non-symmetric matrix.
    overlap = np.linalg.svd(_root(a) @ _root(b), compute_uv=False).sum()
    shift = np.square(first.mean(0) - second.mean(0)).sum()
    return float(max(0.0, shift + np.trace(a) + np.trace(b) - 2 * overlap))


def split_distance(
    real: np.ndarray,
    generated: np.ndarray,
    distance: Distance = frechet_distance,
    *,
    confidence: float = 0.95,
    splits: int = 50,
    seed: int = 0,
    paired: bool = False,
) -> dict[str, float]:
    """Distance of generated features to real ones beside the distance of real ones to each other, at equal numbers.

    real: (N, D), generated: (M, D). Every split draws n = min(N, M) // 2 of the generated and two disjoint sets of n
    real ones. Returns value (real to generated) and floor (real to real), both means over splits, the bounds low and
    high of value, and n. The bounds are quantiles over splits: half-samples without replacement spread like samples
    of the full size (delete-half jackknife, Shao and Wu 1989), and hold no duplicates, which bias both distances.
    paired: row k of both is of the same scene; then the generated half is of other scenes than the real one, as the
    two real halves of the floor are: what scenes have in common would count as likeness.
    Raises ValueError as `frechet_distance`, and if there are fewer than four of either.
    """
    n = min(len(real), len(generated)) // 2
    if paired and len(real) != len(generated):
        raise ValueError(f"paired: expected as many real as generated, got {len(real)} and {len(generated)}")
    if n < 2:
        raise ValueError(f"need at least 4 real and 4 generated features, got {len(real)} and {len(generated)}")
    rng = np.random.default_rng(seed)
    values, floors = [], []
    for _ in range(splits):
        order = rng.permutation(len(real))
        half, other = real[order[:n]], real[order[n : 2 * n]]
        chosen = order[n : 2 * n] if paired else rng.permutation(len(generated))[:n]
        values.append(distance(half, generated[chosen]))
        floors.append(distance(half, other))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {
        "value": float(np.mean(values)),
        "low": float(low),
        "high": float(high),
        "floor": float(np.mean(floors)),
        "n": n,
    }


def frechet_clip_distance(
    encoder: ClipEncoder,
    real: np.ndarray,
    generated: np.ndarray,
    *,
    splits: int = 50,
    seed: int = 0,
    paired: bool = False,
) -> dict[str, Any]:
    """`split_distance` of the encoder's features by `frechet_distance`, and the `encoder_id`.

    real: (N, F, H, W, 3) uint8, generated: (M, F', H', W', 3) uint8. Values of other encoders or another n are not
    comparable. Raises ValueError as `split_distance` and `encode_clips`.
    """
    features = encode_clips(encoder, real), encode_clips(encoder, generated)
    return {**split_distance(*features, splits=splits, seed=seed, paired=paired), "encoder_id": encoder.encoder_id}


def i3d_fvd(path: str | Path, real: np.ndarray, generated: np.ndarray, batch_size: int = 8) -> dict[str, Any]:
    """Frechet video distance (Unterthiner et al. 2018, arXiv 1812.01717) by an I3D network on disk.

    path: TorchScript file called as StyleGAN-V's `i3d_torchscript.pt`: (B, 3, F, H, W) in [0, 255] and
    `rescale=True, resize=True, return_features=True` give (B, D). TorchScript is code: load only a file you trust.
    real, generated: (N, F, H, W, 3) uint8. Returns fvd (covariances as they are, without shrinkage), n_real,
    n_generated, frames, and weights, 12 hexadecimal digits of the file's SHA-256. FVD falls as n grows: compare at
    equal n only. Raises UserError if the file is missing, is no TorchScript or cannot take the clips; ValueError as
    `frechet_distance`.
    """
    (first, weights), (second, _) = (i3d_features(path, clips, batch_size) for clips in (real, generated))
    return {
        "fvd": frechet_distance(first, second, shrink=False),
        "n_real": len(real),
        "n_generated": len(generated),
        "frames": real.shape[1],
        "weights": weights,
    }


def i3d_features(path: str | Path, clips: np.ndarray, batch_size: int = 8) -> tuple[np.ndarray, str]:
    """Features (N, D) of clips (N, F, H, W, 3) uint8 as `i3d_fvd` compares them, and 12 digits of the file's SHA-256.

    I3D itself needs nine frames or more. Raises UserError as `i3d_fvd`.
    """
    try:
        weights = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: not a TorchScript file of I3D ({first_line(error)})") from error
    x = torch.from_numpy(np.array(clips)).permute(0, 4, 1, 2, 3)  # (N, 3, F, H, W)
    try:
        with torch.no_grad():
            parts = [network(b.float(), rescale=True, resize=True, return_features=True) for b in x.split(batch_size)]
    except (RuntimeError, torch.jit.Error) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{path}: cannot encode clips {clips.shape} ({reason})") from error
    return torch.cat(parts).numpy(), weights


def _checked(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(f"features: expected (N, D) and (M, D) with N, M >= 2, got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("features: NaN or infinite values")
    return first.astype(np.float64), second.astype(np.float64)


def _covariance(features: np.ndarray, shrink: bool) -> np.ndarray:
    """(N, D) -> (D, D)."""
    covariance = np.atleast_2d(np.cov(features, rowvar=False))
    n, d = features.shape
    trace, squares = np.trace(covariance), np.square(covariance).sum()
    spread = (n + 1 - 2 / d) * (squares - trace**2 / d)
    if not shrink or spread <= 0:  # already a multiple of the identity
        return covariance
    weight = min(1.0, ((1 - 2 / d) * squares + trace**2) / spread)
    return (1 - weight) * covariance + weight * trace / d * np.eye(d)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root of a positive semi-definite matrix (D, D)."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
