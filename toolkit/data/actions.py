"""What the dimensions of an action are: which are grippers, and which dimension of the state belongs to each.

Shapes: A action dimensions, S state dimensions, N rows of a dataset.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches

import numpy as np

from toolkit.base.errors import UserError, warn
from toolkit.base.processes import processes
from toolkit.data.clips import ClipStore

GRIPPERS = frozenset({"gripper", "grippers", "hand", "finger", "fingers", "thumb", "claw", "jaw", "jaws", "suction"})
MOST_ROWS = 1 << 20  # of windows that statistics are made of, evenly spread
BLOCK = 256  # windows converted at once

Convert = Callable[[np.ndarray, np.ndarray], np.ndarray]  # actions (B, T, A), state (B, S) -> actions (B, T, A)


def is_gripper(name: str) -> bool:
    """If the name of a dimension is that of a gripper or hand, by its words: `left_gripper.pos`, `kLeftHandThumb0`."""
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return not GRIPPERS.isdisjoint(re.split(r"[^a-z]+", words.lower()))


def absolute_dimensions(names: Sequence[str], width: int, given: Sequence[str] | None, where: str) -> np.ndarray:
    """(A,) True for dimensions that are positions whatever the others are: those given, else grippers by name.

    names: of the dimensions, none where nobody says. given: names, or parts of them, or numbers. Without either it is
    said that no gripper is known. Raises UserError for one that is not there.
    """
    kept = np.zeros(width, bool)
    if given is None:
        kept[: len(names)] = [is_gripper(name) for name in names]
        if not names:
            warn(
                f"{where}: no names say which of the {width} action dimensions are grippers, so none is taken for one; "
                f"absolute_dimensions=[{width - 1}] would name the last"
            )
        return kept
    for word in map(str, given):
        found = [i for i, name in enumerate(names) if word.lower() in name.lower()]
        if not found and word.isdecimal() and int(word) < width:
            found = [int(word)]
        if not found:
            known = ", ".join(get_close_matches(word, names, n=4, cutoff=0) or [f"0 to {width - 1}"])
            raise UserError(f"absolute_dimensions={list(given)}: {where} has no action dimension '{word}', but {known}")
        kept[found] = True
    return kept


def find_reference(stores: Sequence[ClipStore], kind: str, given: Sequence[str] | None) -> list[int]:
    """Of each action dimension the dimension of the state that belongs to it, -1 where it stays absolute; says so.

    By names, else, with a warning, the one at the same place where widths are equal. given: `absolute_dimensions`.
    Raises UserError where neither tells, and where nothing would be converted.
    """
    store = stores[0]
    width, states = store.actions.shape[1], store.states.shape[1]
    names, state_names = (
        next((list(found) for found in told if found), [])
        for told in ([part.action_names for part in stores], [part.state_names for part in stores])
    )
    kept = absolute_dimensions(names or (state_names if states == width else []), width, given, store.name)
    moved = np.flatnonzero(~kept)
    lacking = [i for i in moved if not names or state_names.count(names[i]) != 1]
    if not len(moved):
        raise UserError(f"action_representation={kind}: every action dimension of {store.name} would stay absolute")
    if not lacking:
        places = {i: state_names.index(names[i]) for i in moved}
    elif len(lacking) == len(moved) and states == width:
        places = {i: i for i in moved}
        warn(
            f"{store.name}: no names say which state belongs to which action; action_representation={kind} takes the "
            "one at the same place. Give both the same names in meta/info.json"
        )
    else:
        shown = ", ".join(names[i] if names else str(i) for i in lacking[:4])
        raise UserError(
            f"action_representation={kind}: {store.name}: no state belongs to the action dimensions {shown} (states: "
            f"{', '.join(state_names[:8]) or states}); give them the same names in meta/info.json, name what stays as "
            "it is with absolute_dimensions=[...], or leave actions that are deltas already as absolute"
        )
    if processes().is_main:
        shown = ", ".join(names[i] if names else str(i) for i in np.flatnonzero(kept))
        print(f"actions are learned as {kind}; absolute stay: {shown or 'none'}", flush=True)
    return [int(places.get(i, -1)) for i in range(width)]


def converted_rows(store: ClipStore, horizon: int, convert: Convert, starts: Sequence[np.ndarray]) -> np.ndarray:
    """Actions (N, A) of windows as a network learns them, whose spread differs from that of the recorded rows.

    horizon: steps of a window; starts: of each episode the steps at which windows begin. What lies past the end of an
    episode does not count. Of more than `MOST_ROWS` rows evenly spread windows are taken.
    """
    episodes = np.repeat(np.arange(store.num_episodes), [len(part) for part in starts])
    first = store.episode_starts[episodes] + np.concatenate(starts)
    left = store.episode_starts[episodes] + store.episode_lengths[episodes] - first
    every = max(1, -(-len(first) * horizon // MOST_ROWS))
    first, left = first[::every], left[::every]

    def blocks() -> Iterator[np.ndarray]:
        for i in range(0, len(first), BLOCK):
            steps, end = np.arange(horizon), left[i : i + BLOCK, None]
            rows = first[i : i + BLOCK, None] + np.minimum(steps, end - 1)
            yield convert(store.actions[rows], store.states[first[i : i + BLOCK]])[steps < end]

    return np.concatenate(list(blocks()))
