"""Any environment of gymnasium's interface with LeRobot's conventions, behind the `Env` protocol.

An observation has `agent_pos` (or what the config's own processors make of it) and `pixels`, one picture or a dict of
them by camera; `info` says under a key whether the task is solved. Nothing of a vector environment is stepped: those
begin a new scene by themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.base.errors import UserError
from toolkit.data.episode import IMAGE, STATE
from toolkit.data.images import inner_size, resized
from toolkit.envs.adapters import Adapter
from toolkit.envs.base import Size

SUCCESS_KEYS = ("is_success", "success", "succeed")
PICTURES = "observation.images."


class LeRobotEnv:
    """One task behind the `Env` protocol.

    env: of gymnasium's interface. processors: the config's own, for observations and for actions; None where they do
    nothing. size: of the pictures, see `Size`.
    Raises UserError if there is no state or no picture.
    """

    disturbances: Sequence[str] = ()

    def __init__(
        self,
        env: Any,
        task: str,
        instruction: str,
        fps: int,
        adapter: Adapter,
        success_key: str | None,
        processors: tuple[Any, Any],
        size: Size,
    ) -> None:
        self._env, self.task, self.instruction, self.fps = _without_limits(env), task, instruction, fps
        self._key, self._processors, self._adapter, self.size = success_key, processors, adapter, size
        self._drawn = None if adapter.drawing is None else adapter.drawing(self.unwrapped)
        self._seen_key, self._steps, self.ended, self._solved = False, 0, False, False
        self._info: Mapping[str, Any] = {}
        width = len(self.reset(0))
        self.state_names = _names(adapter.state_names, "state", width)
        space = self._env.action_space
        self.action_names = _names(adapter.action_names, "action", int(np.prod(space.shape)))
        self.action_limits = np.ravel(space.low).astype(float), np.ravel(space.high).astype(float)
        self._native = {camera: picture.shape[:2] for camera, picture in self._pictures(None).items()}
        if not self._native:
            raise UserError(f"{task}: its observations hold no pixels, and it draws no picture")

    @property
    def unwrapped(self) -> Any:
        """The environment that does the work."""
        return self._env.unwrapped

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """(height, width) by camera."""
        return {camera: scaled(size, self.size) for camera, size in self._native.items()}

    @property
    def position_held_out(self) -> bool:
        """See `Env`. False where nothing is known of the object's position."""
        held_out = self._adapter.position_held_out
        return held_out is not None and held_out(self.unwrapped)

    def reset(self, seed: int) -> np.ndarray:
        """Put the scene of this seed; returns the state (S,)."""
        self._observation, self._info = self._env.reset(seed=seed)
        self._steps, self.ended, self._solved = 0, False, False
        return self._state()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """Execute one action (A,); returns the state and if the task is solved now. After the end nothing happens.

        Raises UserError if the action has another width or is not finite.
        """
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (len(self.action_names),) or not np.isfinite(action).all():
            raise UserError(f"{self.task}: an action is {len(self.action_names)} finite numbers, got {action.tolist()}")
        if self.ended:
            return self._state(), self._solved
        if self._processors[1] is not None:
            action = self._processed_action(action)
        space = self._env.action_space
        action = action.reshape(space.shape).astype(space.dtype)
        self._observation, _, terminated, truncated, self._info = self._env.step(action)
        self._steps += 1
        self.ended = bool(terminated or truncated)
        keys = SUCCESS_KEYS if self._key is None else (self._key,)
        told = [self._info[key] for key in keys if key in self._info]
        self._seen_key |= bool(told)
        self._solved = bool(told and np.any(told[0]))
        return self._state(), self._solved

    def finish(self) -> None:
        """Raises UserError if no step so far has said whether the task is solved."""
        if self._steps and not self._seen_key:
            keys = " or ".join(f"'{key}'" for key in (SUCCESS_KEYS if self._key is None else (self._key,)))
            has = ", ".join(self._info) or "nothing"
            raise UserError(
                f"{self.task}: no step of an episode said in `info` under {keys} if the task is solved; it has {has}. "
                "Choose success_key=KEY, or give episodes more steps if it is said at their end"
            )

    def render(self) -> dict[str, np.ndarray]:
        """Pictures of the present instant by camera, (H, W, 3) uint8."""
        return self._pictures(self.size)

    def disturb(self, kind: str, rng: np.random.Generator) -> None:
        raise UserError(f"{self.task}: this world has no disturbance '{kind}'")

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    # ------------------------------------------------------------------------------------------ what is observed

    def _pictures(self, size: Size) -> dict[str, np.ndarray]:
        if self._drawn is not None:
            native, draw = self._drawn
            return self._named(draw(scaled(native, size)))
        observation = self._dictionary()
        if "pixels" not in observation and self._env.render_mode == "rgb_array":
            observation = {"pixels": np.asarray(self._env.render())}
        if self._processors[0] is not None:
            found = {key: _picture(value) for key, value in self._processed(observation).items() if _is_camera(key)}
        else:
            found = self._named(observation.get("pixels", {}))
        return {camera: resized(one[None], scaled(one.shape[:2], size))[0] for camera, one in found.items()}

    def _named(self, pixels: Any) -> dict[str, np.ndarray]:
        if isinstance(pixels, Mapping):
            return {f"{PICTURES}{name}": np.ascontiguousarray(picture) for name, picture in pixels.items()}
        return {IMAGE: np.ascontiguousarray(pixels)}

    def _dictionary(self) -> dict[str, Any]:
        seen = self._observation
        if isinstance(seen, Mapping):
            return dict(seen)
        return {"pixels" if np.ndim(seen) == 3 else "agent_pos": seen}

    def _state(self) -> np.ndarray:
        observation = self._dictionary()
        if self._processors[0] is not None:
            observation.pop("pixels", None)
            state = self._processed(observation).get(STATE)
        else:
            state = observation.get("agent_pos")
            if isinstance(state, Mapping):
                state = np.concatenate([np.ravel(part) for part in state.values()])
        if state is None:
            raise UserError(f"{self.task}: observations hold {', '.join(observation)}; expected a state, `agent_pos`")
        return np.asarray(state, dtype=np.float32).ravel()

    def _processed(self, observation: dict[str, Any]) -> dict[str, Any]:
        """As LeRobot does in its evaluation, for a batch of one."""
        from lerobot.envs.utils import preprocess_observation

        return dict(self._processors[0](preprocess_observation(_batched(observation))))

    def _processed_action(self, action: np.ndarray) -> np.ndarray:
        import torch

        done = self._processors[1]({"action": torch.from_numpy(action)[None]})
        return np.asarray(done["action"])[0]


def scaled(native: tuple[int, int], size: Size) -> tuple[int, int]:
    """(height, width) of a picture of `native` size: that, a given one, or so many pixels along the longer side."""
    if size is None:
        return native
    return inner_size(native, (size, size)) if isinstance(size, int) else size


def _names(names: Sequence[str], kind: str, width: int) -> list[str]:
    return list(names) if len(names) == width else [f"{kind}_{index}" for index in range(width)]


def _is_camera(key: str) -> bool:
    return key == IMAGE or key.startswith(PICTURES)


def _picture(tensor: Any) -> np.ndarray:
    """(1, 3, H, W) in [0, 1] as (H, W, 3) uint8."""
    return np.ascontiguousarray((tensor[0].permute(1, 2, 0) * 255).round().byte().cpu().numpy())


def _batched(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _batched(part) for key, part in value.items()}
    return np.ascontiguousarray(np.asarray(value)[None])


def _without_limits(env: Any) -> Any:
    """The environment without gymnasium's outermost wrappers: how long an episode is, is decided here."""
    from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

    while isinstance(env, TimeLimit | OrderEnforcing | PassiveEnvChecker):
        env = env.env
    return env
