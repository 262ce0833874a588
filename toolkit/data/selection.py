"""Which episodes of a dataset take part in training, and how often: few, the best ones, or a control."""

from __future__ import annotations

import hashlib
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, nearest
from toolkit.data.clips import ClipStore
from toolkit.data.frames import chosen_frames

RULE = re.compile(r"\s*(\w+)\s*(<=|>=|==)\s*(-?(?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)\s*(%?)\s*")
RELATIONS = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}
HIGHER_IS_BETTER = (
    "replay_success",
    "score_nearest",
    "trusted",
)  # of what replay and score note; of all else less is better


def subset(store: ClipStore, episodes: np.ndarray) -> ClipStore:
    """Some episodes as a store of their own, their raw frames copied unless they are all of them, in order."""
    if np.array_equal(episodes, np.arange(store.num_episodes)):
        return store
    rows, lengths = store.rows_of(episodes), store.episode_lengths[episodes]
    return replace(
        store,
        frames=chosen_frames(store.frames, rows),
        states=store.states[rows],
        actions=store.actions[rows],
        episode_starts=np.cumsum(lengths) - lengths,
        episode_lengths=lengths,
        episode_tasks=store.episode_tasks[episodes],
        metadata=[store.metadata[i] for i in episodes],
        # another identity, by which what is derived from it is cached
        source_id=hashlib.sha256(f"{store.source_id} {np.asarray(episodes).tolist()}".encode()).hexdigest()[:16],
    )


def first_of_each(tasks: np.ndarray, per_task: int) -> np.ndarray:
    """The first `per_task` episodes of each instruction, in order; tasks: (E,) number of the instruction."""
    return np.sort(np.concatenate([np.flatnonzero(tasks == task)[:per_task] for task in np.unique(tasks)]))


def column(name: str, metadata: Sequence[dict[str, Any]], where: str) -> np.ndarray:
    """A score of every episode, (E,). Raises UserError if an episode has none, naming those that there are."""
    missing = next((i for i, row in enumerate(metadata) if not _is_score(row.get(name))), None)
    if missing is None:
        return np.array([float(row[name]) for row in metadata])
    known = [key for key, value in metadata[missing].items() if _is_score(value)]
    hint = f"{nearest(name, known)} " if known else ""
    raise UserError(
        f"{where}: episode {missing} has no number '{name}'. {hint}`vag score` and `vag replay` write such into "
        "their run directories: give those, notes=[RUN]"
    )


def _is_score(value: Any) -> bool:
    return isinstance(value, bool | int | float) and not math.isnan(value)


def parse_rule(rule: str) -> tuple[str, str, float, bool]:
    """Score, relation, bound, and whether that is per cent of the episodes. Raises UserError if it cannot be read."""
    match = RULE.fullmatch(rule)
    if match is None or (match[4] and not 0 <= float(match[3]) <= 100):
        raise UserError(f"select: cannot read '{rule}'; expected such as score_cycle_error<=0.2 or <=50%")
    return match[1], match[2], float(match[3]), bool(match[4])


def select(
    rules: Sequence[str],
    metadata: Sequence[dict[str, Any]],
    tasks: np.ndarray,
    where: str,
    seed: int = 0,
    every_task: bool = True,
) -> np.ndarray:
    """(E,) True for episodes that meet all rules, such as `replay_success==1`, `score_cycle_error<=0.2` or, for the
    best half of each instruction, `score_cycle_error<=50%`; the control of that is `random<=50%`.

    tasks: (E,) number of the instruction. Raises UserError for a rule that cannot be read, a score that is not there,
    or if nothing is left at all or, of `every_task`, of one.
    """
    kept = np.ones(len(metadata), bool)
    for rule in rules:
        name, relation, bound, percent = parse_rule(rule)
        values = (
            np.random.default_rng((seed, 5)).random(len(kept)) if name == "random" else column(name, metadata, where)
        )
        bounds = np.full(len(values), bound)
        if percent:
            for task in np.unique(tasks):
                bounds[tasks == task] = np.percentile(values[tasks == task], bound, method="nearest")
        kept &= RELATIONS[relation](values, bounds)
    if len(lost := np.setdiff1d(tasks, tasks[kept])) and (every_task or not kept.any()):
        raise UserError(f"{where}: select={list(rules)} leaves no episode of {len(lost)} of {len(set(tasks))} tasks")
    return kept


def weights_by(name: str, metadata: Sequence[dict[str, Any]], tasks: np.ndarray, where: str) -> np.ndarray:
    """(E,) weights that fall with the rank of a score among the episodes of an instruction, from 2 to 0 times the mean.

    The best have the most: those with the least of a score, unless it is one of `HIGHER_IS_BETTER`. Ranks, since scores
    of different systems have different tails; equal scores share theirs. Raises UserError as `column`.
    """
    from scipy.stats import rankdata  # a generator trains without it

    values, weights = column(name, metadata, where), np.zeros(len(metadata))
    if name in HIGHER_IS_BETTER:
        values = -values
    for task in np.unique(tasks):
        chosen = np.flatnonzero(tasks == task)
        weights[chosen] = 2 * (1 - (rankdata(values[chosen]) - 0.5) / len(chosen))
    return weights


def balanced(tasks: np.ndarray) -> np.ndarray:
    """(E,) weights that give every instruction the same share; 1 on average."""
    numbers, counts = np.unique(tasks, return_inverse=True, return_counts=True)[1:]
    return len(tasks) / len(counts) / counts[numbers]


def action_donors(tasks: np.ndarray, names: Sequence[str], where: str, seed: int) -> np.ndarray:
    """(E,) the episode of the same instruction that each one gets the actions of, never itself.

    tasks: (E,) number of the instruction, of which `names` are the texts. Raises UserError for an instruction with a
    single episode.
    """
    rng, donors = np.random.default_rng((seed, 4)), np.empty(len(tasks), np.int64)
    for task in np.unique(tasks):
        order = rng.permutation(np.flatnonzero(tasks == task))
        if len(order) < 2:
            raise UserError(f"{where}: shuffled actions need two episodes or more of '{names[task]}'")
        donors[order] = np.roll(order, 1)
    return donors


def with_shuffled_actions(store: ClipStore, seed: int) -> ClipStore:
    """A control: every episode keeps its pictures and states, and gets the actions of another one of its instruction.

    So the policy is told what the task needs on average, but nothing of where its objects are. Where the other is
    shorter, its last action is repeated. Raises UserError for an instruction with a single episode.
    """
    actions = np.empty_like(store.actions)
    for episode, donor in enumerate(action_donors(store.episode_tasks, store.tasks, store.name, seed)):
        first, length = store.episode_starts[episode], store.episode_lengths[episode]
        steps = np.minimum(np.arange(length), store.episode_lengths[donor] - 1)
        actions[first : first + length] = store.actions[store.episode_starts[donor] + steps]
    return replace(store, actions=actions)
