"""Attempts of the scripted teleoperator, each kept as a file, so that a killed collection goes on where it stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from toolkit.base.files import atomic_file
from toolkit.data.episode import PICTURE_EVERY, Episode
from toolkit.envs.metaworld import cached_env, instructions, record_episode


@dataclass(frozen=True)
class Attempt:
    """One episode to record. `path` holds the outcome afterwards."""

    task: str
    seed: int
    num_steps: int
    image_size: int
    noise_scale: float
    path: Path
    operator: int = 0
    render_every: int = 1
    hide_robot: bool = False


def record_attempt(attempt: Attempt) -> bool:
    """Record into the attempt's file, unless that is there already; True if the expert succeeded."""
    success = _outcome(attempt.path)
    if success is None:
        env = cached_env(attempt.task, attempt.image_size, attempt.hide_robot)
        episode, success = record_episode(
            env, attempt.seed, attempt.num_steps, attempt.noise_scale, attempt.operator, attempt.render_every
        )
        arrays: dict[str, Any] = {"success": np.array(success)}
        if success:
            arrays |= {"images": episode.images, "states": episode.states, "actions": episode.actions}
        with atomic_file(attempt.path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    return success


def _outcome(path: Path) -> bool | None:
    """If the expert succeeded, by an attempt's file; None if that is missing or damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            return bool(saved["success"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def load_attempt(attempt: Attempt) -> Episode:
    """The recorded episode of a successful attempt."""
    with np.load(attempt.path, allow_pickle=False) as saved:
        return Episode(
            images=saved["images"],
            states=saved["states"],
            actions=saved["actions"],
            task=instructions()[attempt.task],
            metadata={
                "seed": attempt.seed,
                "task_name": attempt.task,
                "success": True,
                "source": "teleoperation",
                **({PICTURE_EVERY: attempt.render_every} if attempt.render_every > 1 else {}),
            },
        )
