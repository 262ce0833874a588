"""Attempts of a demonstrator, each kept as a file, so that a killed collection goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.files import atomic_file
from toolkit.data.episode import IMAGE, PICTURE_EVERY, Episode
from toolkit.envs.base import Demonstrator, Env, Size
from toolkit.envs.worlds import WorldSpec, open_world

CAMERA = "camera:"  # in front of the key of a further camera in a file


@dataclass(frozen=True)
class Attempt:
    """One episode to record. `path` holds the outcome afterwards."""

    task: str
    seed: int
    num_steps: int
    image_size: Size
    noise_scale: float
    path: Path
    operator: int = 0
    render_every: int = 1
    hide_robot: bool = False
    world: WorldSpec = field(default_factory=WorldSpec)


def record_episode(
    env: Env, seed: int, num_steps: int, begin: Callable[[], Demonstrator], render_every: int = 1
) -> tuple[Episode, bool]:
    """One episode of at most `num_steps` steps, fewer if the world ends it; success = solved at any step.

    begin: called once the scene is reset. render_every: steps from one picture to the next; those between repeat the
    last, as with a slow camera.
    """
    state = env.reset(seed)
    demonstrator = begin()
    pictures: dict[str, list[np.ndarray]] = {}
    states, actions, success = [], [], False
    for step in range(num_steps):
        seen = {camera: shown[-1] for camera, shown in pictures.items()} if step % render_every else env.render()
        for camera, picture in seen.items():
            pictures.setdefault(camera, []).append(picture)
        states.append(state)
        actions.append(demonstrator.action(env, seen, state))
        state, solved = env.step(actions[-1])
        success |= solved
        if env.ended:
            break
    env.finish()
    stacked = {camera: np.stack(shown) for camera, shown in pictures.items()}
    images = stacked.pop(IMAGE, None)
    metadata: dict[str, Any] = {"seed": seed, "task_name": env.task, "source": "teleoperation"}
    return Episode(images, np.stack(states), np.stack(actions), env.instruction, metadata, stacked), success


def record_attempt(attempt: Attempt, begin: Callable[[Env], Demonstrator] | None = None) -> bool:
    """Record into the attempt's file, unless that is there already; True if the demonstrator succeeded.

    begin: who demonstrates in an environment that was just reset; None = the world's scripted one. Raises UserError if
    the world has none for the task.
    """
    success = _outcome(attempt.path)
    if success is None:
        world = open_world(attempt.world)
        env = world.shared(attempt.task, attempt.image_size, attempt.hide_robot)

        def scripted() -> Demonstrator:
            return begin(env) if begin is not None else scripted_demonstrator(attempt, env)

        episode, success = record_episode(env, attempt.seed, attempt.num_steps, scripted, attempt.render_every)
        arrays: dict[str, Any] = {"success": np.array(success)}
        if success:
            arrays |= {"states": episode.states, "actions": episode.actions}
            arrays |= {CAMERA + camera: shown for camera, shown in episode.pictures.items()}
        with atomic_file(attempt.path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    return success


def scripted_demonstrator(attempt: Attempt, env: Env) -> Demonstrator:
    """Of the scene that was just reset. Raises UserError where the world has none."""
    made = open_world(attempt.world).demonstrator(env, attempt.seed, attempt.noise_scale, attempt.operator)
    if made is None:
        raise UserError(
            f"env={attempt.world.env}: nobody demonstrates '{attempt.task}' here; demonstrator=policy:DIR rolls out "
            "the policy checkpoint in DIR and keeps what succeeds"
        )
    return made


def _outcome(path: Path) -> bool | None:
    """If the demonstrator succeeded, by an attempt's file; None if that is missing or damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            return bool(saved["success"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def load_attempt(attempt: Attempt, source: str = "teleoperation") -> Episode:
    """The recorded episode of a successful attempt. source: what is noted of where it comes from."""
    with np.load(attempt.path, allow_pickle=False) as saved:
        cameras = {key.removeprefix(CAMERA): saved[key] for key in saved.files if key.startswith(CAMERA)}
        return Episode(
            images=cameras.pop(IMAGE, None),
            states=saved["states"],
            actions=saved["actions"],
            task=open_world(attempt.world).instruction(attempt.task),
            metadata={
                "seed": attempt.seed,
                "task_name": attempt.task,
                "success": True,
                "source": source,
                **({PICTURE_EVERY: attempt.render_every} if attempt.render_every > 1 else {}),
                **attempt.world.metadata,
            },
            cameras=cameras,
        )
