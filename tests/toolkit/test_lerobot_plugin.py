"""vag_metaworld: the same scenes, pictures and outcomes as `vag evaluate`, behind LeRobot's interface."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.envs.factory import make_env, make_env_config
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, env_to_policy_features, preprocess_observation

from toolkit.base.errors import UserError
from toolkit.data.episode import IMAGE, STATE
from toolkit.envs.lerobot_plugin import VagMetaWorld, VagMetaWorldConfig
from toolkit.envs.metaworld import MetaWorldEnv, instructions, record_episode, scene_stream
from toolkit.envs.shifts import SUITES, Suite, paraphrase
from toolkit.evaluation.rollout import rollout

SCENES = [500_000, 500_001, 500_002]


class Recorded:
    """A policy that plays actions (T, A) of each scene, whatever it sees, and keeps its observations."""

    def __init__(self, actions: dict[int, np.ndarray]) -> None:
        self.actions = np.stack(list(actions.values()))
        self.seen: list[dict[str, Any]] = []

    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Any = None) -> torch.Tensor:
        self.seen.append(observation)
        return torch.from_numpy(self.actions)


@pytest.fixture(scope="module")
def actions() -> dict[int, np.ndarray]:
    """Of an expert whose last scene is spoiled, so that one rollout fails."""
    env = MetaWorldEnv("plate-slide")
    played = {seed: record_episode(env, seed, 60, 0.0)[0].actions for seed in SCENES}
    played[SCENES[-1]] = -played[SCENES[-1]]
    return played


@pytest.mark.parametrize("suite", ["unseen", "visual"])
def test_a_scene_is_the_one_of_vag_evaluate(suite: str, actions: dict[int, np.ndarray]) -> None:
    """First picture and state are equal, and the same actions end alike, after as many steps."""
    policy = Recorded(actions)
    ours = rollout(
        policy, {"plate-slide": SCENES}, max_steps=60, image_size=(64, 64), suite=SUITES[suite], n_action_steps=60
    )
    config = make_env_config("vag_metaworld", task="plate-slide", suite=suite, episode_length=60)
    env = make_env(config, n_envs=len(SCENES))[suite][0]
    raw, _ = env.reset(seed=SCENES, options={NEW_ROLLOUT_OPTION: True})
    first = preprocess_observation(raw)
    torch.testing.assert_close(first[IMAGE], policy.seen[0][IMAGE], rtol=0, atol=0)
    torch.testing.assert_close(first[STATE], policy.seen[0][STATE], rtol=0, atol=0)
    assert list(env.call("task_description")) == policy.seen[0]["task"]
    ended = dict[int, tuple[bool, int]]()
    for step in range(60):
        _, _, terminated, truncated, info = env.step(np.stack([played[step] for played in actions.values()]))
        for number in np.flatnonzero(terminated | truncated):
            ended.setdefault(SCENES[number], (bool(info["is_success"][number]), step + 1))
    env.close()
    assert ended == {r.seed: (r.success, r.steps) for r in ours}
    assert [r.success for r in ours] == [True, True, False]


@pytest.mark.parametrize("suite", sorted(SUITES))
def test_every_suite_has_the_scenes_and_words_of_vag_evaluate(suite: str) -> None:
    env = VagMetaWorld("push", suite, first_seed=70)
    expected = list(islice(scene_stream("push", 70, SUITES[suite].positions), 4))
    assert [env.scene_of(70 + turn) for turn in (3, 0, 1, 2)] == [expected[turn] for turn in (3, 0, 1, 2)]
    observation, info = env.reset(seed=71)
    assert env.observation_space.contains(observation)
    assert info == {"is_success": False}
    own = MetaWorldEnv("push", visual_shift=SUITES[suite].visual)
    np.testing.assert_array_equal(observation["agent_pos"], own.reset(expected[1]))
    np.testing.assert_array_equal(observation["pixels"], own.render()[IMAGE])
    text = instructions()["push"]
    assert env.task_description == (paraphrase(text, expected[1]) if SUITES[suite].paraphrased else text)
    assert env.render() is observation["pixels"]  # what a video shows is what the policy saw


def test_lerobot_gets_the_features_that_our_policies_expect() -> None:
    config = VagMetaWorldConfig(task="metaworld-push-v3, drawer-open,push", image_size=32)
    assert config.tasks == ["push", "drawer-open"]
    features = env_to_policy_features(config)
    assert {key: feature.shape for key, feature in features.items()} == {
        "action": (4,),
        "observation.image": (3, 32, 32),
        "observation.state": (4,),
    }
    envs = config.create_envs(2)
    assert {suite: list(tasks) for suite, tasks in envs.items()} == {"unseen": [0, 1]}
    for number, task in enumerate(config.tasks):
        env = envs["unseen"][number]
        assert env.call("task") == (task, task)
        assert env.call("_max_episode_steps") == (100, 100)
        assert env.metadata["render_fps"] == 80


def test_an_ended_episode_stands_still_until_the_next_rollout() -> None:
    """LeRobot steps all environments of a batch until the last one ends."""
    env = make_env(make_env_config("vag_metaworld", task="push", episode_length=2))["unseen"][0]
    env.reset(seed=[5], options={NEW_ROLLOUT_OPTION: True})
    down = np.array([[0, 0, -1, 0]], np.float32)
    states = [env.step(down)[0]["agent_pos"][0].tolist() for _ in range(5)]
    assert states[0] != states[1] == states[2] == states[3] == states[4]
    again, _ = env.reset(seed=[5], options={NEW_ROLLOUT_OPTION: True})
    assert again["agent_pos"][0].tolist() != states[-1]
    env.close()


def test_seeds_before_the_first_one_of_a_suite_are_refused() -> None:
    with pytest.raises(UserError, match=r"seed 999 lies before env\.first_seed=1000"):
        VagMetaWorld("push", "position").reset(seed=999)
    with pytest.raises(UserError, match="reset comes before the first step"):
        VagMetaWorld("push").step(np.zeros(4, np.float32))
    state = VagMetaWorld("push").reset()[0]["agent_pos"]  # without a seed: some scene
    assert np.isfinite(state).all()


def test_a_suite_with_an_axis_that_is_not_shown_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Windy(Suite):
        wind: bool = False

    monkeypatch.setitem(SUITES, "storm", Windy("in a storm", wind=True))
    with pytest.raises(UserError, match=r"env\.suite=storm: vag_metaworld does not show it \(wind\)"):
        make_env_config("vag_metaworld", suite="storm")
    monkeypatch.setitem(SUITES, "calm", Windy("no wind"))
    assert make_env_config("vag_metaworld", suite="calm").suite == "calm"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"suite": "position "}, r"env\.suite: unknown suite 'position '. Did you mean 'position'"),
        ({"task": "drawer-opne"}, r"env\.task: unknown Meta-World task 'drawer-opne'. Did you mean 'drawer-open'"),
        ({"task": " ,"}, r"env\.task is empty"),
        ({"image_size": 2}, r"env\.image_size=2: expected 4 or more"),
        ({"episode_length": 0}, r"env\.episode_length=0: expected 1 or more"),
        ({"fps": 20}, r"env\.fps=20: Meta-World has 80 steps a second"),
        ({"max_parallel_tasks": 2}, r"env\.max_parallel_tasks=2: one thread of a process can render"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        make_env_config("vag_metaworld", **options)
