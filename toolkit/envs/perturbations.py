"""The suite `perturbed`: in each scene one thing goes wrong for a while, drawn from the scene's seed alone.

Which of them, when and how much comes from `numpy.random.default_rng((seed, 4))`, so the same scene has the same fate
for every policy. A world adds its own kinds (Meta-World: `push`, `move`) to the two that any world has:

    late   actions arrive LATE_SECONDS late: executed is what was commanded so many steps before
    noisy  each number of an action gets Gaussian noise of NOISE times half its range (of 1 where it has none)
"""

from __future__ import annotations

from collections import deque

import numpy as np

from toolkit.envs.base import Env

START = (0.1, 0.4)  # of the longest rollout: where it begins
DURATION = 0.2  # of the longest rollout, of `late` and `noisy`
LATE_SECONDS = (0.05, 0.15)
NOISE = 0.1
ACTION_KINDS = ("late", "noisy")


class Perturbation:
    """What happens in the scene of a seed. Stand between a policy and an environment that was just reset.

    max_steps: of the longest rollout.
    """

    def __init__(self, env: Env, seed: int, max_steps: int) -> None:
        self._env, self._rng = env, np.random.default_rng((seed, 4))
        self.kind = str(self._rng.choice([*ACTION_KINDS, *env.disturbances]))
        self.start = int(self._rng.uniform(*START) * max_steps)
        self.stop = self.start + max(1, round(DURATION * max_steps))
        self.delay = max(1, round(self._rng.uniform(*LATE_SECONDS) * env.fps))
        self._before: deque[np.ndarray] = deque(maxlen=self.delay + 1)
        self._step = 0

    def executed(self, action: np.ndarray) -> np.ndarray:
        """The action (A,) that is executed in place of the commanded one; call it once a step."""
        step, self._step = self._step, self._step + 1
        self._before.append(action)
        if step == self.start and self.kind in self._env.disturbances:
            self._env.disturb(self.kind, self._rng)
        if not self.start <= step < self.stop:
            return action
        if self.kind == "late":
            return self._before[0]
        if self.kind == "noisy":
            low, high = action_range(self._env)
            noise = NOISE * (high - low) / 2 * self._rng.standard_normal(len(action))
            return (action + noise).astype(action.dtype)
        return action


def action_range(env: Env) -> tuple[np.ndarray, np.ndarray]:
    """Limits (A,) of the environment's actions; -1 and 1 where it has none."""
    low, high = env.action_limits
    bounded = np.isfinite(low) & np.isfinite(high)
    return np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
