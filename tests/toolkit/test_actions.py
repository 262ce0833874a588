"""Which dimensions are grippers, which state belongs to which action, and statistics of windows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from toolkit.base.errors import UserError
from toolkit.data.actions import converted_rows, find_reference, is_gripper
from toolkit.data.clips import ClipStore, write_clips
from toolkit.data.episode import Episode

ARM = ["shoulder.pos", "elbow.pos", "left_gripper.pos"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[(name, True) for name in ("left_gripper.pos", "kLeftHandThumb0", "robot0_finger_joint1", "GRIPPER", "jaw")],
        *[(name, False) for name in ("shoulder.pos", "handle_x", "kLeftWristYaw", "x", "")],
    ],
)
def test_grippers_by_the_words_of_their_names(name: str, expected: bool) -> None:
    assert is_gripper(name) is expected


@pytest.fixture
def arm(tmp_path: Path, moving_square: Callable[..., Episode]) -> ClipStore:
    """Targets that lead the states by a constant; three dimensions, the states in another order, and one more."""
    episodes = []
    for seed, length in enumerate((30, 5)):
        episode = moving_square(seed, length=length)
        targets = 100 * seed + np.cumsum(np.ones((length, 3), np.float32), axis=0) * [1, 2, 3]
        states = np.column_stack([targets[:, 2] - 3, targets[:, 1] - 2, np.zeros(length), targets[:, 0] - 1])
        episodes.append(replace(episode, states=states.astype(np.float32), actions=targets.astype(np.float32)))
    write_clips(tmp_path / "arm.h5", episodes, 35, 30, "arm")
    store = ClipStore.open(tmp_path / "arm.h5")
    return replace(store, action_names=ARM, state_names=[ARM[2], ARM[1], "time", ARM[0]])


def test_the_state_of_an_action_is_found_by_name(arm: ClipStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_reference([arm], "delta", None) == [3, 1, -1]
    assert "learned as delta; absolute stay: left_gripper.pos" in capsys.readouterr().out
    assert find_reference([arm], "delta", []) == [3, 1, 0]
    assert find_reference([arm], "delta", ["elbow", "0"]) == [-1, -1, 0]
    with pytest.raises(UserError, match="no action dimension 'elbov', but elbow.pos"):
        find_reference([arm], "delta", ["elbov"])
    with pytest.raises(UserError, match="every action dimension of .* would stay absolute"):
        find_reference([arm], "delta", ["pos"])


def test_without_names_the_place_counts_and_that_is_said(arm: ClipStore, capsys: pytest.CaptureFixture[str]) -> None:
    nameless = replace(arm, action_names=(), state_names=())
    with pytest.raises(UserError, match=r"no state belongs to the action dimensions 0, 1, 2 \(states: 4\)"):
        find_reference([nameless], "delta", None)
    nameless.states = nameless.states[:, :3]
    assert find_reference([nameless], "delta", None) == [0, 1, 2]
    said = capsys.readouterr().err
    assert "takes the one at the same place" in said
    assert "none is taken for one; absolute_dimensions=[2] would name the last" in said
    with pytest.raises(UserError, match=r"no state belongs to the action dimensions delta_x .*leave actions that are"):
        find_reference([replace(arm, action_names=["delta_x", *ARM[1:]])], "delta", None)


def test_windows_have_a_spread_that_rows_do_not_tell(arm: ClipStore) -> None:
    """Differences to the first state grow along the window; what lies past an episode's end does not count."""
    starts = [np.arange(length) for length in arm.episode_lengths]

    def to_first(actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        return actions - state[:, None, [3, 1, 0]]

    rows = converted_rows(arm, 10, to_first, starts)
    assert rows.shape == (30 * 10 - 45 + 5 + 4 + 3 + 2 + 1, 3)
    np.testing.assert_allclose(rows.min(0), [1, 2, 3], atol=1e-4)
    np.testing.assert_allclose(rows.max(0), [10, 20, 30], atol=1e-4)
    assert len(converted_rows(arm, 10, to_first, [np.zeros(1, int), np.zeros(0, int)])) == 10
