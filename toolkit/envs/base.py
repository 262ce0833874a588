"""What the rest of the toolkit expects of an environment, of the world that it belongs to, and of a policy.

H, W height and width of a picture; S state width; A action width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from toolkit.envs.shifts import Suite

Size = int | tuple[int, int] | None  # pixels of the longer side; height and width; as the world draws


class Env(Protocol):
    """A robot in a scene. States and actions are float32 vectors in physical units."""

    task: str
    instruction: str
    fps: int
    state_names: list[str]
    action_names: list[str]

    @property
    def disturbances(self) -> Sequence[str]:
        """What `disturb` can do."""

    @property
    def action_limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and largest action (A,), infinite where there are no limits."""

    @property
    def cameras(self) -> Mapping[str, tuple[int, int]]:
        """(height, width) of the pictures by camera, under the keys of LeRobot's features."""

    @property
    def ended(self) -> bool:
        """If the world has ended the episode: the task is solved, or cannot be any more. Nothing moves after that."""

    @property
    def position_held_out(self) -> bool:
        """If the object of the present scene stands where training may leave it out; see the suite `position`."""

    def reset(self, seed: int) -> np.ndarray:
        """Put the scene of this seed; returns the state (S,)."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """Execute one action (A,); returns the state after it and whether the task is solved at this instant."""

    def render(self) -> dict[str, np.ndarray]:
        """Pictures of the present instant by camera, (H, W, 3) uint8 under the keys of LeRobot's features."""

    def disturb(self, kind: str, rng: np.random.Generator) -> None:
        """Do to the scene what the suite `perturbed` asks for, one of `disturbances`."""

    def finish(self) -> None:
        """No step of this episode follows. Raises UserError if the world never said whether the task was solved."""

    def close(self) -> None:
        """Free what rendering holds."""


class Demonstrator(Protocol):
    """Who shows how an episode is done."""

    def action(self, env: Any, pictures: Mapping[str, np.ndarray], state: np.ndarray) -> np.ndarray:
        """The next action (A,) float32, in sight of the environment, which a scripted one may look into."""


class World(Protocol):
    """A simulator with its tasks. Worker processes open it again, from its spec."""

    name: str  # the word that chooses it, such as lerobot:aloha
    robot_type: str
    suites: Mapping[str, Suite]

    @property
    def tasks(self) -> Sequence[str]:
        """Tasks that can be named; empty where the world does not list them."""

    def task_name(self, task: str) -> str:
        """The task by its own name. Raises UserError for one that does not exist."""

    def instruction(self, task: str) -> str:
        """What the robot is asked for."""

    def scene_name(self, task: str) -> str:
        """Of its scenes in `seen_scenes.json` and in streams of noise: holds the world."""

    def make(self, task: str, count: int = 1, size: Size = None, visual: bool = False) -> list[Any]:
        """Up to `count` environments of a task, at least one; visual: each scene with a look of its own."""

    def shared(self, task: str, size: Size = None, hide_robot: bool = False) -> Any:
        """The environment of a task that this process keeps."""

    def demonstrator(self, env: Any, seed: int, noise_scale: float, operator: int) -> Demonstrator | None:
        """A scripted one for a scene that was just reset, with an unsteady hand; None where the task has none."""

    def scene_stream(self, task: str, first_seed: int, positions: str = "all") -> Iterator[int]:
        """Seeds from `first_seed` on whose scenes are of these object positions."""

    def check_repeats(self, task: str) -> None:
        """Raise UserError if the same seed and actions do not give the same states."""


class Policy(Protocol):
    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Sequence[int] | None = None) -> Any:
        """Observation batch in LeRobot's keys -> the next actions (B, n, A) in physical units.

        noise_seeds: B, one for each sample; what is drawn for it comes from its seed alone.
        """
