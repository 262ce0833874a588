"""Meta-World with fast rendering, and its scripted experts as a stand-in for a teleoperator.

Pictures differ from stock Meta-World on purpose: a narrower camera (at the stock field of view a goal is two
pixels wide), no shadows, reflections or sky, and visual meshes thinned to what a small picture can show.
Software rendering then takes a few milliseconds instead of a hundred. Physics is untouched: all of this happens
in a copy of the model that only the renderer sees.

The first picture of an episode differs too: stock Meta-World moves goals and furniture after its last pass of
kinematics, so right after a reset more than half of the tasks show (and tell their expert) a scene that is not
the one simulated, with the goal up to 24 cm off. Here the scene is settled before anyone looks at it.

This module imports neither torch nor LeRobot, so that worker processes start fast.
"""

from __future__ import annotations

import atexit
import copy
import itertools
import json
import os
import sys
import warnings
import weakref
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data.schema import PICTURE_EVERY, Episode
from toolkit.envs.shifts import HELD_OUT_FROM, POSITIONS, Looks, takes_part
from toolkit.errors import UserError, nearest

os.environ.setdefault("MUJOCO_GL", "egl")

STATE_NAMES = ["hand_x", "hand_y", "hand_z", "gripper"]
ACTION_NAMES = ["delta_x", "delta_y", "delta_z", "gripper"]
FPS = 80  # Meta-World's control rate: 5 physics steps of 2.5 ms
CAMERA, CAMERA_POSITION, CAMERA_FOVY = "corner2", (0.75, 0.075, 0.7), 36.0
MESH_CELL_M = 0.008  # visual meshes are thinned to this grid; one pixel of 64 shows about one centimetre
CYLINDER_SLICES = 12  # corners of a cylinder or sphere; less than a millimetre off on what the robot handles
FLOOR_GRID_M = 1.0  # the floor's plane comes as 6,400 tiles of 10 cm, all of one colour
HIDDEN_GROUP = 5  # MuJoCo draws groups 0 to 2
MOST_MISSED = 200  # scenes in a row
NOISE_PULL = 0.15  # share of the operator noise that is lost per step

_rendering: weakref.WeakSet[MetaWorldEnv] = weakref.WeakSet()


@cache
def instructions() -> dict[str, str]:
    """Instruction of every task (`push`, without version), as LeRobot words them."""
    spec = find_spec("lerobot")
    if spec is None or spec.origin is None:
        raise UserError("Meta-World needs the robot extras: pip install 'lerobot_policy_vag[robot]'")
    table = json.loads((Path(spec.origin).parent / "envs/metaworld_config.json").read_text())
    return {name.removesuffix("-v3"): text for name, text in table["TASK_DESCRIPTIONS"].items()}


