"""Which recorded episodes a training does not see, so that its loss can be measured on them, and windows of these."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit.data.batches import GeneratorClips
from toolkit.data.clips import ClipStore
from toolkit.data.seen_scenes import scene_of

LEAST_EPISODES = 5  # recorded ones; of fewer none is held out
LEAST_WINDOWS = 16  # of a batch that the loss is measured on
GOLDEN = 0.6180339887498949  # its multiples, modulo 1, fill the unit interval evenly

Place = tuple[int, int]  # number of a store, episode in it


@dataclass(frozen=True)
class _Group:
    """Episodes that are held out together or not at all. instructions: of each; whole: no further one belongs."""

    members: list[Place]
    instructions: list[str]
    whole: bool


def hold_out(stores: Sequence[ClipStore], takes_part: Sequence[bool], fraction: float, seed: int) -> list[np.ndarray]:
    """Of each store (E,) True for the episodes to hold out: the share `fraction` of the recorded ones, whole.

    takes_part: False for stores of which none is held out, as synthetic ones; an episode that is marked as synthetic
    never is. The choice depends on `seed` alone. Each instruction gives its share, as far as whole numbers allow, and
    keeps an episode to learn from; those with a single one give it only where nearly all are such. Each store keeps
    one. Episodes of one scene (`task_name` and `seed` in the metadata), or with the same states and actions, stay
    together; scenes that synthetic episodes show too are the last to go. One at least is held out, but none of fewer
    than `LEAST_EPISODES`.
    """
    held = [np.zeros(store.num_episodes, bool) for store in stores]
    if fraction == 0:
        return held
    places = [(number, episode) for number, store in enumerate(stores) for episode in range(store.num_episodes)]
    free = {
        (number, episode)
        for number, episode in places
        if takes_part[number] and stores[number].metadata[episode].get("source") != "synthetic"
    }
    if len(free) < LEAST_EPISODES:
        return held
    groups = []
    for together in _same_scenes(stores, places):
        members = [place for place in together if place in free]
        told = [stores[number].instruction(episode) for number, episode in members]
        groups += [_Group(members, told, len(members) == len(together))] if members else []
    shuffled = [groups[i] for i in np.random.default_rng((seed, 6)).permutation(len(groups))]
    for number, episode in _choose(shuffled, max(1, round(fraction * len(free))), [s.num_episodes for s in stores]):
        held[number][episode] = True
    return held


def _same_scenes(stores: Sequence[ClipStore], places: Sequence[Place]) -> list[list[Place]]:
    """All episodes, those of one scene and those with the same states and actions side by side."""
    ids = [store.episode_ids for store in stores]
    parent = list(range(len(places)))
    first: dict[Hashable, int] = {}

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for index, (number, episode) in enumerate(places):
        scene = scene_of(stores[number].metadata[episode], f"{stores[number].name}: episode {episode}")
        for key in (("id", ids[number][episode]), ("scene", scene)):
            if key[1] is not None:
                parent[root(index)] = root(first.setdefault(key, index))
    groups: dict[int, list[Place]] = {}
    for index, place in enumerate(places):
        groups.setdefault(root(index), []).append(place)
    return list(groups.values())


def _choose(groups: Sequence[_Group], target: int, sizes: Sequence[int]) -> list[Place]:
    """Episodes of the first groups that fit, about `target` of them; sizes: episodes of each store."""
    counts = Counter(instruction for group in groups for instruction in group.instructions)
    spare = {instruction: max(1, count - 1) for instruction, count in counts.items()}
    quotas, taken, kept, chosen = _quotas(counts, target), Counter[str](), list(sizes), list[Place]()

    def take(group: _Group, limits: Mapping[str, int], most: int) -> None:
        of_each, of_stores = Counter(group.instructions), Counter(number for number, _ in group.members)
        left = all(kept[number] > count for number, count in of_stores.items())
        few = all(taken[instruction] + count <= limits[instruction] for instruction, count in of_each.items())
        if left and few and len(chosen) + len(group.members) <= most:
            taken.update(group.instructions)
            chosen.extend(group.members)
            for number, _ in group.members:
                kept[number] -= 1

    in_order = sorted(groups, key=lambda group: not group.whole)
    for group in in_order:
        take(group, quotas, target)
    if 2 * len(chosen) < target:  # nearly every instruction has one episode alone
        for group in in_order:
            take(group, spare, target)
    for limits in (spare, counts):  # every scene has more episodes than are to be held out: the smallest
        for group in sorted(in_order, key=lambda group: len(group.members)):
            if not chosen:
                take(group, limits, len(group.members))
    return chosen


def _quotas(counts: Counter[str], target: int) -> dict[str, int]:
    """How many of each instruction: its share of `target`, rounded so that all together make it where they can."""
    share = {instruction: target * count / counts.total() for instruction, count in counts.items()}
    quotas = {instruction: min(math.floor(share[instruction]), counts[instruction] - 1) for instruction in counts}
    missing = target - sum(quotas.values())
    for instruction in sorted(counts, key=lambda one: math.floor(share[one]) - share[one]):
        if missing > 0 and quotas[instruction] < counts[instruction] - 1:
            quotas[instruction], missing = quotas[instruction] + 1, missing - 1
    return quotas


def part_of(store: ClipStore, episodes: np.ndarray, starts: np.ndarray | None = None) -> ClipStore:
    """Some episodes of a store, or what follows a step of each (`starts`, as `episodes`), without copying a frame.

    What reads whole arrays of a store, not its episodes, must take `selection.subset` instead.
    """
    first = np.zeros(len(episodes), np.int64) if starts is None else starts
    if np.array_equal(episodes, np.arange(store.num_episodes)) and not first.any():
        return store
    name = f"{store.source_id} {np.asarray(episodes).tolist()} from {first.tolist()}"
    return replace(
        store,
        episode_starts=store.episode_starts[episodes] + first,
        episode_lengths=store.episode_lengths[episodes] - first,
        episode_tasks=store.episode_tasks[episodes],
        metadata=[store.metadata[i] for i in episodes],
        source_id=hashlib.sha256(name.encode()).hexdigest()[:16],  # by which what is derived from it is cached
    )


def spread_windows(lengths: np.ndarray, rows: int, most: int, random_start: bool) -> tuple[np.ndarray, np.ndarray]:
    """Episodes and starts of up to `most` windows of `rows` rows, evenly spread over episodes and what they cover.

    At the starts of episodes alone unless `random_start`. lengths: (E,) rows of the episodes.
    """
    episodes = np.unique(np.linspace(0, len(lengths) - 1, min(most, len(lengths))).round().astype(np.int64))
    room = np.maximum(lengths[episodes] - rows, 0)
    if not random_start:
        return episodes, np.zeros_like(episodes)
    each = most // len(episodes)
    if each == 1:
        return episodes, np.floor((np.arange(len(episodes)) * GOLDEN % 1) * (room + 1)).astype(np.int64)
    starts = [np.unique(np.linspace(0, last, each).round().astype(np.int64)) for last in room]
    return np.repeat(episodes, [len(own) for own in starts]), np.concatenate(starts)


class FixedWindows(GeneratorClips):
    """The windows at the starts of a store's episodes, the same in every batch, of which `size` are drawn.

    Their order moves on from batch to batch, for the first of a batch are pairs and the others plans.
    """

    def draw(self, step: int, parts: int = 1) -> tuple[np.ndarray, np.ndarray]:
        order = np.arange(self.size) % self.store.num_episodes
        return np.roll(order, -step * self.num_joint(self.size)), np.zeros(self.size, np.int64)

    @property
    def size(self) -> int:
        """Windows of a batch: each as often, and enough of them that there are plans too."""
        return self.store.num_episodes * -(-LEAST_WINDOWS // self.store.num_episodes)
