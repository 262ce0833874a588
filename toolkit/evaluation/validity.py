"""Validity card of a clip distance: real clips, made worse step by step, must score worse step by step.

Shapes: clips (B, F, H, W, 3) uint8; features (B, D).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import kendalltau

from toolkit.evaluation.clip_encoder import ClipEncoder, encode_clips
from toolkit.evaluation.distribution import Distance, frechet_distance

Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def blur(clips: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur within each frame, deviation in pixels."""
    return gaussian_filter(clips, (0, 0, deviation, deviation, 0))


def noise(clips: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise, deviation in grey levels of 255."""
    noisy = np.empty_like(clips)
    for i, clip in enumerate(clips):  # one clip at a time: floats take four times the room
        added = clip + deviation * rng.standard_normal(clip.shape, dtype=np.float32)
        noisy[i] = np.clip(np.rint(added), 0, 255).astype(np.uint8)
    return noisy


def freeze(clips: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """The last `share` of the frames show the frame before them; 1 = the first frame throughout."""
    length = clips.shape[1]
    return clips[:, np.minimum(np.arange(length), length - 1 - round(share * (length - 1)))]


def shuffle(clips: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A `share` of the frames of each clip, chosen at random, in an order in which none stays where it was."""
    length = clips.shape[1]
    count = max(2, round(share * length))
    shuffled = clips.copy()
    for before, after in zip(clips, shuffled, strict=True):
        chosen = rng.permutation(length)[:count]  # in random order, so that one step along it leaves none in place
        after[chosen] = before[np.roll(chosen, 1)]
    return shuffled


def reverse(clips: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A `share` of the clips run backwards."""
    chosen = rng.permutation(len(clips))[: round(share * len(clips))]
    reversed_ = clips.copy()
    reversed_[chosen] = clips[chosen, ::-1]
    return reversed_


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...], str]] = {
    "blur": (blur, (0.5, 1, 2, 4), "px"),
    "noise": (noise, (6, 12, 24, 48), "grey levels"),
    "freeze": (freeze, (0.25, 0.5, 0.75, 1), "of frames"),
    "shuffle": (shuffle, (0.25, 0.5, 0.75, 1), "of frames"),
    "reverse": (reverse, (0.25, 0.5, 0.75, 1), "of clips"),
}


def validity_card(
    encoder: ClipEncoder,
    clips: np.ndarray,
    distance: Distance = frechet_distance,
    *,
    splits: int = 20,
    seed: int = 0,
) -> dict[str, Any]:
    """Distance of corrupted real clips to the uncorrupted other half, for every corruption and strength.

    clips: (B, F, H, W, 3) uint8, real, not those the encoder was trained on; B >= 4. Returns encoder_id, n (clips in
    a half), floor (uncorrupted against uncorrupted) and rows, one per corruption: corruption, unit, strengths,
    distances (means over random halves, the same for all) and monotone: whether floor and distances only rise.
    Raises ValueError as `encode_clips`, and for fewer than four clips.
    """
    features = encode_clips(encoder, clips)
    floor = _half_distance(features, features, distance, splits, seed)
    rows = []
    for name, (corrupt, strengths, unit) in CORRUPTIONS.items():
        distances = []
        for strength in strengths:
            # The same draws at every strength: what is corrupted at one stays so at the next.
            corrupted = encode_clips(encoder, corrupt(clips, strength, np.random.default_rng(seed)))
            distances.append(_half_distance(features, corrupted, distance, splits, seed))
        monotone = bool((np.diff([floor, *distances]) > 0).all())
        rows.append(
            {
                "corruption": name,
                "unit": unit,
                "strengths": list(strengths),
                "distances": distances,
                "monotone": monotone,
            }
        )
    return {"encoder_id": encoder.encoder_id, "n": len(clips) // 2, "floor": floor, "rows": rows}


def rank_agreement(distances: np.ndarray) -> dict[str, float]:
    """How alike encoders rank systems: Kendall's tau-b (Kendall 1945) of every two of them.

    distances: (E, S), one row per encoder, one column per system or corruption. Returns mean and lowest tau: 1 = the
    same order, 0 = unrelated, -1 = opposite. Raises ValueError for fewer than two encoders or systems.
    """
    if distances.ndim != 2 or min(distances.shape) < 2:
        raise ValueError(f"distances: expected (E, S) with E, S >= 2, got {distances.shape}")
    taus = [float(kendalltau(a, b).statistic) for a, b in itertools.combinations(distances, 2)]
    return {"mean": float(np.mean(taus)), "lowest": min(taus)}


def _half_distance(real: np.ndarray, corrupted: np.ndarray, distance: Distance, splits: int, seed: int) -> float:
    """Mean distance of half of `real` to the other half as corrupted; rows of both are the same clips."""
    rng, half = np.random.default_rng(seed), len(real) // 2
    if half < 2:
        raise ValueError(f"need at least 4 clips, got {len(real)}")
    orders = (rng.permutation(len(real)) for _ in range(splits))
    return float(np.mean([distance(real[o[:half]], corrupted[o[half : 2 * half]]) for o in orders]))
