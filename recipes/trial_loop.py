"""One trial: the robot sees, a policy answers, and actions go out one by one until the end, or until a key is pressed.

T steps of the trial, S state width, A action width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import numpy as np

from recipes.trial_policies import Arm
from recipes.trial_robot import GuardedRobot
from toolkit.base.randomness import stream_seed
from toolkit.data.episode import Episode

Show = Callable[[Mapping[str, np.ndarray]], None]  # what is done with each picture: the page shows it


@dataclass
class Recording:
    """Steps of a trial: numbers in memory, pictures in files of `folder`, since minutes of them do not fit there."""

    folder: Path
    max_steps: int
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    clipped: int = 0
    stopped_by_key: bool = False
    seconds: float = 0.0
    _pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, state: np.ndarray, pictures: Mapping[str, np.ndarray], action: np.ndarray, clipped: bool) -> None:
        for key, picture in pictures.items():
            if key not in self._pictures:
                shape = (self.max_steps, *picture.shape)
                self._pictures[key] = np.memmap(self.folder / f"{key}.raw", np.uint8, "w+", shape=shape)
            self._pictures[key][len(self.actions)] = picture
        self.states.append(state)
        self.actions.append(action)
        self.clipped += clipped

    def episode(self, task: str) -> Episode:
        """As `EpisodeWriter` takes it; raises ValueError where no action was sent."""
        if not self.actions:
            raise ValueError("no action was sent")
        cameras = {key: part[: len(self.actions)] for key, part in self._pictures.items()}
        return Episode(None, np.stack(self.states), np.stack(self.actions), task, {}, cameras)


@dataclass(frozen=True)
class Pace:
    """Actions a second, and how many a trial has at most."""

    fps: float
    max_steps: int


def run_trial(
    robot: GuardedRobot,
    arm: Arm,
    task: str,
    pace: Pace,
    seed: int,
    stop: Event,
    show: Show,
    recording: Recording,
) -> None:
    """Run a policy until `max_steps`, or until `stop` is set: no action of it is sent after that.

    Then the arm is asked to stay where it is. The noise of a chunk comes from `seed` and the number of the chunk. A
    prediction that takes longer than a period makes the robot wait at its last goal.
    """
    arm.begin()
    waiting: list[np.ndarray] = []
    chunks, began = 0, time.perf_counter()
    for _ in range(pace.max_steps):
        due = time.perf_counter() + 1 / pace.fps
        state, pictures = robot.observe()
        show(pictures)
        if not waiting and not stop.is_set():
            waiting = list(arm.predict(state, pictures, task, stream_seed(seed, "trial", chunks)))
            chunks += 1
        if stop.is_set():
            break
        sent, clipped = robot.send(waiting.pop(0), arm.limits)
        recording.add(state, pictures, sent, clipped)
        if stop.wait(max(0.0, due - time.perf_counter())):
            break
    recording.seconds = round(time.perf_counter() - began, 3)
    recording.stopped_by_key = stop.is_set()
    robot.hold(arm.limits)
