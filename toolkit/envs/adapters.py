"""What is known of worlds that others made, beyond LeRobot's interface: names, texts, drawing on demand, demonstrators.

A world without an adapter works too; it draws with every step, and its dimensions have numbers for names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from toolkit.data.images import resized
from toolkit.envs.aloha import CUBE, plan
from toolkit.envs.base import Demonstrator
from toolkit.envs.perturbations import action_range
from toolkit.envs.shifts import HELD_OUT_FROM

Drawer = Callable[[tuple[int, int]], dict[str, np.ndarray]]  # (height, width) -> pictures by name
SUPERSAMPLE = 2
NOISE_PULL = 0.15  # share of the operator noise that is lost per step


@dataclass(frozen=True)
class Adapter:
    """options: in place of the world's own defaults. texts: instructions by task, where the world has none.

    drawing: stops an environment from drawing with every step; returns its own picture size and what draws when asked.
    demonstrator: of an environment that was just reset, (env, seed, noise_scale, operator). position_held_out: if the
    object of the present scene stands in the last part of its range in x.
    """

    robot_type: str = "unknown"
    options: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    state_names: Sequence[str] = ()
    action_names: Sequence[str] = ()
    drawing: Callable[[Any], tuple[tuple[int, int], Drawer]] | None = None
    demonstrators: Mapping[str, Callable[[Any, int, float, int], Demonstrator]] = field(default_factory=dict)
    position_held_out: Callable[[Any], bool] | None = None


class UnsteadyHand:
    """Ornstein-Uhlenbeck noise, like an operator's. scale: (A,) stationary deviation of each number of an action."""

    def __init__(self, scale: np.ndarray, seed: int, operator: int) -> None:
        self._rng, self._scale, self._noise = np.random.default_rng((seed, 1, operator)), scale, np.zeros(len(scale))

    def noise(self) -> np.ndarray:
        """Of the next step (A,)."""
        fresh = np.sqrt(1 - (1 - NOISE_PULL) ** 2) * self._scale * self._rng.standard_normal(len(self._scale))
        self._noise = (1 - NOISE_PULL) * self._noise + fresh
        return self._noise


