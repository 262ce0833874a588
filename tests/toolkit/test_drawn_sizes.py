"""Pictures of a rollout are what was recorded, where the cameras of a world differ in size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tests.toy_world import CAMERAS
from toolkit.envs.lerobot_env import PICTURES
from toolkit.envs.lerobot_world import LeRobotWorld
from toolkit.envs.worlds import WorldSpec
from toolkit.evaluation.rollout import drawn_size, rollout

TASK_NAME = "Reach-v0"


class Watcher:
    """Stands still, and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: dict[str, np.ndarray] = {}

    def predict_action_chunk(self, observation: Mapping[str, Any], noise_seeds: Sequence[int] | None = None) -> Any:
        for camera in (f"{PICTURES}{name}" for name in CAMERAS):
            self.seen[camera] = (observation[camera][0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        return np.zeros((1, 1, 2))


@pytest.mark.parametrize("size", ["recorded", 32])
def test_each_camera_is_shown_as_it_is_recorded(size: Any) -> None:
    world = LeRobotWorld(WorldSpec.of("gymnasium:tests.toy_world:Reach-v0"))
    (env,) = world.make(TASK_NAME, size=None if size == "recorded" else size)
    env.reset(5)
    recorded = env.render()
    policy = Watcher()
    sizes: Any = {camera: picture.shape[:2] for camera, picture in recorded.items()}
    rollout(policy, {TASK_NAME: [5]}, max_steps=1, image_size=sizes, world=world)
    assert policy.seen.keys() == recorded.keys()
    for camera, picture in recorded.items():
        np.testing.assert_array_equal(policy.seen[camera], picture)


def test_only_one_longer_side_is_asked_of_a_world() -> None:
    assert drawn_size((48, 64)) == 64
    assert drawn_size({"a": (48, 64), "b": (64, 64)}) == 64
    assert drawn_size({"a": (24, 32), "b": (16, 16)}) is None
