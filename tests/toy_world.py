"""A user's own environments, registered on import: a point that goes to a goal, seen by two cameras.

An observation has `agent_pos` (2,) and `pixels` of the cameras `top` 24x32 and `wrist` 16x16; the red square is the
goal, the green one the point. `info` says `is_success` once the point is near the goal.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

CAMERAS = {"top": (24, 32), "wrist": (16, 16)}


class Reach(gymnasium.Env[Any, Any]):
    """key: of `info` that says if it is solved. forgetful: a reset does not repeat. fixed: all seeds give one scene."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    task_description = "move the green square onto the red one"

    def __init__(
        self, render_mode: str = "rgb_array", key: str = "is_success", forgetful: bool = False, fixed: bool = False
    ) -> None:
        self.render_mode, self.key, self.forgetful, self.fixed = render_mode, key, forgetful, fixed
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        pictures = {name: spaces.Box(0, 255, (*size, 3), np.uint8) for name, size in CAMERAS.items()}
        position = spaces.Box(-2, 2, (2,), np.float64)
        self.observation_space = spaces.Dict({"agent_pos": position, "pixels": spaces.Dict(pictures)})
        self.steps, self.drift = 0, np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=0 if self.fixed else seed)
        self.position, self.goal = self.np_random.uniform(-0.9, 0.9, (2, 2))
        self.steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.position = np.clip(self.position + 0.2 * np.clip(action, -1, 1), -1, 1)
        if self.forgetful:
            self.position += 0.01 * self.drift.standard_normal(2)
        self.steps += 1
        solved = bool(np.abs(self.position - self.goal).max() < 0.1)
        return self._observation(), float(solved), solved, False, {self.key: solved}

    def expert_action(self) -> np.ndarray:
        return np.clip((self.goal - self.position) / 0.2, -1, 1)

    def _observation(self) -> dict[str, Any]:
        return {"agent_pos": self.position.copy(), "pixels": {name: self._draw(CAMERAS[name]) for name in CAMERAS}}

    def _draw(self, size: tuple[int, int]) -> np.ndarray:
        picture = np.full((*size, 3), 40, np.uint8)
        for (x, y), channel in ((self.goal, 0), (self.position, 1)):
            row, column = (int((value + 1) / 2 * (side - 4)) for value, side in zip((y, x), size, strict=True))
            picture[row : row + 4, column : column + 4, channel] = 255
        return picture


class Silent(Reach):
    """Drawn by `render` alone, with a bare vector as observation."""

    def __init__(self, render_mode: str = "rgb_array") -> None:
        super().__init__(render_mode)
        self.observation_space = spaces.Box(-2, 2, (2,), np.float64)

    def _observation(self) -> Any:
        return self.position.copy()

    def render(self) -> np.ndarray:
        return self._draw((24, 32))


gymnasium.register("Reach-v0", f"{__name__}:Reach", max_episode_steps=4)
gymnasium.register("Silent-v0", f"{__name__}:Silent")
