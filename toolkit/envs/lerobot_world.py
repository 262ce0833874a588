"""A world behind LeRobot's `EnvConfig`, or registered with gymnasium after LeRobot's convention.

LeRobot and torch are imported when a world is opened.
"""

from __future__ import annotations

import importlib
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, first_line, nearest, warn
from toolkit.data.seen_scenes import scene_name
from toolkit.envs.adapters import OwnExpert, adapter_of
from toolkit.envs.base import Demonstrator, Size
from toolkit.envs.lerobot_env import LeRobotEnv
from toolkit.envs.shifts import EVERYWHERE, POSITIONS, SUITES, Suite, takes_part
from toolkit.envs.worlds import WorldSpec

MOST_MISSED = 200  # scenes in a row
TRIED_STEPS = 5  # of the check that a reset repeats
SHIFTED = 32  # levels by which a colour differs where something stands elsewhere; drawing itself differs by a few


class LeRobotWorld:
    """The world of a spec whose env is lerobot:<type> or gymnasium:<id>.

    Raises UserError if it does not exist, or options do not fit it.
    """

    def __init__(self, spec: WorldSpec) -> None:
        self.spec, self.name = spec, spec.env
        self._kind, _, self._id = spec.env.partition(":")
        self._given: dict[str, Any] = json.loads(spec.options)
        self._shared: dict[Any, LeRobotEnv] = {}
        self._repeating: dict[str, str] = {}
        if self._kind == "lerobot":
            self._config_class = _config_class(self._id)
            self._package = str(self._config_class().package_name)
        else:
            self._package = self._id.rpartition(":")[2].partition("/")[0]
        self.adapter = adapter_of(self._package)
        self._options = self._checked_options()
        self.robot_type = self.adapter.robot_type
        where_known = {"position": self.adapter.position_held_out is not None, "task": len(self.tasks) != 1}
        names = [*EVERYWHERE, *(name for name, known in where_known.items() if known)]
        self.suites: Mapping[str, Suite] = {name: suite for name, suite in SUITES.items() if name in names}

    @property
    def tasks(self) -> list[str]:
        """Tasks that gymnasium knows of the package; of a registered environment the one that it is."""
        if self._kind == "gymnasium":
            return [self._id.rpartition("/")[2].rpartition(":")[2]]
        return _registered(self._package)

    def task_name(self, task: str) -> str:
        """Raises UserError for a task that does not exist, as far as the world lists them."""
        if self.tasks and task not in self.tasks:
            raise UserError(f"env={self.name}: unknown task '{task}'. {nearest(task, self.tasks)}")
        return task

    def instruction(self, task: str) -> str:
        """What the robot is asked for."""
        return self._kept(task).instruction

    def scene_name(self, task: str) -> str:
        """World and task."""
        return scene_name(self.name, self.task_name(task))

    def make(self, task: str, count: int = 1, size: Size = None, visual: bool = False) -> list[LeRobotEnv]:
        """One environment: some keep part of their scene where two would share it."""
        if visual:
            raise UserError(f"env={self.name}: has no suite `visual`")
        task = self.task_name(task)
        try:
            env, fps, processors = self._registered_env() if self._kind == "gymnasium" else self._config_env(task)
            text = self.spec.instruction or self.adapter.texts.get(task) or _text_of(env, task)
            return [LeRobotEnv(env, task, text, fps, self.adapter, self.spec.success_key, processors, size)]
        except ImportError as error:  # some ask for their simulator only when they are reset
            raise UserError(f"env={self.name}: not installed ({first_line(error)}); {self._remedy()}") from error
        except Exception as error:  # what a stranger's constructor may raise
            raise UserError(f"env={self.name}, task '{task}': {first_line(error)}") from error

    def shared(self, task: str, size: Size = None, hide_robot: bool = False) -> LeRobotEnv:
        """The process's own environment of a task; its pictures have the size asked for last."""
        if hide_robot:
            raise UserError(f"hide_robot=true: env={self.name} cannot leave the robot out of its pictures")
        env = self._kept(task)
        env.size = size
        return env

    def _kept(self, task: str) -> LeRobotEnv:
        if task not in self._shared:
            (self._shared[task],) = self.make(task)
        return self._shared[task]

    def demonstrator(self, env: Any, seed: int, noise_scale: float, operator: int) -> Demonstrator | None:
        """The one known of the task, see `toolkit.envs.adapters`; else the environment's own `expert_action`."""
        made = self.adapter.demonstrators.get(env.task)
        if made is None and hasattr(env.unwrapped, "expert_action"):
            return OwnExpert(env, seed, noise_scale, operator)
        return None if made is None else made(env.unwrapped, seed, noise_scale, operator)

    def scene_stream(self, task: str, first_seed: int, positions: str = "all") -> Iterator[int]:
        """See `World`. Raises UserError for positions where nothing is known of the object's place."""
        if positions not in POSITIONS:
            raise UserError(f"positions={positions}: expected one of {', '.join(POSITIONS)}")
        if positions != "all" and self.adapter.position_held_out is None:
            raise UserError(f"positions={positions}: env={self.name} does not say where its objects stand")
        missed = 0
        for seed in itertools.count(first_seed):
            if positions != "all":
                env = self._kept(task)
                env.reset(seed)
            if positions == "all" or takes_part(positions, env.position_held_out):
                missed = 0
                yield seed
            elif (missed := missed + 1) == MOST_MISSED:
                raise UserError(f"'{task}': {missed} scenes in a row are not of positions={positions}")

    def check_repeats(self, task: str) -> None:
        """Do it twice, with another scene in between. Says so too where all seeds give one scene."""
        if task not in self._repeating:
            self._repeating[task] = difference_of_repeats(self._kept(task), self.name)
        if difference := self._repeating[task]:
            raise UserError(
                f"env={self.name}: '{task}' does not repeat: after a reset to the same seed the same actions lead to "
                f"{difference}. Its episodes cannot be replayed"
            )

    # ---------------------------------------------------------------------------------------------- how it is made

    def _checked_options(self) -> dict[str, Any]:
        options = {**self.adapter.options, **self._given}
        if self._kind == "gymnasium":
            return options
        fields = list(self._config_class.__dataclass_fields__)
        for key in self._given:
            if key not in fields or key == "task":
                raise UserError(f"env_options: env={self.name} has no '{key}'. {nearest(key, fields)}")
        return {key: value for key, value in options.items() if key in fields}

    def _config_env(self, task: str) -> tuple[Any, int, tuple[Any, Any]]:
        name, _, number = task.partition("/")  # of a config that makes several, such as libero_10/3
        own: dict[str, Any] = {"task": name}
        if number.isdecimal() and "task_ids" in self._config_class.__dataclass_fields__:
            own["task_ids"] = [int(number)]
        config = self._config_class(**{**self._options, **own})
        made = config.create_envs(n_envs=1, use_async_envs=False)
        vectors = {str(key): vector for suite in made.values() for key, vector in suite.items()}
        if len(vectors) > 1 and number not in vectors:
            raise UserError(f"it has {', '.join(vectors)}; name one: {name}/{next(iter(vectors))}")
        vector = vectors.get(number) or next(iter(vectors.values()))
        processors = tuple(part if part.steps else None for part in config.get_env_processors())
        return vector.envs[0], int(config.fps), (processors[0], processors[1])

    def _remedy(self) -> str:
        if self._kind == "lerobot" and self._id in (metadata.metadata("lerobot").get_all("Provides-Extra") or []):
            return f"pip install 'lerobot[{self._id}]'"
        if self._kind == "gymnasium":
            return "install its package, or put the folder of your own module on PYTHONPATH"
        return "install its package; LeRobot has no extra for it"

    def _registered_env(self) -> tuple[Any, int, tuple[None, None]]:
        import gymnasium

        options = dict(self._options)
        fps = options.pop("fps", None)
        if ":" not in self._id and self._id not in gymnasium.registry and "/" in self._id:
            importlib.import_module(self._package)  # as LeRobot does
        env = gymnasium.make(self._id, disable_env_checker=True, **{"render_mode": "rgb_array", **options})
        fps = fps or env.unwrapped.metadata.get("render_fps")
        if not isinstance(fps, int | float) or not fps > 0:
            raise UserError("says no control rate in metadata['render_fps']; give it as env_options={fps: 30}")
        return env, round(fps), (None, None)


