"""Batches for the training loop. Batch k is a pure function of (seed, k), so resuming is exact by design.

For the same reason several processes need not talk: process p of P takes the batches p, p + P, p + 2P, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from toolkit.base.errors import UserError
from toolkit.base.randomness import isolated_randomness
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import check_dimensions
from toolkit.data.episode import ACTION_DIM_IS_PAD, IMAGE, PICTURE_EVERY, SYNTHETIC
from toolkit.data.normalizer import ACTION_FLOOR, STATE_FLOOR, describe
from toolkit.data.seen_scenes import is_hole


class BatchSource(Protocol):
    """What the training loop reads from."""

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step, the same at every call."""


@dataclass
class WeightedDataset:
    """One dataset of a mixture. Its rows may have been padded with zeros to the widths of the mixture."""

    store: ClipStore
    weight: float
    state_dim: int  # width before padding
    action_dim: int
    synthetic: bool = False
    episode_weights: np.ndarray | None = None  # (E,) how often each is drawn; None = in proportion to its length

    @property
    def action_dim_is_pad(self) -> np.ndarray:
        """(A,) True where an action dimension is padding."""
        return np.arange(self.store.actions.shape[1]) >= self.action_dim

    @cached_property
    def picture_every(self) -> np.ndarray:
        """(E,) steps from one picture of an episode to the next; those between repeat an older one."""
        return picture_every(self.store)

    @cached_property
    def shares(self) -> np.ndarray | None:
        """(E,) chances of the episodes, None where every row of the store is drawn alike."""
        if self.episode_weights is None and (self.picture_every == 1).all():
            return None
        weights = 1.0 if self.episode_weights is None else self.episode_weights
        shares = weights * -(-self.store.episode_lengths // self.picture_every)
        return shares / shares.sum()

    @property
    def unpadded(self) -> ClipStore:
        """The store at its own widths, as statistics need it."""
        store = self.store
        return replace(store, states=store.states[:, : self.state_dim], actions=store.actions[:, : self.action_dim])


def picture_every(store: ClipStore) -> np.ndarray:
    """(E,) steps from one picture of an episode to the next. Raises UserError for what is no such number."""
    steps = []
    for episode, metadata in enumerate(store.metadata):
        value: Any = metadata.get(PICTURE_EVERY)
        if is_hole(value):  # recorded episodes, merged with synthetic ones
            value = 1
        value = value.item() if hasattr(value, "item") else value
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 1 <= value < 2**31 or value != int(value):
            raise UserError(
                f"{store.name}: episode {episode}: '{PICTURE_EVERY}' is {value!r:.100}; expected a whole number of "
                "steps, 1 or more"
            )
        steps.append(int(value))
    return np.array(steps)


def make_sources(
    stores: Sequence[ClipStore],
    weights: Sequence[float],
    num_real: int,
    *,
    normalization: str = "shared",
    pad_widths: bool = False,
    state_dim: int | None = None,
    action_dim: int | None = None,
    asked_by: str = "",
) -> list[WeightedDataset]:
    """Sources of one mixture. `pad_widths` pads states and actions with zeros at the end, to the widest or as asked.

    The first `num_real` stores are real, the others synthetic. With `per_source` normalization the 1 % to 99 % range
    of every dimension is moved onto that of the first store that has the dimension, so that robots of other scales
    look alike to the policy; its statistics, and its actions, are then those of the first store.
    Raises UserError for weights, picture sizes or steps a second that do not fit, for widths that differ or are too
    large (`asked_by` tells whose widths they are), and, unless padded, for names of dimensions that differ.
    """
    if not stores or len(weights) != len(stores) or min(weights) < 0 or sum(weights) <= 0:
        raise UserError(f"mixture weights {list(weights)}: expected one non-negative number per source")
    if normalization not in ("shared", "per_source"):
        raise UserError(f"normalization={normalization}: expected shared or per_source")
    for store in stores[1:]:
        if store.frames.shape[1:] != stores[0].frames.shape[1:]:
            ours, first = store.frames.shape[1:], stores[0].frames.shape[1:]
            raise UserError(f"{store.name}: frames are {ours}; {stores[0].name} has {first}: they cannot be mixed")
        if round(store.fps) != round(stores[0].fps):
            raise UserError(
                f"{store.name}: {store.fps:g} steps a second; {stores[0].name} has {stores[0].fps:g}: the same action "
                "would last another time; they cannot be mixed"
            )
    columns: dict[str, list[np.ndarray]] = {}
    for name, wanted, floor in (("states", state_dim, STATE_FLOOR), ("actions", action_dim, ACTION_FLOOR)):
        values = [np.asarray(getattr(store, name)) for store in stores]
        width = wanted or max(v.shape[1] for v in values)
        for store, v in zip(stores, values, strict=True):
            if v.shape[1] > width or (v.shape[1] < width and not pad_widths):
                whose = asked_by or f"the widest of {len(stores)} datasets"
                hint = "" if v.shape[1] > width else "; pad_widths=true fills the missing dimensions with zeros"
                raise UserError(f"{store.name}: {name} are {v.shape[1]} wide; expected {width}, as {whose}{hint}")
        if normalization == "per_source":
            values = _onto_first_range(values, floor)
        columns[name] = [np.pad(v, ((0, 0), (0, width - v.shape[1]))) if v.shape[1] < width else v for v in values]
    if not pad_widths:  # all are of one width by now
        check_dimensions(stores)
    return [
        WeightedDataset(
            replace(store, states=columns["states"][i], actions=columns["actions"][i]),
            float(weights[i]) / sum(weights),
            store.states.shape[1],
            store.actions.shape[1],
            synthetic=i >= num_real,
        )
        for i, store in enumerate(stores)
    ]


def _onto_first_range(values: list[np.ndarray], floor: float) -> list[np.ndarray]:
    reference: dict[int, tuple[float, float]] = {}
    moved = []
    for rows in values:
        found = describe(rows, floor)
        middle, half = (found["q01"] + found["q99"]) / 2, (found["q99"] - found["q01"]) / 2
        for j in range(rows.shape[1]):
            reference.setdefault(j, (middle[j], half[j]))
        to_middle, to_half = np.array([reference[j] for j in range(rows.shape[1])], np.float32).T
        same = np.array_equal(to_middle, middle) and np.array_equal(to_half, half)
        moved.append(rows if same else (rows - middle) / half * to_half + to_middle)
    return moved


class Mixture:
    """Policy batches from weighted sources: first a source is drawn, then one of its rows.

    Of rows that have a picture of their own: a policy acts on what it sees now, and must not learn from older pictures.
    Beside the keys of `ClipStore.policy_batch`: `synthetic` (B,), and where an action was padded
    `action_dim_is_pad` (B, A).
    """

    def __init__(self, sources: Sequence[WeightedDataset], batch_size: int, horizon: int, seed: int) -> None:
        self.sources, self.batch_size, self.horizon, self.seed = sources, batch_size, horizon, seed
        self.weights = np.array([source.weight for source in sources])
        self.padded = any(source.action_dim_is_pad.any() for source in sources)

    def _counts(self, rng: np.random.Generator) -> np.ndarray:
        """Samples per source of one batch."""
        # One stratified draw instead of B independent ones: each batch holds the wanted fraction, up to rounding.
        positions = (np.arange(self.batch_size) + rng.random()) / self.batch_size
        sources = np.searchsorted(np.cumsum(self.weights)[:-1], positions, side="right")
        return np.bincount(sources, minlength=len(self.sources))

    @staticmethod
    def _rows(source: WeightedDataset, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Episodes and their steps, each (count,)."""
        store = source.store
        if source.shares is None:
            rows = rng.integers(len(store.frames), size=count)
            episodes = np.searchsorted(store.episode_starts, rows, side="right") - 1
            return episodes, rows - store.episode_starts[episodes]
        episodes = rng.choice(store.num_episodes, size=count, p=source.shares)
        every = source.picture_every[episodes]
        return episodes, every * rng.integers(-(-store.episode_lengths[episodes] // every))

    def batch(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, step))
        parts = []
        for source, count in zip(self.sources, self._counts(rng), strict=True):
            if count:
                store = source.store
                part = store.policy_batch(*self._rows(source, count, rng), self.horizon)
                part[SYNTHETIC] = np.full(count, source.synthetic, np.float32)
                if self.padded:
                    part[ACTION_DIM_IS_PAD] = np.tile(source.action_dim_is_pad, (count, 1))
                parts.append(part)
        return to_tensors({key: _concatenate([part[key] for part in parts]) for key in parts[0]})

    def fractions(self, steps: int) -> list[float]:
        """Realised share of each source among the samples of the first `steps` batches."""
        counts = [self._counts(np.random.default_rng((self.seed, step))) for step in range(steps)]
        return (np.sum(counts, axis=0) / (steps * self.batch_size)).tolist()


class Augmented:
    """Classical image augmentation: LeRobot's random colours and sharpness, on another source.

    Not its small moves of the picture: at 64 pixels one is about a centimetre, and a moved picture another scene.
    Pictures are transformed in groups of `GROUP`, each in its own way: one by one would take longer than training.
    """

    GROUP = 4
    draws_from_torch = True  # from its only generator, which a step in training draws from too: never both at once

    def __init__(self, source: BatchSource, seed: int) -> None:
        from lerobot.transforms.transforms import ImageTransforms, ImageTransformsConfig

        self.source, self.seed = source, seed
        config = ImageTransformsConfig(enable=True)
        del config.tfs["affine"]
        self.transforms = ImageTransforms(config)

    def batch(self, step: int) -> dict[str, Any]:
        batch = self.source.batch(step)
        with isolated_randomness(self.seed * 1_000_003 + step):
            images = torch.cat([self.transforms(group) for group in batch[IMAGE].split(self.GROUP)])
        return {**batch, IMAGE: images.clamp(0, 1)}


class GeneratorClips:
    """Generator batches: windows from the start of an episode, or from anywhere in it (`random_start`).

    frame_stride: rows from one frame to the next. labelled: (E,) True for episodes whose actions may be used; batches
    then say so under has_actions (B,). num_joint: how many of so many clips of a batch, the first ones, are pairs of
    video and actions; the others are plans, which need labels, so they come from labelled episodes alone. shares: (E,)
    how often each episode is drawn, sum 1; None for all alike.
    """

    def __init__(
        self,
        store: ClipStore,
        batch_size: int,
        num_frames: int,
        seed: int,
        random_start: bool,
        frame_stride: int = 1,
        labelled: np.ndarray | None = None,
        shares: np.ndarray | None = None,
        num_joint: Callable[[int], int] = lambda size: size,
    ) -> None:
        self.store, self.batch_size, self.num_frames, self.seed = store, batch_size, num_frames, seed
        self.random_start, self.frame_stride, self.labelled, self.shares = random_start, frame_stride, labelled, shares
        self.num_joint = num_joint

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Episodes and starts of a step, each (B,)."""
        rng = np.random.default_rng((self.seed, step))
        episodes = self._draw_episodes(rng, self.batch_size)
        rows = (self.num_frames - 1) * self.frame_stride + 1
        room = np.maximum(self.store.episode_lengths[episodes] - rows, 0)
        starts = rng.integers(room + 1) if self.random_start else np.zeros_like(room)
        return episodes, starts

    def _draw_episodes(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """(size,) episodes. Pairs carry labels in proportion, rounded up, so that a video always hears some actions."""
        if self.labelled is None and self.shares is None:
            return rng.integers(self.store.num_episodes, size=size)
        if self.labelled is None:
            return rng.choice(self.store.num_episodes, size=size, p=self.shares)
        shares = np.full(self.store.num_episodes, 1 / self.store.num_episodes) if self.shares is None else self.shares
        chances = shares * self.labelled
        share, num_joint = chances.sum(), self.num_joint(size)
        num_labelled = min(num_joint, math.ceil(share * num_joint - 1e-9))
        with_actions = rng.choice(len(shares), size - num_joint + num_labelled, p=chances / share)
        pairs = with_actions[:num_labelled]
        if num_labelled < num_joint:
            others = shares - chances
            without = rng.choice(len(shares), num_joint - num_labelled, p=others / others.sum())
            pairs = rng.permutation(np.concatenate([pairs, without]))
        return np.concatenate([pairs, with_actions[num_labelled:]])

    def window(
        self, episodes: np.ndarray, starts: np.ndarray | None = None, with_frames: bool = True
    ) -> dict[str, Any]:
        """`ClipStore.generator_batch` of these clips; at the starts of the episodes unless told."""
        starts = np.zeros_like(episodes) if starts is None else starts
        batch = self.store.generator_batch(episodes, starts, self.num_frames, self.frame_stride, with_frames)
        return batch if self.labelled is None else {**batch, "has_actions": self.labelled[episodes]}

    def batch(self, step: int) -> dict[str, Any]:
        return to_tensors(self.window(*self.draw(step)))


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
        steps = 1 + chosen[..., None] * self.stride + np.arange(self.stride)  # (B, groups, stride), in frames
        steps = np.concatenate([np.zeros((len(episodes), 1), dtype=np.int64), steps.reshape(len(episodes), -1)], axis=1)
        last = store.episode_lengths[episodes][:, None] - 1
        steps = starts[:, None] + clips.frame_stride * steps
        rows = store.episode_starts[episodes][:, None] + np.minimum(steps, last)
        return {"frames": torch.from_numpy(store.frames[rows])}


class LatentClips:
    """Generator batches whose frames were encoded beforehand: latents (E, C, T, h, w), one window per episode."""

    def __init__(self, clips: GeneratorClips, latents: np.ndarray, with_frames: bool = False) -> None:
        self.clips, self.latents, self.with_frames = clips, latents, with_frames

    def batch(self, step: int) -> dict[str, Any]:
        episodes, starts = self.clips.draw(step)
        batch = self.clips.window(episodes, starts, self.with_frames)
        return {**to_tensors(batch), "latents": torch.from_numpy(np.array(self.latents[episodes]))}


def to_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """NumPy arrays as tensors that own their memory; everything else unchanged."""
    return {k: torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else v for k, v in batch.items()}


def _concatenate(parts: list[Any]) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [item for part in parts for item in part]
