"""Policies that demonstrate: `vag collect demonstrator=policy:DIR` rolls one out and keeps what succeeds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from recipes.schema import CollectConfig
from toolkit.base.errors import UserError
from toolkit.base.randomness import stream_seed
from toolkit.base.run import Run
from toolkit.data.episode import STATE, TASK
from toolkit.envs.base import Env
from toolkit.envs.recording import Attempt, record_attempt
from toolkit.envs.worlds import open_world

SCRIPTED, POLICY = "scripted", "policy:"


def policy_directory(config: CollectConfig, run: Run) -> str | None:
    """The checkpoint that demonstrates, entered in the run record; None for the scripted expert.

    Raises UserError for another word, or no checkpoint.
    """
    if config.demonstrator == SCRIPTED:
        return None
    directory = config.demonstrator.removeprefix(POLICY)
    if not config.demonstrator.startswith(POLICY) or not directory:
        raise UserError(
            f"demonstrator={config.demonstrator}: expected scripted, or policy:DIR with a checkpoint in DIR"
        )
    from recipes.common import weights_id

    run.add_data(directory, weights_id(directory))
    return directory


def policy_attempt(checkpoint: str, seed: int, attempt: Attempt) -> bool:
    """`record_attempt` by a policy checkpoint. seed: of the noise that it draws."""
    return record_attempt(attempt, lambda env: PolicyDemonstrator(checkpoint, seed, attempt, env))


class PolicyDemonstrator:
    """A policy in one scene: of every chunk it executes as much as in `vag evaluate`.

    It sees the pictures that are recorded, letterboxed into its own size. Its noise is that of `vag evaluate` with the
    same seed.
    """

    def __init__(self, checkpoint: str, seed: int, attempt: Attempt, env: Env) -> None:
        from recipes.worlds import cameras_for, check_simulated

        self._policy, self._sizes = _loaded(checkpoint)
        name = attempt.world.env
        check_simulated(checkpoint, env, name, "collect with a policy of this world")
        self._cameras = cameras_for(self._policy.cameras, env, {}, name, checkpoint)
        scene = open_world(attempt.world).scene_name(attempt.task)
        self._seeds = (seed, scene, attempt.seed)
        self._chunks, self._left = 0, list[np.ndarray]()
        if (forget := getattr(self._policy, "reset", None)) is not None:
            forget()

    def action(self, env: Env, pictures: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
        """The next action (A,) float32."""
        if not self._left:
            import torch

            from toolkit.evaluation.rollout import fitted_pictures

            observation: dict[str, Any] = {
                **fitted_pictures([pictures], self._sizes, self._cameras),
                STATE: torch.from_numpy(state)[None],
                TASK: [env.instruction],
            }
            seed, scene, number = self._seeds
            noise = [stream_seed(seed, scene, number, self._chunks)]
            (chunk,) = torch.as_tensor(self._policy.predict_action_chunk(observation, noise)).detach().cpu().numpy()
            self._chunks += 1
            self._left = [np.asarray(action, np.float32) for action in chunk]
        return self._left.pop(0)


@cache
def _loaded(checkpoint: str) -> tuple[Any, Any]:
    """The policy, once in a process, on the CPU, and the sizes of its pictures."""
    from policies.stock import load_policy
    from recipes.pretrain import expected_sizes

    policy = load_policy(Path(checkpoint))
    return policy, expected_sizes(policy, checkpoint)
