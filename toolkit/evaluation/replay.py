"""Open-loop execution: do these actions, from this scene, solve the task?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from toolkit.base.engine import Engine
from toolkit.envs.base import Env
from toolkit.envs.worlds import WorldSpec, open_world


def replay_actions(env: Env, seed: int, actions: np.ndarray) -> dict[str, Any]:
    """Execute actions (T, A) from the scene of a seed, fewer if the world ends the episode.

    Returns success (solved at any step), steps_to_success (None if never) and the states (T + 1, S).
    """
    states = [env.reset(seed)]
    solved_at = None
    for step, action in enumerate(actions):
        state, solved = env.step(action)
        states.append(state)
        if solved and solved_at is None:
            solved_at = step + 1
        if env.ended:
            break
    env.finish()
    return {"success": solved_at is not None, "steps_to_success": solved_at, "states": np.stack(states)}


def replay_episodes(
    items: Sequence[tuple[str, int, np.ndarray]],
    engine: Engine,
    description: str = "replay",
    world: WorldSpec | None = None,
) -> Iterator[dict[str, Any]]:
    """`replay_actions` over (task, seed, actions), in parallel and in order. world: None = Meta-World.

    Raises UserError, before anything is executed, for a task whose scenes do not repeat.
    """
    spec = world or WorldSpec()
    for task in dict.fromkeys(task for task, _, _ in items):
        open_world(spec).check_repeats(task)
    work = partial(_replay, spec)
    return engine.map(work, items, description=description)


def _replay(world: WorldSpec, item: tuple[str, int, np.ndarray]) -> dict[str, Any]:
    task, seed, actions = item
    return replay_actions(open_world(world).shared(task), seed, actions)
