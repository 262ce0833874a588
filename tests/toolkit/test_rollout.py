"""Closed loop and open loop: an expert solves its task through the same interface as a learned policy."""

from typing import Any

import numpy as np
import pytest
import torch

from toolkit.base.engine import LocalEngine
from toolkit.base.errors import UserError
from toolkit.data.episode import IMAGE, STATE, TASK
from toolkit.envs import metaworld
from toolkit.envs.metaworld import MetaWorldEnv, ScriptedTeleoperator
from toolkit.evaluation import rollout as module
from toolkit.evaluation.replay import replay_actions, replay_episodes
from toolkit.evaluation.rollout import Rollout, rollout


class Expert:
    """The scripted expert behind the policy interface. It looks into the environments that `rollout` makes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.environments: list[MetaWorldEnv] = []
        self.batches: list[int] = []
        made = self.environments

        class Watched(MetaWorldEnv):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                made.append(self)

        monkeypatch.setattr(metaworld, "MetaWorldEnv", Watched)

    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Any = None) -> torch.Tensor:
        self.batches.append(len(observation[TASK]))
        assert observation[IMAGE].shape == (len(observation[TASK]), 3, 64, 64)
        assert observation[IMAGE].dtype == observation[STATE].dtype == torch.float32
        assert 0.2 < observation[IMAGE].max() <= 1
        actions = []
        for state, instruction in zip(observation[STATE].numpy(), observation[TASK], strict=True):
            env = next(e for e in self.environments if e.instruction == instruction and (e._state() == state).all())
            actions.append(ScriptedTeleoperator(env.task, 0, noise_scale=0).action(env.observation))
        return torch.from_numpy(np.stack(actions))[:, None].requires_grad_()  # (B, 1, 4)


class Constant:
    def __init__(self, chunk: np.ndarray) -> None:
        self.chunk, self.calls = chunk, 0

    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Any = None) -> torch.Tensor:
        self.calls += 1
        return torch.from_numpy(np.repeat(self.chunk[None], len(observation[TASK]), axis=0).astype(np.float32))


def test_the_expert_solves_its_tasks_and_leaves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    expert = Expert(monkeypatch)
    tasks = ["drawer-open", "button-press-v3"]
    results = rollout(
        expert, {task: [0, 1] for task in tasks}, max_steps=120, image_size=(64, 64), record_first=1, num_envs=2
    )
    assert [(r.task, r.seed) for r in results] == [(t, s) for t in ("drawer-open", "button-press") for s in (0, 1)]
    assert all(r.success and 0 < r.steps < 120 for r in results)
    assert max(expert.batches) == 2  # one environment a task, each with two scenes
    assert expert.batches == sorted(expert.batches, reverse=True)
    assert expert.batches[-1] == 1
    assert [r.frames is not None for r in results] == [True, False, True, False]
    assert results[0].frames is not None
    assert results[0].frames.shape == (-(-results[0].steps // module.FRAME_EVERY) + 1, 64, 64, 3)
    assert not any(env._renderer.is_open for env in expert.environments)


def test_rollouts_repeat_and_do_not_depend_on_the_batch() -> None:
    chunk = np.random.default_rng(0).uniform(-1, 1, (8, 4))

    def run(num_envs: int) -> list[Rollout]:
        return rollout(
            Constant(chunk), {"push": [3, 4]}, max_steps=12, image_size=(64, 64), num_envs=num_envs, record_first=2
        )

    for one, other in zip(run(1), run(2), strict=True):
        assert (one.seed, one.success, one.steps) == (other.seed, other.success, other.steps)
        np.testing.assert_array_equal(one.frames, other.frames)


def test_noise_belongs_to_a_scene_whatever_is_rolled_out_beside_it() -> None:
    """In another order, with other tasks, other scenes that end earlier, and for another policy."""

    class Noting(Constant):
        """It notes whose noise is asked for; scenes are told apart by what is seen of them."""

        def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Any = None) -> torch.Tensor:
            for image, task, seed in zip(observation[IMAGE], observation[TASK], noise_seeds, strict=True):
                noted.setdefault((task, image.numpy().tobytes()), []).append(seed)
            return super().predict_action_chunk(observation)

    def noise(policy: Constant, scenes: dict[str, list[int]], **options: Any) -> dict[tuple, list[int]]:
        noted.clear()
        rollout(policy, scenes, max_steps=12, image_size=(64, 64), n_action_steps=4, **options)
        assert all(len(seeds) == 1 for seeds in noted.values())  # no picture comes twice
        return dict(noted)

    noted: dict[tuple, list[int]] = {}
    moving = np.random.default_rng(0).uniform(-1, 1, (8, 4))
    alone = noise(Noting(moving), {"push": [3]})
    assert len({seeds[0] for seeds in alone.values()}) == 3  # one for each chunk
    together = noise(Noting(moving), {"button-press": [3], "push": [4, 3, 5]}, num_envs=4)
    assert alone.items() <= together.items()
    assert len({seeds[0] for seeds in together.values()}) == 12
    assert together == noise(Noting(moving), {"push": [5, 3, 4], "button-press": [3]}, num_envs=1)
    other = noise(Noting(-moving), {"push": [3]})
    assert sorted(other.values()) == sorted(alone.values())
    assert not {*map(tuple, alone.values())} & {*map(tuple, noise(Noting(moving), {"push": [3]}, seed=1).values())}


def test_only_the_first_actions_of_a_chunk_are_executed() -> None:
    policy = Constant(np.zeros((8, 4)))
    (result,) = rollout(policy, {"push": [0]}, max_steps=12, image_size=(64, 64), n_action_steps=3)
    assert policy.calls == 4
    assert (result.success, result.steps) == (False, 12)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [(np.zeros((8, 7)), "expects"), (np.zeros((0, 4)), "expects"), (np.full((8, 4), np.nan), "NaN")],
)
def test_a_policy_for_another_robot_is_refused(chunk: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        rollout(Constant(chunk), {"push": [0]}, max_steps=10, image_size=(64, 64))


def test_replay_of_many_equals_replay_of_one() -> None:
    env = metaworld.cached_env("button-press", 64)
    env.reset(6)
    operator, actions = ScriptedTeleoperator("button-press", 6), []
    for _ in range(80):
        actions.append(operator.action(env.observation))
        env.step(actions[-1])
    one = replay_actions(env, 6, np.stack(actions))
    assert one["success"]
    assert 0 < one["steps_to_success"] <= 80
    assert one["states"].shape == (81, 4)
    still = np.zeros((80, 4))
    results = list(
        replay_episodes([("button-press", 6, np.stack(actions)), ("button-press", 6, still)], LocalEngine(2))
    )
    np.testing.assert_array_equal(results[0]["states"], one["states"])
    assert [r["success"] for r in results] == [True, False]
    assert results[1]["steps_to_success"] is None
