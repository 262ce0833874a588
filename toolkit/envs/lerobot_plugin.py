"""The fast Meta-World and its suites as an environment of LeRobot: `--env.type=vag_metaworld`.

Scenes are those of `vag evaluate`: `lerobot-eval --seed=N` rolls out on scenes N, N + 1, ... of every task.
Pictures are `pixels`, (image_size, image_size, 3) uint8, which LeRobot turns into `observation.image`; states are
`agent_pos`, (4,) float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import SyncVectorEnv, VectorEnv
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import _LazyAsyncVectorEnv, freeze_after_episode_end
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

from toolkit.base.errors import UserError, nearest
from toolkit.data.episode import IMAGE
from toolkit.envs.metaworld import ACTION_NAMES, FPS, STATE_NAMES, MetaWorldEnv, instructions, scene_stream
from toolkit.envs.perturbations import Perturbation
from toolkit.envs.shifts import SUITES, paraphrase

# Axes of a suite that this environment has.
SHOWN = ("text", "positions", "visual", "paraphrased", "new_tasks", "perturbed")
LEROBOT_SEED = 1000  # of `lerobot-eval`, where no other is named


@EnvConfig.register_subclass("vag_metaworld")
@dataclass
class VagMetaWorldConfig(EnvConfig):
    """Options of the environment, each `--env.NAME=` on the command line.

    task: one task or several, separated by commas, such as push,drawer-open; a version (push-v3) is taken off.
    suite: how scenes differ from those of training, one of `SUITES`.
    image_size: pixels a side. episode_length: steps after which an episode has failed.
    first_seed: for a suite that takes some scenes only (`position`), the first seed: lerobot-eval's `--seed`.
    Raises UserError for an unknown task or suite, or numbers out of range.
    """

    task: str | None = "push"
    suite: str = "unseen"
    image_size: int = 64
    episode_length: int = 100
    first_seed: int = LEROBOT_SEED
    fps: int = FPS
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(
        default_factory=lambda: {ACTION: ACTION, "pixels": OBS_IMAGE, "agent_pos": OBS_STATE}
    )

    def __post_init__(self) -> None:
        if self.suite not in SUITES:
            raise UserError(f"env.suite: unknown suite '{self.suite}'. {nearest(self.suite, SUITES)}")
        if axes := [name for name, value in vars(SUITES[self.suite]).items() if name not in SHOWN and value]:
            raise UserError(
                f"env.suite={self.suite}: vag_metaworld does not show it ({', '.join(axes)}); vag evaluate does"
            )
        if not self.tasks:
            raise UserError("env.task is empty; name one task or several, separated by commas: push,drawer-open")
        for task in self.tasks:
            if task not in instructions():
                raise UserError(f"env.task: unknown Meta-World task '{task}'. {nearest(task, instructions())}")
        for name, least in (("image_size", 4), ("episode_length", 1), ("first_seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"env.{name}={getattr(self, name)}: expected {least} or more")
        if self.fps != FPS:
            raise UserError(f"env.fps={self.fps}: Meta-World has {FPS} steps a second; leave it out")
        if self.max_parallel_tasks != 1:
            raise UserError(
                f"env.max_parallel_tasks={self.max_parallel_tasks}: one thread of a process can render; leave it at 1"
            )
        size = self.image_size
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (len(ACTION_NAMES),)),
            "pixels": PolicyFeature(FeatureType.VISUAL, (size, size, 3)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (len(STATE_NAMES),)),
        }

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, without version, each once."""
        words = (word.strip().removeprefix("metaworld-").removesuffix("-v3") for word in (self.task or "").split(","))
        return list(dict.fromkeys(filter(None, words)))

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """What a `VagMetaWorld` is made with, besides its task."""
        names = ("suite", "image_size", "episode_length", "first_seed")
        return {name: getattr(self, name) for name in names}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict[str, dict[int, VectorEnv]]:
        """{suite: {number of the task in `task`: `n_envs` environments}}; nothing is simulated before their reset."""
        make = self._make_async if use_async_envs and n_envs > 1 else self._make_in_step
        return {self.suite: {number: make(task, n_envs) for number, task in enumerate(self.tasks)}}

    def _make_in_step(self, task: str, count: int) -> VectorEnv:
        worlds: list[MetaWorldEnv] = []  # of this process: they share one renderer
        makers: list[Callable[[], gym.Env]] = [
            partial(VagMetaWorld, task, worlds=worlds, **self.gym_kwargs) for _ in range(count)
        ]
        return SyncVectorEnv([freeze_after_episode_end(make) for make in makers])

    def _make_async(self, task: str, count: int) -> Any:
        make = partial(VagMetaWorld, task, **self.gym_kwargs)
        shown = make()
        # LeRobot's own: worker processes start when the task's turn comes, and end with it.
        return _LazyAsyncVectorEnv([make] * count, shown.observation_space, shown.action_space, shown.metadata)


