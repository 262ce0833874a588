"""A robot behind LeRobot's interface, with one gate for actions: recorded limits, a stop, and a sure disconnection.

S state width, A action width. Names of states and actions are the robot's own, such as `shoulder_pan.pos`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Event
from typing import Any, Self

import draccus
import lerobot.cameras
import lerobot.robots
import numpy as np
from lerobot.robots import Robot, RobotConfig, make_robot_from_config
from lerobot.utils.import_utils import register_third_party_plugins

from recipes.trial_watchdog import watched
from toolkit.base.errors import UserError, first_line, nearest, warn

CAMERA = "observation.images."
POSITION, VELOCITY = ".pos", ".vel"


def robot_config(words: dict[str, Any]) -> RobotConfig:
    """The config of a robot in LeRobot's words; robots and cameras of installed packages take part.

    Raises UserError for a type that no package registers, and for fields that it refuses.
    """
    kind = words.get("type")
    if not isinstance(kind, str):
        raise UserError("trial: robot.type=... is required, such as robot.type=so101_follower robot.port=/dev/ttyACM0")
    _register_kinds()
    known = RobotConfig.get_known_choices()
    if kind not in known:
        raise UserError(f"trial: robot.type={kind}: no installed package registers it. {nearest(kind, known)}")
    try:
        return draccus.decode(RobotConfig, words)
    except Exception as error:  # draccus has its own family of errors; a config class checks what it likes
        told = error.__cause__ if "instantiate" in str(error) and error.__cause__ is not None else error
        raise UserError(f"trial: robot: not a valid {kind} ({first_line(told)}); see LeRobot's page of it") from error


def _register_kinds() -> None:
    for package in (lerobot.robots, lerobot.cameras):
        for module in pkgutil.iter_modules(package.__path__):
            with suppress(ImportError):  # of a robot whose own library is not installed
                importlib.import_module(f"{package.__name__}.{module.name}")
    register_third_party_plugins()


def make_robot(words: dict[str, Any]) -> Robot:
    """The robot, not yet connected. Raises UserError as `robot_config`, or if its library is missing."""
    config = robot_config(words)
    try:
        return make_robot_from_config(config)
    except Exception as error:
        raise UserError(f"trial: robot.type={words['type']}: cannot be made ({first_line(error)})") from error


@dataclass(frozen=True)
class Features:
    """What a robot tells and takes: names of positions and velocities, names of actions, sizes of its cameras.

    cameras: (height, width) under LeRobot's keys, `observation.images.front` of the camera `front`.
    """

    state_names: list[str]
    action_names: list[str]
    cameras: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, robot: Robot) -> Features:
        """Raises UserError for a robot without camera, state or action."""
        told = robot.observation_features
        states = [name for name, kind in told.items() if kind is float and name.endswith((POSITION, VELOCITY))]
        cameras = {
            CAMERA + name: (int(shape[0]), int(shape[1]))
            for name, shape in told.items()
            if isinstance(shape, tuple) and len(shape) == 3 and shape[2] == 3
        }
        if left_out := [name for name in told if name not in states and CAMERA + name not in cameras]:
            warn(f"{robot.name}: no policy sees {', '.join(left_out)}: neither {POSITION}, {VELOCITY} nor a picture")
        for what, found in (
            ("cameras", cameras),
            ("positions or velocities", states),
            ("actions", robot.action_features),
        ):
            if not found:
                raise UserError(f"trial: {robot.name} has no {what}; a policy needs them (robot.cameras={{...}})")
        return cls(states, list(robot.action_features), cameras)


@dataclass(frozen=True)
class Limits:
    """Smallest and largest value of each action that was recorded, (A,), and where."""

    low: np.ndarray
    high: np.ndarray
    source: str

    def clip(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """(A,) inside of the limits, and whether anything was changed. Raises UserError if it is not finite."""
        if action.shape != self.low.shape or not np.isfinite(action).all():
            raise UserError(
                f"trial: a policy gave the action {action.tolist()}; expected {len(self.low)} finite numbers"
            )
        inside = np.clip(action, self.low, self.high)
        return inside, bool((inside != action).any())


class GuardedRobot:
    """Context manager around a robot: connects, and disconnects whatever ends the block.

    An exception, Ctrl-C, SIGTERM and SIGHUP leave the block. SIGKILL leaves nothing to this process: then a second one,
    the watchdog, does it. Nothing reaches the robot but through `send`.
    """

    def __init__(self, robot: Robot, words: dict[str, Any], features: Features) -> None:
        self.robot, self.words, self.features = robot, words, features
        self.initial: np.ndarray | None = None

    def __enter__(self) -> Self:
        self._watch = watched(self.words)
        self._watch.__enter__()
        try:
            self._connect()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _connect(self) -> None:
        try:
            self.robot.connect(calibrate=False)
        except Exception as error:
            raise UserError(f"trial: {self.robot.name} cannot be connected ({first_line(error)})") from error
        if not self.robot.is_calibrated:
            kind = self.words["type"]
            raise UserError(
                f"trial: {self.robot.name} is not calibrated; run lerobot-calibrate --robot.type={kind} first"
            )
        if self.is_positional:
            state, _ = self.observe()
            self.initial = self._positions(state)

    def __exit__(self, *error: Any) -> None:
        try:
            if self.robot.is_connected:
                self.robot.disconnect()
        finally:
            if not self._is_connected():
                self._watch.__exit__(None, None, None)

    def _is_connected(self) -> bool:
        with suppress(Exception):
            return bool(self.robot.is_connected)
        return True

    @property
    def is_positional(self) -> bool:
        """If every action is a position that the robot also tells: only then it can be sent back, or be held."""
        names = self.features.action_names
        return all(name.endswith(POSITION) for name in names) and set(names) <= set(self.features.state_names)

    def _positions(self, state: np.ndarray) -> np.ndarray:
        return np.array([state[self.features.state_names.index(name)] for name in self.features.action_names])

    def observe(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """State (S,) float32 and pictures (H, W, 3) uint8 of now. Raises UserError if the state is not finite."""
        told = self._ask(self.robot.get_observation)
        state = np.array([told[name] for name in self.features.state_names], np.float32)
        if not np.isfinite(state).all():
            raise UserError(f"trial: {self.robot.name} tells the state {state.tolist()}; expected finite numbers")
        cameras = {key: np.asarray(told[key.removeprefix(CAMERA)], np.uint8) for key in self.features.cameras}
        return state, cameras

    def send(self, action: np.ndarray, limits: Limits) -> tuple[np.ndarray, bool]:
        """Send an action (A,) inside of the limits; returns what the robot says it did, (A,), and if it was clipped."""
        inside, clipped = limits.clip(np.asarray(action, np.float64))
        names = self.features.action_names
        goal = {name: float(value) for name, value in zip(names, inside, strict=True)}
        done = self._ask(lambda: self.robot.send_action(goal))
        sent = [float((done or {}).get(name, value)) for name, value in zip(names, inside, strict=True)]
        return np.array(sent, np.float32), clipped

    def _ask(self, what: Callable[[], Any]) -> Any:
        try:
            return what()
        except Exception as error:  # every robot's library has a family of its own
            raise UserError(
                f"trial: {self.robot.name} has failed ({first_line(error)}); it is disconnected, what is judged is kept"
            ) from error

    def hold(self, limits: Limits) -> None:
        """Ask an arm that moves to a position to stay where it is."""
        if self.is_positional:
            self.send(self._positions(self.observe()[0]), limits)

    def go_back(self, limits: Limits, seconds: float, fps: float, stop: Event) -> bool:
        """Move to where the arm was when it was connected, in equal steps; False if a key stopped it, or it cannot.

        As LeRobot's strategies do, but inside of the limits, and any key stops it.
        """
        if self.initial is None:
            return False
        start = self._positions(self.observe()[0])
        for share in _shares(seconds, fps):
            if stop.wait(1 / fps):
                self.hold(limits)
                return False
            self.send(start + share * (self.initial - start), limits)
        return True


def _shares(seconds: float, fps: float) -> Sequence[float]:
    steps = max(1, round(seconds * fps))
    return [(k + 1) / steps for k in range(steps)]
