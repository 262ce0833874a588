"""Episodes at a lower rate: which rows stay, and what the actions between them become.

Shapes: N rows of an episode at `fps` a second, of which K stay; actions (N, A).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, warn
from toolkit.data.actions import absolute_dimensions
from toolkit.data.clips import ClipStore
from toolkit.data.episode import PICTURE_EVERY, Episode
from toolkit.data.frames import ChosenFrames

ACTION_KINDS = ("absolute", "delta")


@dataclass(frozen=True)
class Resampling:
    """From one rate to a lower one, `target`. kind: of the actions; held: (A,) grippers, which keep their value."""

    fps: float
    target: float
    kind: str
    held: np.ndarray

    @classmethod
    def of(
        cls,
        fps: float,
        target: float,
        kind: str,
        names: Sequence[str],
        width: int,
        given: Sequence[str] | None,
        where: str,
    ) -> Resampling:
        """names: of the action dimensions; given: those that are held, by name or number, else grippers by name.

        Raises UserError for a rate that is not lower, and a dimension that is not there.
        """
        if target > fps:
            raise UserError(
                f"resample_fps={target:g}: {where} has {fps:g} steps a second; a rate can be lowered, not raised"
            )
        said = [] if all(name.startswith("action_") for name in names) else list(names)
        held = absolute_dimensions(said, width, given, where) if kind == "delta" else np.zeros(width, bool)
        return cls(fps, target, kind, held)

    def rows(self, times: np.ndarray, where: str) -> np.ndarray:
        """(K,) the rows nearest in time to 0, 1 / target, 2 / target, ... seconds; none where there is a gap.

        times: (N,), from 0 on. Raises UserError unless they rise, and leave two rows or more of an episode.
        """
        if not (np.diff(times) > 0).all():
            raise UserError(
                f"{where}: its time stamps do not rise; it cannot be resampled. skip_bad=true leaves it out"
            )
        steps = times * self.target
        slots = np.rint(steps)
        order = np.lexsort((np.arange(len(times)), np.round(np.abs(steps - slots), 6), slots))  # the earlier of two
        found, first = np.unique(slots[order], return_index=True)
        kept = np.sort(order[first[found <= np.floor(steps[-1] + 1e-6)]])
        if len(kept) < 2:
            raise UserError(
                f"{where}: {len(times)} steps at {self.fps:g} a second are {len(kept)} at {self.target:g}; an episode "
                "takes at least 2. Leave it out"
            )
        return kept

    def even(self, length: int) -> np.ndarray:
        """(N,) seconds of rows without time stamps."""
        return np.arange(length) / self.fps

    def actions(self, actions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(K, A): of absolute ones the last before the next row that stays; deltas up to it are added up."""
        last = np.append(rows[1:], len(actions)) - 1
        if self.kind == "absolute":
            return actions[last]
        added = np.add.reduceat(actions.astype(np.float64), rows, axis=0).astype(actions.dtype)
        return np.where(self.held, actions[last], added)

    def episode(self, episode: Episode) -> Episode:
        """The same at the lower rate; metadata say at which it was recorded."""
        where = f"{episode.metadata.get('source_file', 'episode')} {episode.metadata.get('source_episode', '')}".strip()
        rows = self.rows(self.even(len(episode)) if episode.times is None else episode.times, where)
        return replace(
            episode,
            images=None if episode.images is None else episode.images[rows],
            cameras={camera: pictures[rows] for camera, pictures in episode.cameras.items()},
            states=episode.states[rows],
            actions=self.actions(episode.actions, rows),
            times=None,
            metadata={**self.note(episode.metadata, where), "recorded_fps": float(self.fps)},
        )

    def note(self, metadata: dict[str, Any], where: str) -> dict[str, Any]:
        """Metadata in which `picture_every` counts the steps of the lower rate. Raises UserError if it is not whole."""
        if (every := metadata.get(PICTURE_EVERY, 1)) == 1:
            return metadata
        now = every * self.target / self.fps
        if min(abs(share - round(share)) for share in (now, 1 / now)) > 1e-6:
            raise UserError(
                f"resample_fps={self.target:g}: {where} has a new picture every {every} of {self.fps:g} steps a "
                "second, no whole number of steps at the lower rate"
            )
        return {**metadata, PICTURE_EVERY: max(1, round(now))}


def resampled(store: ClipStore, target: float | None, kind: str | None, given: Sequence[str] | None) -> ClipStore:
    """Clips at the rate `target`, their frames where they lie; as they are where that is theirs.

    Rows count as evenly spaced. kind: None is a guess, which is said. Raises UserError as `Resampling.of`, and for an
    episode too short for the rate.
    """
    if target is None or target == store.fps:
        return store
    kind = kind or guessed_kind(None, "", store.name)
    width = store.actions.shape[1]
    change = Resampling.of(store.fps, target, kind, store.action_names, width, given, store.name)
    parts = [store.rows_of(np.array([episode])) for episode in range(store.num_episodes)]
    rows = [change.rows(change.even(len(part)), f"{store.name}: episode {e}") for e, part in enumerate(parts)]
    lengths = np.array([len(part) for part in rows])
    kept = np.concatenate([part[some] for part, some in zip(parts, rows, strict=True)])
    identity = f"{store.source_id} {target} {kind} {change.held.tolist()}"
    return replace(
        store,
        frames=ChosenFrames.of(store.frames, kept),
        states=store.states[kept],
        actions=np.concatenate(
            [change.actions(store.actions[part], some) for part, some in zip(parts, rows, strict=True)]
        ),
        episode_starts=np.cumsum(lengths) - lengths,
        episode_lengths=lengths,
        metadata=[change.note(row, store.name) for row in store.metadata],
        fps=float(target),
        source_id=hashlib.sha256(identity.encode()).hexdigest()[:16],
    )


def guessed_kind(deltas: bool | None, layout: str, where: str) -> str:
    """What actions are taken for where nobody says: as the layout has them, else absolute. It is said."""
    kind = "delta" if deltas else "absolute"
    known = "nothing tells what its actions are" if deltas is None else f"the {layout} layout"
    warn(f"{where}: {known}; to resample they are taken as {kind}. Give action_kind=")
    return kind
