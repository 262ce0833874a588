"""What the rest of the toolkit expects of an environment and of a policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class Env(Protocol):
    """A robot in a scene. States and actions are float32 vectors in physical units."""

    task: str
    instruction: str
    fps: int
    state_names: list[str]
    action_names: list[str]

    def reset(self, seed: int) -> np.ndarray:
        """Put the scene of this seed; returns the state (S,)."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, bool]:
        """Execute one action (A,); returns the state after it and whether the task is solved at this instant."""

    def render(self) -> dict[str, np.ndarray]:
        """Pictures of the present instant by camera, (H, W, 3) uint8 under the keys of LeRobot's features."""

    def close(self) -> None:
        """Free what rendering holds."""


class Policy(Protocol):
    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Sequence[int] | None = None) -> Any:
        """Observation batch in LeRobot's keys -> the next actions (B, n, A) in physical units.

        noise_seeds: B, one for each sample; what is drawn for it comes from its seed alone.
        """
