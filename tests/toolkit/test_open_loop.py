"""Open-loop error: zero for a policy that knows the answer, the right distances for policies that do not."""

from typing import Any

import numpy as np
import pytest
import torch

from toolkit.base.errors import UserError
from toolkit.data.clips import ClipStore
from toolkit.data.episode import STATE
from toolkit.evaluation.open_loop import open_loop_error


class Knowing:
    """Looks the recorded actions up by the state, off by `shift` in the first dimension."""

    def __init__(self, store: ClipStore, shift: float, width: int = 2) -> None:
        self.store, self.shift, self.width = store, shift, width

    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Any = None) -> Any:
        chunks = []
        for state in observation[STATE].numpy():
            row = int(np.flatnonzero((self.store.states == state).all(axis=1))[0])
            chunk = np.zeros((6, self.width), np.float32)
            rows = self.store.actions[row : row + 6]
            chunk[: len(rows), :2] = rows
            chunk[:, 0] += self.shift
            chunks.append(chunk)
        return torch.from_numpy(np.stack(chunks))


def test_errors_are_those_of_the_recorded_steps(store: ClipStore) -> None:
    perfect = open_loop_error(Knowing(store, 0), store, n_action_steps=4)
    assert perfect["action_distance"] == 0
    assert perfect["n"] == store.num_episodes
    off = open_loop_error(Knowing(store, 0.25), store, n_action_steps=4, batch_size=5)
    assert off["action_distance"] == pytest.approx(0.25, abs=1e-6)
    assert off["low"] == pytest.approx(0.25, abs=1e-6) == off["high"]
    assert off["per_dimension"] == pytest.approx([0.25, 0], abs=1e-6)
    mean = store.actions.mean(0)
    episodes = zip(store.episode_starts, store.episode_lengths, strict=True)
    wanted = [np.linalg.norm(mean - store.actions[a : a + n], axis=1).mean() for a, n in episodes]
    assert off["mean"] == pytest.approx(np.mean(wanted), rel=1e-5)


def test_another_width_is_named(store: ClipStore) -> None:
    with pytest.raises(UserError, match="actions are 2 wide; the policy gives 3"):
        open_loop_error(Knowing(store, 0, width=3), store, n_action_steps=4)


def test_noise_belongs_to_an_episode_and_a_step(store: ClipStore) -> None:
    def seeds(batch_size: int, seed: int) -> list[int]:
        class Noting(Knowing):
            def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Any = None) -> Any:
                noted.extend(noise_seeds)
                return super().predict_action_chunk(observation)

        noted: list[int] = []
        open_loop_error(Noting(store, 0), store, n_action_steps=4, batch_size=batch_size, seed=seed)
        return noted

    assert seeds(5, 0) == seeds(32, 0)
    assert not set(seeds(5, 0)) & set(seeds(5, 1))
    assert len(set(seeds(5, 0))) == len(seeds(5, 0))