class OwnExpert:
    """An environment's own method `expert_action() -> (A,)`, with noise in units of half the range of each number."""

    def __init__(self, env: Any, seed: int, noise_scale: float, operator: int) -> None:
        self._limits = action_range(env)
        self._hand = UnsteadyHand(noise_scale * (self._limits[1] - self._limits[0]) / 2, seed, operator)

    def action(self, env: Any, pictures: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
        """The next action (A,) float32, within the limits."""
        action = np.ravel(env.unwrapped.expert_action()) + self._hand.noise()
        return np.clip(action, *self._limits).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------- gym-aloha


ALOHA_NOISE_RAD = 0.05
ALOHA_JOINTS = [
    f"{side}_{joint}"
    for side in ("left", "right")
    for joint in ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
]


def aloha_drawing(env: Any) -> tuple[tuple[int, int], Drawer]:
    """gym-aloha draws three cameras of 480x640 a step and shows one."""
    task, physics = env._env.task, env._env.physics
    blank = np.zeros((env.observation_height, env.observation_width, 3), np.uint8)
    task.get_observation = lambda physics: {"qpos": task.get_qpos(physics), "images": {"top": blank}}

    def draw(size: tuple[int, int]) -> dict[str, np.ndarray]:
        height, width = (SUPERSAMPLE * side for side in size)
        large = min(height, width) > 480  # more than what the world itself shows
        height, width = size if large else (height, width)
        return {"top": resized(physics.render(height=height, width=width, camera_id="top")[None], size)[0]}

    return (env.observation_height, env.observation_width), draw


class TransferDemonstrator:
    """`toolkit.envs.aloha` in a scene that was just reset, with noise on the twelve angles.

    noise_scale: stationary deviation in units of ALOHA_NOISE_RAD.
    """

    def __init__(self, env: Any, seed: int, noise_scale: float = 0.1, operator: int = 0) -> None:
        self._joints, self._step = plan(env._env.physics), 0
        angles = np.array([not joint.endswith("gripper") for joint in ALOHA_JOINTS])
        self._hand = UnsteadyHand(noise_scale * ALOHA_NOISE_RAD * angles, seed, operator)

    def action(self, env: Any, pictures: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
        """The next joint vector (14,) float32; the last one again after the end."""
        self._step += 1
        return (self._joints[min(self._step, len(self._joints)) - 1] + self._hand.noise()).astype(np.float32)


def aloha_held_out(env: Any) -> bool:
    low, high = (0.0, 0.2) if env.task == "transfer_cube" else (0.1, 0.2)  # of gym_aloha.utils
    return bool(env._env.physics.data.qpos[CUBE.start] > low + HELD_OUT_FROM * (high - low))


ALOHA = Adapter(
    robot_type="aloha",
    texts={
        "AlohaTransferCube-v0": "Pick up the cube with the right arm and transfer it to the left arm.",
        "AlohaInsertion-v0": "Insert the peg into the socket.",
    },
    state_names=ALOHA_JOINTS,
    action_names=ALOHA_JOINTS,
    drawing=aloha_drawing,
    demonstrators={"AlohaTransferCube-v0": TransferDemonstrator},
    position_held_out=aloha_held_out,
)


# ----------------------------------------------------------------------------------------------- lerobot-env-so101


class SO101Demonstrator:
    """The package's own scripted pick-and-place, with Ornstein-Uhlenbeck noise on the three translations.

    noise_scale: stationary deviation in units of the action, of which the largest is 1.
    """

    def __init__(self, env: Any, seed: int, noise_scale: float = 0.1, operator: int = 0) -> None:
        from lerobot_env_so101.scripted import PickPlaceController

        self._expert = PickPlaceController(action_scale=env._action_scale)
        self._hand = UnsteadyHand(np.full(3, noise_scale), seed, operator)

    def action(self, env: Any, pictures: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
        """The next action (4,) float32, within the limits."""
        robot = env.unwrapped
        action = self._expert.act(robot.ik_point_pos, robot.data.sensor("block_pos").data, robot.goal_pos)
        return np.array([*np.clip(action[:3] + self._hand.noise(), -1, 1), action[3]], np.float32)


def so101_drawing(env: Any) -> tuple[tuple[int, int], Drawer]:
    """With image_obs it draws with every step."""
    own, spec = env.render, env._render_specs
    blank = np.zeros((spec.height, spec.width, 3), np.uint8)
    env.render = lambda: blank
    return (spec.height, spec.width), lambda size: {"front": resized(own()[None], size)[0]}


def so101_held_out(env: Any) -> bool:
    low, high = (0.15, 0.3) if hasattr(env, "goal_pos") else (0.2, 0.4)  # where a block may stand in x [m]
    return bool(env.data.sensor("block_pos").data[0] > low + HELD_OUT_FROM * (high - low))


SO101_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
SO101 = Adapter(
    robot_type="so101",
    options={"image_obs": True, "random_block_position": True, "action_scale": 0.025},
    texts={
        "SO101PickPlace-v0": "Pick up the cube and place it at the goal.",
        "SO101PickCube-v0": "Pick up the cube.",
    },
    state_names=[
        *(f"{joint}.pos" for joint in SO101_JOINTS),
        *(f"{joint}.vel" for joint in SO101_JOINTS),
        *("gripper", "hand_x", "hand_y", "hand_z"),
    ],
    action_names=["delta_x", "delta_y", "delta_z", "gripper"],
    drawing=so101_drawing,
    demonstrators={"SO101PickPlace-v0": SO101Demonstrator},
    position_held_out=so101_held_out,
)

PUSHT = Adapter(
    robot_type="pusht",
    texts={"PushT-v0": "Push the T-shaped block onto the T-shaped target."},
    state_names=["x", "y"],
    action_names=["x", "y"],
)

ADAPTERS = {"gym_aloha": ALOHA, "lerobot_env_so101": SO101, "gym_pusht": PUSHT}  # by package


def adapter_of(package: str) -> Adapter:
    """Of the package that registers a world; an empty one where nothing more is known of it."""
    return ADAPTERS.get(package, Adapter())
