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
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, nearest
from toolkit.data.episode import IMAGE, PICTURE_EVERY, Episode
from toolkit.envs.base import Size
from toolkit.envs.recording import record_episode as record
from toolkit.envs.rendering import MESH_CELL_M, SceneRenderer, no_opengl
from toolkit.envs.shifts import HELD_OUT_FROM, POSITIONS, SUITES, Suite, takes_part
from toolkit.envs.worlds import METAWORLD

STATE_NAMES = ["hand_x", "hand_y", "hand_z", "gripper"]
ACTION_NAMES = ["delta_x", "delta_y", "delta_z", "gripper"]
SIDE = 64  # pixels of a picture where nobody says
FPS = 80  # Meta-World's control rate: 5 physics steps of 2.5 ms
MOST_MISSED = 200  # scenes in a row
NOISE_PULL = 0.15  # share of the operator noise that is lost per step
PUSHED_M, MOVED_M = (
    (0.05, 0.1),
    0.05,
)  # how far the suite `perturbed` pushes the hand, and at most the object in x and y


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
    action_limits = np.full(4, -1.0), np.full(4, 1.0)
    ended = False  # here no episode ends by itself

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

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """(height, width) of the one camera."""
        return {IMAGE: (self._renderer.image_size, self._renderer.image_size)}

    @property
    def disturbances(self) -> Sequence[str]:
        """push: the hand; move: the object, where it lies free."""
        return ("push", "move") if len(self._free_joints()) else ("push",)

    def disturb(self, kind: str, rng: np.random.Generator) -> None:
        """Push the hand so far in a direction along the table, or put the (first) free object elsewhere."""
        import mujoco

        env = self._env
        if kind == "push":
            angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(*PUSHED_M)
            pushed = env.data.mocap_pos + far * np.array([np.cos(angle), np.sin(angle), 0])
            env.data.mocap_pos[:] = np.clip(pushed, env.mocap_low, env.mocap_high)
        else:
            start = env.model.jnt_qposadr[self._free_joints()[0]]
            env.data.qpos[start : start + 2] += rng.uniform(-MOVED_M, MOVED_M, 2)
            mujoco.mj_kinematics(env.model, env.data)

    def _free_joints(self) -> np.ndarray:
        import mujoco

        return np.flatnonzero(self._env.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)

    def finish(self) -> None:
        """Every step says whether the task is solved."""

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


class Expert:
    """`ScriptedTeleoperator` in sight of its environment."""

    def __init__(self, task: str, seed: int, noise_scale: float, operator: int) -> None:
        self._teleoperator = ScriptedTeleoperator(task, seed, noise_scale, operator)

    def action(self, env: Any, pictures: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
        """The next action (4,) float32."""
        return self._teleoperator.action(env.observation)


def record_episode(
    env: MetaWorldEnv, seed: int, num_steps: int, noise_scale: float = 0.1, operator: int = 0, render_every: int = 1
) -> tuple[Episode, bool]:
    """One episode of `num_steps` steps by the scripted teleoperator; success = solved at any step.

    render_every: steps from one picture to the next; those between repeat the last, as with a slow camera.
    """
    episode, success = record(env, seed, num_steps, lambda: Expert(env.task, seed, noise_scale, operator), render_every)
    episode.metadata |= {"success": success, PICTURE_EVERY: render_every}
    return episode, success


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


class MetaWorld:
    """Meta-World behind the `World` protocol."""

    name, robot_type = METAWORLD, "sawyer"
    suites: Mapping[str, Suite] = SUITES

    @property
    def tasks(self) -> Sequence[str]:
        return list(instructions())

    def task_name(self, task: str) -> str:
        """Without its version. Raises UserError for an unknown one."""
        name = task.removesuffix("-v3")
        if name not in instructions():
            raise UserError(f"unknown Meta-World task '{name}'. {nearest(name, instructions())}")
        return name

    def instruction(self, task: str) -> str:
        return instructions()[self.task_name(task)]

    def scene_name(self, task: str) -> str:
        """The bare task, as in all data of before there were other worlds."""
        return task.removesuffix("-v3")

    def make(self, task: str, count: int = 1, size: Size = None, visual: bool = False) -> list[MetaWorldEnv]:
        """Environments that share a renderer."""
        first = MetaWorldEnv(task, side_of(size), visual_shift=visual)
        return [first, *(first.sibling() for _ in range(count - 1))]

    def shared(self, task: str, size: Size = None, hide_robot: bool = False) -> MetaWorldEnv:
        return cached_env(task, side_of(size), hide_robot)

    def demonstrator(self, env: Any, seed: int, noise_scale: float, operator: int) -> Expert:
        return Expert(env.task, seed, noise_scale, operator)

    def scene_stream(self, task: str, first_seed: int, positions: str = "all") -> Iterator[int]:
        return scene_stream(task, first_seed, positions)

    def check_repeats(self, task: str) -> None:
        """It does: a test compares states bit for bit, in other processes and orders."""


def side_of(size: Size) -> int:
    """Pixels a side. Raises UserError for pictures that are not square."""
    if isinstance(size, tuple) and size[0] != size[1]:
        raise UserError(f"image_size={list(size)}: Meta-World's pictures are square; give one number")
    return size[0] if isinstance(size, tuple) else size or SIDE
