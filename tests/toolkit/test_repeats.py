"""Whether a world repeats, where its state does not hold all that there is."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.toy_world import Reach
from toolkit.base.errors import UserError
from toolkit.envs.lerobot_world import SHIFTED, LeRobotWorld
from toolkit.envs.worlds import WorldSpec


class HiddenGoal(Reach):
    """The goal, which the state does not hold, comes from a stream of its own; the robot's start from the seed."""

    def __init__(self, render_mode: str = "rgb_array") -> None:
        super().__init__(render_mode)
        self.drift = np.random.default_rng(0)  # far enough from the robot that no run ends early

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.goal = self.drift.uniform(-0.9, 0.9, 2)
        return self._observation(), {}


class Grainy(Reach):
    """A camera with a little noise."""

    def _draw(self, size: tuple[int, int]) -> np.ndarray:
        grain = self.drift.integers(-SHIFTED // 4, SHIFTED // 4, (*size, 3))
        return np.clip(super()._draw(size) + grain, 0, 255).astype(np.uint8)


class Lost(Reach):
    """A state that is no number."""

    def _observation(self) -> dict[str, Any]:
        return {**super()._observation(), "agent_pos": np.full(2, np.nan)}


for kind in (HiddenGoal, Grainy, Lost):
    gymnasium.register(f"{kind.__name__}-v0", kind)


def world(kind: type) -> LeRobotWorld:
    return LeRobotWorld(WorldSpec.of(f"gymnasium:{kind.__name__}-v0"))


def test_an_object_that_only_the_pictures_show_counts() -> None:
    with pytest.raises(UserError, match=r"does not repeat: .* other pictures: observation\.images\.\w+ differs by"):
        world(HiddenGoal).check_repeats("HiddenGoal-v0")


def test_a_grainy_camera_is_no_other_scene(capsys: pytest.CaptureFixture[str]) -> None:
    world(Grainy).check_repeats("Grainy-v0")
    assert not capsys.readouterr().err


def test_states_that_are_no_numbers_do_not_repeat() -> None:
    with pytest.raises(UserError, match="does not repeat"):
        world(Lost).check_repeats("Lost-v0")