class VagMetaWorld(gym.Env):
    """One task behind Gymnasium's interface. An episode ends when the task is solved; the reward is 1 then, else 0.

    worlds: simulations of the same task in this process, which this one joins, to be drawn by the same renderer.
    The simulation is made at the first reset, in the process that uses it. The other parameters are those of
    `VagMetaWorldConfig`.
    """

    def __init__(
        self,
        task: str,
        suite: str = "unseen",
        image_size: int = 64,
        episode_length: int = 100,
        first_seed: int = LEROBOT_SEED,
        worlds: list[MetaWorldEnv] | None = None,
    ) -> None:
        self.task, self.suite, self.image_size, self.first_seed = task, SUITES[suite], image_size, first_seed
        self.metadata, self.render_mode = {"render_modes": ["rgb_array"], "render_fps": FPS}, "rgb_array"
        self._max_episode_steps = episode_length  # LeRobot reads it by this name
        self._worlds = [] if worlds is None else worlds
        self._world: MetaWorldEnv | None = None
        self._perturbation: Perturbation | None = None
        self._picture = np.zeros((image_size, image_size, 3), np.uint8)
        self._steps = self._scene = 0
        self._stream = scene_stream(task, first_seed, self.suite.positions)
        self._taken: list[int] = []  # scenes from the stream
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Box(0, 255, self._picture.shape, np.uint8),
                "agent_pos": gym.spaces.Box(-np.inf, np.inf, (len(STATE_NAMES),), np.float32),
            }
        )
        self.action_space = gym.spaces.Box(-1, 1, (len(ACTION_NAMES),), np.float32)

    @property
    def task_description(self) -> str:
        """The instruction; in suite `language`, in the words of the present scene."""
        text = instructions()[self.task]
        return paraphrase(text, self._scene) if self.suite.paraphrased else text

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Put the scene of a seed, or without one a random scene; returns the observation and is_success = False.

        Raises UserError if the suite takes some scenes only and the seed lies before `first_seed`.
        """
        super().reset(seed=seed)
        if seed is None:
            seed = self.first_seed + int(self.np_random.integers(1000))
        self._scene, self._steps = self.scene_of(seed), 0
        if self._world is None:
            if self._worlds:
                self._world = self._worlds[0].sibling()
            else:
                self._world = MetaWorldEnv(self.task, self.image_size, visual_shift=self.suite.visual)
            self._worlds.append(self._world)
        state = self._world.reset(self._scene)
        if self.suite.perturbed:
            self._perturbation = Perturbation(self._world, self._scene, self._max_episode_steps)
        return self._observe(self._world, state), {"is_success": False}

    def scene_of(self, seed: int) -> int:
        """The scene of a seed: itself, or where the suite takes some only, the one `vag evaluate` takes in its turn."""
        if self.suite.positions == "all":
            return seed
        turn = seed - self.first_seed
        if turn < 0:
            raise UserError(f"seed {seed} lies before env.first_seed={self.first_seed}; give both the same number")
        self._taken.extend(islice(self._stream, max(0, turn + 1 - len(self._taken))))
        return self._taken[turn]

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Execute one action (4,), clipped to [-1, 1]."""
        if self._world is None:
            raise UserError("vag_metaworld: reset comes before the first step")
        executed = action if self._perturbation is None else self._perturbation.executed(action)
        state, solved = self._world.step(executed)
        self._steps += 1
        observation = self._observe(self._world, state)
        return observation, float(solved), solved, self._steps >= self._max_episode_steps, {"is_success": solved}

    def render(self) -> np.ndarray:
        """The picture of the last observation, (image_size, image_size, 3) uint8: it is not drawn again."""
        return self._picture

    def close(self) -> None:
        """Free what pictures are drawn with."""
        if self._world is not None:
            self._world.close()

    def _observe(self, world: MetaWorldEnv, state: np.ndarray) -> dict[str, np.ndarray]:
        self._picture = world.render()[IMAGE]
        return {"pixels": self._picture, "agent_pos": state}
