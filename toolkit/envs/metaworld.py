"""Meta-World with fast rendering, and its scripted experts as a stand-in for a teleoperator.

Pictures differ from stock Meta-World on purpose: see `toolkit.envs.rendering`. The first one of an episode too: stock
Meta-World moves goals and furniture after its last pass of kinematics, so right after a reset more than half of the
tasks show (and tell their expert) a scene that is not the one simulated, with the goal up to 24 cm off. Here the scene
is settled before anyone looks at it.

This module imports neither torch nor LeRobot, so that worker processes start fast.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, nearest
from toolkit.data.episode import IMAGE, PICTURE_EVERY, Episode
from toolkit.envs.rendering import MESH_CELL_M, SceneRenderer, no_opengl
from toolkit.envs.shifts import HELD_OUT_FROM, POSITIONS, takes_part

STATE_NAMES = ["hand_x", "hand_y", "hand_z", "gripper"]
ACTION_NAMES = ["delta_x", "delta_y", "delta_z", "gripper"]
FPS = 80  # Meta-World's control rate: 5 physics steps of 2.5 ms
MOST_MISSED = 200  # scenes in a row
NOISE_PULL = 0.15  # share of the operator noise that is lost per step


@cache
def instructions() -> dict[str, str]:
    """Instruction of every task (`push`, without version), as LeRobot words them."""
    spec = find_spec("lerobot")
    if spec is None or spec.origin is None:
        raise UserError("Meta-World needs the robot extras: pip install 'lerobot_policy_vag[robot]'")
    table = json.loads((Path(spec.origin).parent / "envs/metaworld_config.json").read_text())
    return {name.removesuffix("-v3"): text for name, text in table["TASK_DESCRIPTIONS"].items()}


class MetaWorldEnv:
    """One task. The same seed and actions give the same states bit for bit, in any process and order.

    hide_robot: leave the robot out of the pictures, as data that any embodiment may use is often prepared.
    visual_shift: each scene has light, colours, a camera pose and distracting objects of its own.
    Raises UserError for an unknown task, or when no OpenGL library can render.
    """

    fps, state_names, action_names = FPS, STATE_NAMES, ACTION_NAMES

    def __init__(
        self,
        task: str,
        image_size: int = 64,
        supersample: int = 2,
        mesh_cell_m: float = MESH_CELL_M,
        hide_robot: bool = False,
        visual_shift: bool = False,
    ) -> None:
        self.task = task.removesuffix("-v3")
        known = instructions()
        if self.task not in known:
            raise UserError(f"unknown Meta-World task '{task}'. {nearest(self.task, known)}")
        self.instruction = known[self.task]
        self._env = _environment_classes()[f"{self.task}-v3-goal-observable"]()
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self._env.max_path_length = 1_000_000
        self._renderer = SceneRenderer(self._env.model, image_size, supersample, mesh_cell_m, hide_robot, visual_shift)
        self._seed = 0
        self.observation = np.zeros(0)

    def reset(self, seed: int) -> np.ndarray:
        """Put the scene of this seed; returns the state (4,): hand x, y, z [m] and gripper opening [0, 1]."""
        import mujoco

        env, self._seed = self._env, seed
        env.seed(seed)
        env.reset(seed=seed)
        # See the module's note on the first picture. Kinematics alone changes nothing that physics starts from.
        mujoco.mj_kinematics(env.model, env.data)
        mujoco.mj_camlight(env.model, env.data)
        env._prev_obs = env._get_curr_obs_combined_no_goal()
        self.observation = env._get_obs()
        return self._state()

    @property
    def position_held_out(self) -> bool:
        """If the object of the present scene, or its goal where the object has one place, is kept from training."""
        space = self._env._random_reset_space
        width = space.high - space.low
        axis = int(np.argmax(width > 0))  # x of the object, as a rule
        return bool(self._env._last_rand_vec[axis] > space.low[axis] + HELD_OUT_FROM * width[axis])

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """Execute an action (4,), clipped to [-1, 1]; returns the state after it and if the task is solved now.

        Raises UserError if the action has another width or is not finite.
        """
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (len(ACTION_NAMES),) or not np.isfinite(action).all():
            raise UserError(f"{self.task}: an action is {len(ACTION_NAMES)} finite numbers, got {action.tolist()}")
        self.observation, _, _, _, info = self._env.step(np.clip(action, -1, 1))
        return self._state(), bool(info["success"])

    def render(self) -> dict[str, np.ndarray]:
        """Pictures of the present instant: observation.image, (image_size, image_size, 3) uint8.

        Raises UserError without OpenGL.
        """
        return {IMAGE: self._renderer.picture(self._env.model, self._env.data, self._seed)}

    def sibling(self) -> MetaWorldEnv:
        """Another environment of the task that is drawn by the same renderer: drawing many at once stays fast."""
        own = self._renderer
        other = type(self)(
            self.task, own.image_size, own.supersample, own.mesh_cell_m, own.hide_robot, own.visual_shift
        )
        other._renderer = own
        return other

    def close(self) -> None:
        """Free what pictures are drawn with; a later `render`, of a sibling too, makes it anew."""
        self._renderer.close()

    def _state(self) -> np.ndarray:
        return self.observation[:4].astype(np.float32)


def _environment_classes() -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    except ModuleNotFoundError as error:
        raise UserError(f"no module '{error.name}': pip install 'lerobot_policy_vag[robot]'") from error
    except Exception as error:  # without its libraries, importing MuJoCo fails in PyOpenGL
        raise no_opengl(error) from error
    return ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE


class ScriptedTeleoperator:
    """Meta-World's scripted expert with Ornstein-Uhlenbeck noise, like an operator's unsteady hand.

    noise_scale: stationary deviation of the noise on the three translation actions. operator: another number has
    another unsteady hand.
    """

    def __init__(self, task: str, seed: int, noise_scale: float = 0.1, operator: int = 0) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        expert: Any = ENV_POLICY_MAP[f"{task.removesuffix('-v3')}-v3"]
        self._expert = expert()  # may hold state: one per episode
        # Not default_rng(seed): Meta-World draws the scene from that stream, and the noise would give it away.
        self._rng = np.random.default_rng((seed, 1, operator))
        self._noise, self._scale = np.zeros(3), noise_scale

    def action(self, observation: np.ndarray) -> np.ndarray:
        """The action to execute, clipped to [-1, 1], float32 (4,). observation: Meta-World's own (39,)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high": the environment clips, so do we
            action = np.array(self._expert.get_action(observation), dtype=np.float64)
        fresh = np.sqrt(1 - (1 - NOISE_PULL) ** 2) * self._scale * self._rng.standard_normal(3)
        self._noise = (1 - NOISE_PULL) * self._noise + fresh
        action[:3] += self._noise
        return np.clip(action, -1, 1).astype(np.float32)


