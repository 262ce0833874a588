"""Batches for the training loop. Batch k is a pure function of (seed, k), so resuming is exact by design."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from toolkit.data.clips import ClipStore
from toolkit.errors import UserError


class BatchSource(Protocol):
    """What the training loop reads from."""

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step, the same at every call."""


def check_compatible(stores: Sequence[ClipStore]) -> None:
    """Raise UserError if state, action or picture shapes differ between sources."""
    for store in stores[1:]:
        for name in ("states", "actions", "frames"):
            ours, first = getattr(store, name).shape[1:], getattr(stores[0], name).shape[1:]
            if ours != first:
                raise UserError(f"{store.path}: {name} are {ours}; {stores[0].path} has {first}: they cannot be mixed")


class Mixture:
    """Policy batches from weighted sources: first a source is drawn, then one of its rows, all alike."""

    def __init__(
        self, stores: Sequence[ClipStore], weights: Sequence[float], batch_size: int, horizon: int, seed: int
    ) -> None:
        check_compatible(stores)
        if not stores or min(weights) < 0 or sum(weights) <= 0:
            raise UserError(f"mixture weights {list(weights)}: expected one non-negative number per source")
        self.stores, self.batch_size, self.horizon, self.seed = stores, batch_size, horizon, seed
        self.weights = np.array(weights) / sum(weights)

    def _counts(self, rng: np.random.Generator) -> np.ndarray:
        """Samples per source of one batch."""
        # One stratified draw instead of B independent ones: each batch holds the wanted fraction, up to rounding.
        positions = (np.arange(self.batch_size) + rng.random()) / self.batch_size
        sources = np.searchsorted(np.cumsum(self.weights)[:-1], positions, side="right")
        return np.bincount(sources, minlength=len(self.stores))

    def batch(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, step))
        parts = []
        for store, count in zip(self.stores, self._counts(rng), strict=True):
            if count:
                rows = rng.integers(len(store.frames), size=count)
                episodes = np.searchsorted(store.episode_starts, rows, side="right") - 1
                parts.append(store.policy_batch(episodes, rows - store.episode_starts[episodes], self.horizon))
        return to_tensors({key: _concatenate([part[key] for part in parts]) for key in parts[0]})

    def fractions(self, steps: int) -> list[float]:
        """Realised share of each source among the samples of the first `steps` batches."""
        counts = [self._counts(np.random.default_rng((self.seed, step))) for step in range(steps)]
        return (np.sum(counts, axis=0) / (steps * self.batch_size)).tolist()


class GeneratorClips:
    """Generator batches: windows from the start of an episode, or from anywhere in it (`random_start`)."""

    def __init__(self, store: ClipStore, batch_size: int, num_frames: int, seed: int, random_start: bool) -> None:
        self.store, self.batch_size, self.num_frames, self.seed = store, batch_size, num_frames, seed
        self.random_start = random_start

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Episodes and starts of a step, each (B,)."""
        rng = np.random.default_rng((self.seed, step))
        episodes = rng.integers(self.store.num_episodes, size=self.batch_size)
        room = np.maximum(self.store.episode_lengths[episodes] - self.num_frames, 0)
        starts = rng.integers(room + 1) if self.random_start else np.zeros_like(room)
        return episodes, starts

    def batch(self, step: int) -> dict[str, Any]:
        return to_tensors(self.store.generator_batch(*self.draw(step), self.num_frames))


class TokenizerClips:
    """Tokenizer batches: the first frame of a window and a few of its frame groups, chosen at random.

    Few groups of many episodes teach more than all groups of few: neighbouring frames are nearly alike.
    """

    def __init__(self, clips: GeneratorClips, temporal_stride: int, groups: int) -> None:
        self.clips, self.stride, self.groups = clips, temporal_stride, groups

    def batch(self, step: int) -> dict[str, Any]:
        episodes, starts = self.clips.draw(step)
        store, clips = self.clips.store, self.clips
        rng = np.random.default_rng((clips.seed, step, 1))
        chosen = rng.integers((clips.num_frames - 1) // self.stride, size=(len(episodes), self.groups))
        steps = 1 + chosen[..., None] * self.stride + np.arange(self.stride)  # (B, groups, stride)
        steps = np.concatenate([np.zeros((len(episodes), 1), dtype=np.int64), steps.reshape(len(episodes), -1)], axis=1)
        last = store.episode_lengths[episodes][:, None] - 1
        rows = store.episode_starts[episodes][:, None] + np.minimum(starts[:, None] + steps, last)
        return {"frames": torch.from_numpy(store.frames[rows])}


class LatentClips:
    """Generator batches whose frames were encoded beforehand: latents (E, C, T, h, w), one window per episode."""

    def __init__(self, clips: GeneratorClips, latents: np.ndarray) -> None:
        self.clips, self.latents = clips, latents

    def batch(self, step: int) -> dict[str, Any]:
        episodes, starts = self.clips.draw(step)
        batch = self.clips.store.generator_batch(episodes, starts, self.clips.num_frames, with_frames=False)
        return {**to_tensors(batch), "latents": torch.from_numpy(np.array(self.latents[episodes]))}


def to_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """NumPy arrays as tensors that own their memory; everything else unchanged."""
    return {k: torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else v for k, v in batch.items()}


def _concatenate(parts: list[Any]) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [item for part in parts for item in part]
