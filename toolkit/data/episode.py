"""Names shared by every dataset, policy and environment. They are LeRobot's own keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

IMAGE = "observation.image"
STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
ACTION = "action"
ACTION_IS_PAD = "action_is_pad"
ACTION_DIM_IS_PAD = "action_dim_is_pad"  # dimensions that this robot does not have
SYNTHETIC = "synthetic"
PICTURE_EVERY = "picture_every"  # noted of an episode: steps from one camera picture to the next; 1 if absent
TASK = "task"


@dataclass
class Episode:
    """One recorded or generated episode of T steps.

    images:   (T, H, W, 3) uint8 under observation.image, the picture seen before `actions[t]` is executed; or None.
    states:   (T, S) float32, the proprioceptive state at the same instant.
    actions:  (T, A) float32.
    task:     the instruction in natural language.
    metadata: provenance, one scalar per key; stored in a table beside the data, see `episode_notes`.
    times:    (T,) seconds since the first step, where the recording has time stamps; not written.
    cameras:  further pictures (T, H', W', 3) uint8 by feature key, e.g. observation.images.wrist.
    """

    images: Any
    states: np.ndarray
    actions: np.ndarray
    task: str
    metadata: dict[str, str | int | float | bool] = field(default_factory=dict)
    cameras: dict[str, np.ndarray] = field(default_factory=dict)
    times: np.ndarray | None = None

    @property
    def pictures(self) -> dict[str, np.ndarray]:
        """All pictures by feature key."""
        return self.cameras if self.images is None else {IMAGE: self.images, **self.cameras}

    def __len__(self) -> int:
        return len(self.actions)