def record_episode(
    env: MetaWorldEnv, seed: int, num_steps: int, noise_scale: float = 0.1, operator: int = 0, render_every: int = 1
) -> tuple[Episode, bool]:
    """One episode of `num_steps` steps by the scripted teleoperator; success = solved at any step.

    render_every: steps from one picture to the next; those between repeat the last, as with a slow camera.
    """
    state = env.reset(seed)
    teleoperator = ScriptedTeleoperator(env.task, seed, noise_scale, operator)
    images: list[np.ndarray] = []
    states, actions, success = [], [], False
    for step in range(num_steps):
        images.append(images[-1] if step % render_every else env.render()[IMAGE])
        states.append(state)
        actions.append(teleoperator.action(env.observation))
        state, solved = env.step(actions[-1])
        success |= solved
    metadata: dict[str, str | int | float | bool] = {
        "seed": seed,
        "task_name": env.task,
        "success": success,
        "source": "teleoperation",
        PICTURE_EVERY: render_every,
    }
    return Episode(np.stack(images), np.stack(states), np.stack(actions), env.instruction, metadata), success


def initial_scene(env: MetaWorldEnv, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Picture (H, W, 3) and state (S,) of a scene before anything moved."""
    state = env.reset(seed)
    return env.render(), state


def scene_stream(task: str, first_seed: int, positions: str = "all") -> Iterator[int]:
    """Seeds from `first_seed` on whose scenes take part: `all`, or those of `inner` or `outer` object positions.

    Raises UserError for other positions, or for a task whose object always stands in one of them.
    """
    if positions not in POSITIONS:
        raise UserError(f"positions={positions}: expected one of {', '.join(POSITIONS)}")
    env = cached_env(task, 64) if positions != "all" else None
    missed = 0
    for seed in itertools.count(first_seed):
        if env is not None:
            env.reset(seed)
        if env is None or takes_part(positions, env.position_held_out):
            missed = 0
            yield seed
        elif (missed := missed + 1) == MOST_MISSED:
            raise UserError(f"'{task}': {missed} scenes in a row are not of positions={positions}; choose another task")


@cache
def cached_env(task: str, image_size: int, hide_robot: bool = False) -> MetaWorldEnv:
    """The process's own environment for a task, with a renderer that is made once."""
    return MetaWorldEnv(task, image_size, hide_robot=hide_robot)
