"""Batches for the training loop. The batch of a step is a pure function of (seed, step), so resuming is exact.

For the same reason several processes need not talk: each draws the whole batch of a step, and reads its part of it.
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
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import check_dimensions
from toolkit.data.episode import ACTION_DIM_IS_PAD, ACTION_IS_PAD, PICTURE_EVERY, SYNTHETIC
from toolkit.data.normalizer import ACTION_FLOOR, STATE_FLOOR, describe
from toolkit.data.seen_scenes import is_hole

WHOLE = "whole"  # key of a part of a batch: what is known of the whole one
ROWS, SIZE = "rows", "size"  # keys in there: the clips of this part among all, and how many these are
RNG = "rng"  # key of a batch in training: torch.Generator of what is drawn for the whole batch of a step


@dataclass(frozen=True)
class Part:
    """Every `count`-th clip of the batch of a step, from clip `index` on; the batch is `count` times as large."""

    index: int = 0
    count: int = 1

    def rows(self, size: int) -> range:
        """Of a whole batch of `size` clips, those of this part."""
        return range(self.index, size, self.count)

    def marked(self, batch: dict[str, Any], size: int, **known: np.ndarray) -> dict[str, Any]:
        """This part of a batch, with its place in the whole one, and what is known of all `size` clips of that.

        Without these keys a batch is a whole one.
        """
        if self.count == 1:
            return batch
        return {**batch, WHOLE: {ROWS: self.rows(size), SIZE: size, **to_tensors(known)}}


ALL = Part()


class BatchSource(Protocol):
    """What the training loop reads from."""

    def batch(self, step: int, part: Part = ALL) -> dict[str, Any]:
        """A part of the batch of a step, the same at every call."""


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
                "would last another time. resample_fps= lowers all to one rate"
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

    batch_size: clips of a part; with several parts the batch of a step has so many for each.
    actions, observations: see `ClipStore.policy_batch`. drop_last: steps at the end of an episode that are not drawn.
    Of rows that have a picture of their own: a policy acts on what it sees now, and must not learn from older pictures.
    Beside the keys of `ClipStore.policy_batch`: `synthetic` (B,), and where an action was padded
    `action_dim_is_pad` (B, A).
    """

    def __init__(
        self,
        sources: Sequence[WeightedDataset],
        batch_size: int,
        actions: int | Sequence[int],
        seed: int,
        observations: Sequence[int] = (0,),
        drop_last: int = 0,
    ) -> None:
        self.sources, self.batch_size, self.seed, self.drop_last = sources, batch_size, seed, drop_last
        self.actions = range(actions) if isinstance(actions, int) else list(actions)
        self.observations = list(observations)
        self.weights = np.array([source.weight for source in sources])
        self.padded = any(source.action_dim_is_pad.any() for source in sources)

    def _counts(self, rng: np.random.Generator, parts: int) -> np.ndarray:
        """Samples per source of one batch."""
        # One stratified draw instead of B independent ones: each batch holds the wanted fraction, up to rounding.
        size = parts * self.batch_size
        positions = (np.arange(size) + rng.random()) / size
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

    def _before_the_end(self, source: WeightedDataset, episodes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Steps drawn of whole episodes, spread over what is left of these without their last ones."""
        every = source.picture_every[episodes]
        lengths = source.store.episode_lengths[episodes]
        pictures, left = -(-lengths // every), -(-np.maximum(1, lengths - self.drop_last) // every)
        return every * (steps // every * left // pictures)

    def batch(self, step: int, part: Part = ALL) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, step))
        rows, first = np.array(part.rows(part.count * self.batch_size)), 0
        found: list[dict[str, Any]] = []
        known: dict[str, list[np.ndarray]] = {ACTION_IS_PAD: [], ACTION_DIM_IS_PAD: []}  # of all samples
        for source, count in zip(self.sources, self._counts(rng, part.count), strict=True):
            if count:
                episodes, steps = self._rows(source, count, rng)
                if self.drop_last:
                    steps = self._before_the_end(source, episodes, steps)
                own = rows[(rows >= first) & (rows < first + count)] - first
                first += count
                around = self.actions, self.observations
                samples = source.store.policy_batch(episodes[own], steps[own], *around)
                samples[SYNTHETIC] = np.full(len(own), source.synthetic, np.float32)
                known[ACTION_IS_PAD].append(source.store.outside(episodes, steps, self.actions))
                if self.padded:
                    known[ACTION_DIM_IS_PAD].append(np.tile(source.action_dim_is_pad, (count, 1)))
                    samples[ACTION_DIM_IS_PAD] = known[ACTION_DIM_IS_PAD][-1][own]
                found.append(samples)
        batch = to_tensors({key: _concatenate([samples[key] for samples in found]) for key in found[0]})
        return part.marked(batch, first, **{key: np.concatenate(value) for key, value in known.items() if value})

    def fractions(self, steps: int, parts: int = 1) -> list[float]:
        """Realised share of each source among the samples of the first `steps` batches."""
        counts = [self._counts(np.random.default_rng((self.seed, step)), parts) for step in range(steps)]
        return (np.sum(counts, axis=0) / (steps * parts * self.batch_size)).tolist()


class GeneratorClips:
    """Generator batches: windows from the start of an episode, or from anywhere in it (`random_start`).

    batch_size: clips of a part; with several parts the batch of a step has so many for each.
    frame_stride: rows from one frame to the next. labelled: (E,) True for episodes whose actions may be used; batches
    then say so under has_actions (B,). num_joint: how many of so many clips of a batch, the first ones, are pairs of
    video and actions; the others are plans, which need labels, so they come from labelled episodes alone. shares: (E,)
    how often each episode is drawn, sum 1; None for all alike. start_every: rows from one start to the next, where they
    may be anywhere.
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
        start_every: int = 1,
    ) -> None:
        self.store, self.batch_size, self.num_frames, self.seed = store, batch_size, num_frames, seed
        self.random_start, self.frame_stride, self.labelled, self.shares = random_start, frame_stride, labelled, shares
        self.num_joint, self.start_every = num_joint, start_every

    @property
    def windows_of(self) -> np.ndarray:
        """(E,) windows of each episode that may be drawn."""
        if not self.random_start:
            return np.ones(self.store.num_episodes, int)
        return self._room(np.arange(self.store.num_episodes)) // self.start_every + 1

    def _room(self, episodes: np.ndarray) -> np.ndarray:
        """Rows of these episodes that a window leaves."""
        return np.maximum(self.store.episode_lengths[episodes] - (self.num_frames - 1) * self.frame_stride - 1, 0)

    def draw(self, step: int, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Episodes and starts of the batch of a step that has so many parts, each (B * parts,)."""
        rng = np.random.default_rng((self.seed, step))
        episodes = self._draw_episodes(rng, self.batch_size * parts)
        room = self._room(episodes) // self.start_every
        starts = rng.integers(room + 1) if self.random_start else np.zeros_like(room)
        return episodes, self.start_every * starts

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

    def batch(self, step: int, part: Part = ALL) -> dict[str, Any]:
        episodes, starts = self.draw(step, part.count)
        own = np.array(part.rows(len(episodes)))
        return self.part_of(part, episodes, to_tensors(self.window(episodes[own], starts[own])))

    def part_of(self, part: Part, episodes: np.ndarray, batch: dict[str, Any]) -> dict[str, Any]:
        """A part of the batch of these episodes with what is known of all of them."""
        known = {} if self.labelled is None else {"has_actions": self.labelled[episodes]}
        return part.marked(batch, len(episodes), **known)


class TokenizerClips:
    """Tokenizer batches: the first frame of a window and a few of its frame groups, chosen at random.

    Few groups of many episodes teach more than all groups of few: neighbouring frames are nearly alike.
    """

    def __init__(self, clips: GeneratorClips, temporal_stride: int, groups: int) -> None:
        self.clips, self.stride, self.groups = clips, temporal_stride, groups

    def batch(self, step: int, part: Part = ALL) -> dict[str, Any]:
        episodes, starts = self.clips.draw(step, part.count)
        store, clips, own = self.clips.store, self.clips, np.array(part.rows(len(episodes)))
        rng = np.random.default_rng((clips.seed, step, 1))
        chosen = rng.integers((clips.num_frames - 1) // self.stride, size=(len(episodes), self.groups))
        steps = 1 + chosen[..., None] * self.stride + np.arange(self.stride)  # (B, groups, stride), in frames
        steps = np.concatenate([np.zeros((len(episodes), 1), dtype=np.int64), steps.reshape(len(episodes), -1)], axis=1)
        last = store.episode_lengths[episodes][:, None] - 1
        steps = starts[:, None] + clips.frame_stride * steps
        rows = store.episode_starts[episodes][:, None] + np.minimum(steps, last)
        return part.marked({"frames": torch.from_numpy(store.frames[rows[own]])}, len(episodes))


def to_tensors(batch: dict[str, Any]) -> dict[str, Any]:
    """NumPy arrays as tensors that own their memory; everything else unchanged."""
    return {k: torch.from_numpy(np.ascontiguousarray(v)) if isinstance(v, np.ndarray) else v for k, v in batch.items()}


def _concatenate(parts: list[Any]) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [item for part in parts for item in part]