def difference_of_repeats(env: LeRobotEnv, name: str) -> str:
    """In words what differs between two runs of the same few actions from the same seed; empty where nothing does.

    Pictures after the last action are compared too: a state may leave out what the robot has to move.
    """
    rng = np.random.default_rng(0)
    low, high = (
        np.where(np.isfinite(limit), limit, sign) for limit, sign in zip(env.action_limits, (-1, 1), strict=True)
    )
    actions = rng.uniform(low, high, (TRIED_STEPS, len(low)))

    def run(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        states = np.stack([env.reset(seed), *(env.step(action)[0] for action in actions)])
        return states, env.render()

    first, seen = run(1)
    other, others = run(2)
    again, later = run(1)
    if all(np.array_equal(seen[camera], others[camera]) for camera in seen) and np.array_equal(first, other):
        warn(f"env={name}: seeds 1 and 2 give the same scene of '{env.task}'; its scenes may all be one")
    if (difference := float(np.abs(first - again).max())) != 0:  # or NaN
        return f"states that differ by up to {difference:.3g}"
    for camera, picture in seen.items():
        if (shifted := int(np.abs(picture.astype(int) - later[camera]).max())) > SHIFTED:
            return f"the same states but to other pictures: {camera} differs by up to {shifted} of 255 levels"
    return ""


def _text_of(env: Any, task: str) -> str:
    """What the environment says of its task, as LeRobot asks for it; else the name in words."""
    for name in ("task_description", "task"):
        if isinstance(text := getattr(env.unwrapped, name, None), str) and text:
            return text.replace("_", " ")
    return task.rpartition("/")[2].partition("-v")[0].replace("_", " ").replace("-", " ")


def _config_class(kind: str) -> Any:
    """The EnvConfig of a type: LeRobot's own, or that of an installed plugin."""
    from lerobot.envs.configs import EnvConfig, HubEnvConfig
    from lerobot.utils import import_utils

    choices = EnvConfig.get_known_choices()
    if kind not in choices:
        _import_environments()
    if kind not in choices:
        import_utils.register_third_party_plugins()  # those of policies too, which take long
    if kind not in choices:
        raise UserError(f"env=lerobot:{kind}: LeRobot knows no such type. {nearest(kind, choices)}")
    if issubclass(choices[kind], HubEnvConfig):
        raise UserError(f"env=lerobot:{kind}: runs code from the hub; install it as a package and name that")
    return choices[kind]


def _import_environments() -> None:
    """Import the installed distributions whose names say, by LeRobot's convention, that they hold environments."""
    for distribution in metadata.distributions():
        name = distribution.metadata.get("Name") or ""
        if name.startswith("lerobot_env_"):
            with suppress(Exception):  # LeRobot tries again, and says what is wrong
                importlib.import_module(name)


def _registered(package: str) -> list[str]:
    """Names in gymnasium's registry below a package's name; none where it is not installed."""
    import gymnasium

    try:
        importlib.import_module(package)
    except ImportError:
        return []
    return sorted(name.partition("/")[2] for name in gymnasium.registry if name.startswith(f"{package}/"))
