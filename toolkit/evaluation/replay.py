"""Open-loop execution: do these actions, from this scene, solve the task?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from toolkit.base.engine import parallel_map
from toolkit.envs.base import Env
from toolkit.envs.metaworld import cached_env


def replay_actions(env: Env, seed: int, actions: np.ndarray) -> dict[str, Any]:
    """Execute actions (T, A) from the scene of a seed.

    Returns success (solved at any step), steps_to_success (None if never) and the states (T + 1, S).
    """
    states = [env.reset(seed)]
    solved_at = None
    for step, action in enumerate(actions):
        state, solved = env.step(action)
        states.append(state)
        if solved and solved_at is None:
            solved_at = step + 1
    return {"success": solved_at is not None, "steps_to_success": solved_at, "states": np.stack(states)}


def replay_episodes(
    items: Sequence[tuple[str, int, np.ndarray]], workers: int, description: str = "replay"
) -> Iterator[dict[str, Any]]:
    """`replay_actions` over (task, seed, actions), in parallel and in order."""
    return parallel_map(_replay, items, workers=workers, description=description)


def _replay(item: tuple[str, int, np.ndarray]) -> dict[str, Any]:
    task, seed, actions = item
    return replay_actions(cached_env(task, 64), seed, actions)
