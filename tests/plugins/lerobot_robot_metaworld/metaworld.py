import os
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot

from toolkit.envs.metaworld import cached_env

from .config_metaworld import MetaWorldConfig

STATES = ["hand_x.pos", "hand_y.pos", "hand_z.pos", "gripper.pos"]
ACTIONS = ["delta_x.vel", "delta_y.vel", "delta_z.vel", "gripper.vel"]


class MetaWorld(Robot):
    """Actions move a simulated arm; whoever arranges the objects calls `arrange`."""

    config_class = MetaWorldConfig
    name = "metaworld"
    latest: "MetaWorld | None" = None

    def __init__(self, config: MetaWorldConfig) -> None:
        super().__init__(config)
        self.config, self.env, self.solved = config, None, False
        self.sent: list[dict[str, float]] = []
        MetaWorld.latest = self

    def note(self, what: str) -> int:
        """How often it has been noted."""
        if not self.config.log:
            return 0
        path = Path(self.config.log)
        with path.open("a") as file:
            file.write(f"{what} {os.getpid()}\n")
        return sum(line.startswith(what) for line in path.read_text().splitlines())

    @property
    def observation_features(self) -> dict[str, Any]:
        size = self.config.image_size
        return {**dict.fromkeys(STATES, float), "front": (size, size, 3), "temperature": float}

    @property
    def action_features(self) -> dict[str, Any]:
        return dict.fromkeys(ACTIONS, float)

    @property
    def is_connected(self) -> bool:
        return self.env is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...

    def connect(self, calibrate: bool = True) -> None:
        self.env = cached_env(self.config.task, self.config.image_size)
        self.note("connect")
        self.arrange(0)

    def arrange(self, seed: int) -> None:
        self.state, self.solved = self.env.reset(seed), False

    def get_observation(self) -> dict[str, Any]:
        (picture,) = self.env.render().values()
        return {**dict(zip(STATES, map(float, self.state), strict=True)), "front": picture, "temperature": 20.0}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        count = self.note("send")
        if self.config.kill_at and count == self.config.kill_at:
            os.kill(os.getpid(), self.config.kill_by)
        if self.config.fail_at and count == self.config.fail_at:
            raise ConnectionError("the motor bus does not answer")
        self.state, solved = self.env.step(np.array([action[name] for name in ACTIONS]))
        self.solved |= solved
        self.sent.append(action)
        return action

    def disconnect(self) -> None:
        self.env = None
        self.note("disconnect")