def thin_meshes(model: Any, cell: float, min_faces: int = 1000) -> Any:
    """A copy of a MuJoCo model, for rendering only, whose large meshes are clustered on a grid of `cell` metres.

    Vertices of one cell collapse to the one nearest their mean; faces that lose a corner or stand twice go.
    Rendering in software is bound by vertices, not by pixels: this is what makes it fast.
    """
    model = copy.copy(model)
    for mesh in range(model.nmesh):
        start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        if count < min_faces:
            continue
        first_vertex = model.mesh_vertadr[mesh]
        vertices = model.mesh_vert[first_vertex : first_vertex + model.mesh_vertnum[mesh]]
        faces = model.mesh_face[start : start + count].copy()
        _, cluster = np.unique(np.floor(vertices / cell).astype(np.int64), axis=0, return_inverse=True)
        cluster = cluster.ravel()
        size = np.bincount(cluster)
        mean = np.stack([np.bincount(cluster, vertices[:, k]) for k in range(3)], axis=1) / size[:, None]
        distance = np.square(vertices - mean[cluster]).sum(1)
        order = np.lexsort((distance, cluster))
        representative = order[np.unique(cluster[order], return_index=True)[1]]
        faces = representative[cluster[faces]]
        a, b, c = faces.T
        kept = np.flatnonzero((a != b) & (b != c) & (a != c))
        kept = kept[np.sort(np.unique(np.sort(faces[kept], axis=1), axis=0, return_index=True)[1])]
        stop = start + len(kept)
        model.mesh_face[start:stop] = faces[kept]
        model.mesh_facenormal[start:stop] = model.mesh_facenormal[start + kept]
        model.mesh_facetexcoord[start:stop] = model.mesh_facetexcoord[start + kept]
        model.mesh_facenum[mesh] = len(kept)
    return model


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
        self.image_size, self.supersample, self.mesh_cell_m = image_size, supersample, mesh_cell_m
        self.hide_robot, self.visual_shift = hide_robot, visual_shift
        self._env = _environment_classes()[f"{self.task}-v3-goal-observable"]()
        self._env._freeze_rand_vec = False
        self._env.seeded_rand_vec = True
        self._env.max_path_length = 1_000_000
        self._renderer: Any = None
        self._looks: Any = None
        self._drawn: int | None = None  # scene whose look is on
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

    def render(self) -> np.ndarray:
        """Picture of the present instant, (image_size, image_size, 3) uint8. Raises UserError without OpenGL."""
        import mujoco

        if self._renderer is None:
            self._renderer = self._make_renderer()
        renderer = self._renderer
        if self.visual_shift and self._drawn != self._seed:
            self._looks.draw(self._seed)
            self._drawn = self._seed
            mujoco.mj_camlight(self._env.model, self._env.data)
        renderer.model.geom_group[:] = np.where(self._in_view(), self._geom_group, HIDDEN_GROUP)
        renderer.update_scene(self._env.data, camera=CAMERA)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX"):
            renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        if self.visual_shift:
            self._looks.add_distractors(renderer.scene)
        picture = renderer.render()[::-1, ::-1]
        s, size = self.supersample, self.image_size
        if s == 1:
            return picture.copy()
        total = np.zeros((size, size, 3), np.uint16)
        for row in range(s):
            for column in range(s):
                total += picture[row::s, column::s]
        return ((total + s * s // 2) // (s * s)).astype(np.uint8)

    def _in_view(self) -> np.ndarray:
        """(geoms,) False where a geom's bounding box lies outside the view, where MuJoCo would draw it all the same."""
        model, data = self._renderer.model, self._env.data
        half = np.radians(CAMERA_FOVY / 2)
        # Outward normals of the view's four sides, in the camera's axes: x right, y up, z towards the viewer.
        sides = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)]) * np.cos(half) + (0, 0, np.sin(half))
        normals = sides @ data.cam_xmat[self._camera].reshape(3, 3).T  # (4, 3) in world axes
        local = normals @ data.geom_xmat.reshape(-1, 3, 3)  # (geoms, 4, 3) in each geom's axes
        centre, size = model.geom_aabb[:, None, :3], model.geom_aabb[:, None, 3:]
        nearest_point = (local * centre - np.abs(local) * size).sum(-1)
        nearest_point += (data.geom_xpos - data.cam_xpos[self._camera]) @ normals.T
        return (nearest_point <= 0).all(1) | (model.geom_type == 0)  # planes have no bounds

    def close(self) -> None:
        """Free the OpenGL context; a later `render` makes a new one."""
        if self._renderer is not None:
            self._looks.take_off()
            self._renderer.close()
            self._renderer = None

    def _state(self) -> np.ndarray:
        return self.observation[:4].astype(np.float32)

    def _make_renderer(self) -> Any:
        import mujoco

        model = copy.copy(self._env.model)
        if self.mesh_cell_m:
            model = thin_meshes(model, self.mesh_cell_m)
        camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, CAMERA)
        self._camera, self._geom_group = camera, model.geom_group.copy()
        if self.hide_robot:
            hand = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "hand")
            robot = model.body_rootid[model.geom_bodyid] == model.body_rootid[hand]
            self._geom_group[robot] = HIDDEN_GROUP
        model.cam_pos[camera], model.cam_fovy[camera] = CAMERA_POSITION, CAMERA_FOVY
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        model.vis.quality.numslices, model.vis.quality.numstacks = CYLINDER_SLICES, CYLINDER_SLICES // 2
        model.vis.quality.numquads = 1  # a box face lit at its corners alone
        planes = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
        model.geom_size[planes, 2] = np.maximum(model.geom_size[planes, 2], FLOOR_GRID_M)
        side = self.image_size * self.supersample
        model.vis.global_.offwidth = model.vis.global_.offheight = side
        # The data holds the camera's place from the last step: kinematics must see the moved camera.
        self._env.model.cam_pos[camera] = CAMERA_POSITION
        mujoco.mj_camlight(self._env.model, self._env.data)
        self._looks, self._drawn = Looks(model, self._env.model, camera), None

        class Renderer(mujoco.Renderer):
            _gl_context = _mjr_context = None  # so that one whose construction failed can still be deleted

        try:
            renderer = Renderer(model, side, side)
        except Exception as error:  # the GL loaders raise many classes
            raise _no_opengl(error) from error
        if not _rendering:
            atexit.register(_close_all)  # after MuJoCo's own hook, hence before it: contexts die before the display
        _rendering.add(self)
        return renderer


def _close_all() -> None:
    for env in list(_rendering):
        env.close()


def _environment_classes() -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    except ModuleNotFoundError as error:
        raise UserError(f"no module '{error.name}': pip install 'lerobot_policy_vag[robot]'") from error
    except Exception as error:  # without its libraries, importing MuJoCo fails in PyOpenGL
        raise _no_opengl(error) from error
    return ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE


def _no_opengl(error: Exception) -> UserError:
    chosen, module = os.environ.get("MUJOCO_GL", ""), sys.modules.get("mujoco.gl_context")
    loaded = getattr(getattr(module, "GLContext", None), "__module__", f"mujoco.{chosen}")
    if not loaded.startswith(f"mujoco.{chosen}"):
        return UserError(f"mujoco was imported before MUJOCO_GL was set; set MUJOCO_GL={chosen} in the shell")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"cannot render with MUJOCO_GL={chosen} ({reason}); "
        "on Debian: apt-get install libegl1 libgl1 libgl1-mesa-dri libosmesa6, then MUJOCO_GL=egl or MUJOCO_GL=osmesa"
    )


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
        images.append(images[-1] if step % render_every else env.render())
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


def initial_scene(env: MetaWorldEnv, seed: int) -> tuple[np.ndarray, np.ndarray]:
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
    """The process's own environment for a task: building one takes about a second."""
    return MetaWorldEnv(task, image_size, hide_robot=hide_robot)
