"""Worlds that nobody here made, behind one protocol; what goes wrong in the suite `perturbed`."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.toy_world import CAMERAS
from toolkit.base.engine import LocalEngine
from toolkit.base.errors import UserError
from toolkit.data.episode import STATE, TASK
from toolkit.data.seen_scenes import scene_of
from toolkit.envs import perturbations
from toolkit.envs.lerobot_world import LeRobotWorld
from toolkit.envs.metaworld import MetaWorldEnv
from toolkit.envs.perturbations import Perturbation
from toolkit.envs.recording import Attempt, load_attempt, record_attempt
from toolkit.envs.shifts import SUITES
from toolkit.envs.worlds import WorldSpec, open_world
from toolkit.evaluation.replay import replay_actions, replay_episodes
from toolkit.evaluation.rollout import rollout

REACH, TASK_NAME = "gymnasium:tests.toy_world:Reach-v0", "Reach-v0"
PUSHES = np.random.default_rng(0).uniform(100, 400, (30, 2))


def reach(**options: Any) -> LeRobotWorld:
    return LeRobotWorld(WorldSpec.of(REACH, options))


# ------------------------------------------------------------------------------------------------------- which world


def test_a_spec_travels_and_comes_back_from_what_is_noted() -> None:
    spec = WorldSpec.of(REACH, {"fixed": False, "key": "done"}, "done", "go there")
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert WorldSpec.noted(spec.metadata, "d") == spec
    assert WorldSpec.of(None).metadata == {}
    assert WorldSpec.noted({"world": float("nan")}, "d") == WorldSpec.noted({}, "d") == WorldSpec()
    assert open_world(WorldSpec()).name == "metaworld"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (("aloha",), "expected metaworld, lerobot:<type>"),
        (("lerobot:alohha",), "no such type.*aloha"),
        (("lerobot:aloha", {"obs_typ": 1}), "no 'obs_typ'.*obs_type"),
        (("metaworld", {"a": 1}), "Meta-World has none"),
        (("gymnasium:nobody_here/Cup-v0",), "nobody_here"),
    ],
)
def test_a_world_that_is_not_there_is_one_line(
    spec: tuple[Any, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lerobot.utils.import_utils.register_third_party_plugins", lambda: None)  # it takes long

    def opened() -> None:
        world = open_world(WorldSpec.of(*spec))
        world.make(world.tasks[0])

    with pytest.raises(UserError, match=message) as raised:
        opened()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "task", "remedy"),
    [
        ("libero", "libero_10/0", r"pip install 'lerobot\[libero\]'"),
        ("robocasa", "CloseFridge", "install its package"),
        ("robotwin", "beat_block_hammer", "install its package"),
    ],
)
def test_a_world_that_is_not_installed_says_what_to_install(kind: str, task: str, remedy: str) -> None:
    with pytest.raises(UserError, match=rf"env=lerobot:{kind}: not installed .*{remedy}"):
        open_world(WorldSpec.of(f"lerobot:{kind}")).make(task)


def test_settings_from_a_file_are_numbers_and_plain_words() -> None:
    row = {"world": "lerobot:aloha", "world_settings": '{"options": {"obs_type": "pixels_agent_pos", "fps": 50}}'}
    assert "pixels_agent_pos" in WorldSpec.noted(row, "d").options
    for bad in (
        '{"options": {"path": "/etc/x"}}',
        '{"options": {"id": "os:x"}}',
        "[1]",
        '{"options": [1]}',
        "nonsense",
    ):
        with pytest.raises(UserError, match="d: 'world_settings' are damaged"):
            WorldSpec.noted({"world": "lerobot:aloha", "world_settings": bad}, "d")


def test_a_scene_has_the_name_of_its_world() -> None:
    assert reach().scene_name(TASK_NAME) == f"{REACH}/{TASK_NAME}"
    assert scene_of({"task_name": TASK_NAME, "seed": 3, "world": REACH}, "d") == (f"{REACH}/{TASK_NAME}", 3)
    for world in ({}, {"world": None}, {"world": float("nan")}, {"world": "metaworld"}):
        assert scene_of({"task_name": "push", "seed": 3, **world}, "d") == ("push", 3)
    assert open_world(WorldSpec()).scene_name("push-v3") == "push"


def test_every_world_has_these_suites() -> None:
    assert {"unseen", "language", "perturbed"} <= set(reach().suites)
    assert "visual" not in reach().suites
    assert open_world(WorldSpec()).suites == SUITES
    with pytest.raises(UserError, match="does not say where its objects stand"):
        next(reach().scene_stream(TASK_NAME, 0, "inner"))
    with pytest.raises(UserError, match="suite `visual`"):
        reach().make(TASK_NAME, visual=True)


# --------------------------------------------------------------------------------------------- somebody's environment


def test_cameras_by_name_and_of_any_shape() -> None:
    (env,) = reach().make(TASK_NAME)
    assert env.cameras == {f"observation.images.{name}": size for name, size in CAMERAS.items()}
    env.reset(0)
    assert {key: picture.shape for key, picture in env.render().items()} == {k: (*s, 3) for k, s in env.cameras.items()}
    (half,) = reach().make(TASK_NAME, size=16)
    assert half.cameras == {"observation.images.top": (12, 16), "observation.images.wrist": (16, 16)}
    half.reset(0)
    assert {key: picture.shape[:2] for key, picture in half.render().items()} == half.cameras
    (same,) = reach().make(TASK_NAME, size=(8, 10))
    assert set(same.cameras.values()) == {(8, 10)}
    (drawn,) = LeRobotWorld(WorldSpec.of("gymnasium:tests.toy_world:Silent-v0")).make("Silent-v0")
    assert drawn.cameras == {"observation.image": (24, 32)}
    assert drawn.state_names == ["state_0", "state_1"]


def test_the_world_ends_an_episode_and_its_time_limit_does_not() -> None:
    (env,) = reach().make(TASK_NAME)
    env.reset(1)
    for _ in range(6):  # registered for 4
        env.step(np.zeros(2))
    assert not env.ended
    for _ in range(20):
        state, solved = env.step(env.unwrapped.expert_action())
    assert solved
    assert env.ended
    np.testing.assert_array_equal(env.step(np.ones(2))[0], state)  # nothing moves any more


def test_a_world_that_never_says_if_it_is_solved_is_an_error_after_the_first_episode() -> None:
    (env,) = reach(key="done").make(TASK_NAME)
    env.reset(0)
    env.step(np.zeros(2))
    with pytest.raises(UserError, match=r"'is_success' or 'success' or 'succeed'.*it has done.*success_key=KEY"):
        env.finish()
    (env,) = LeRobotWorld(WorldSpec.of(REACH, {"key": "done"}, "done")).make(TASK_NAME)
    env.reset(0)
    env.step(np.zeros(2))
    env.finish()
    spec = WorldSpec.of(REACH, {"key": "done"})
    with pytest.raises(UserError, match="success_key=KEY"):
        list(replay_episodes([(TASK_NAME, 0, np.zeros((2, 2)))], LocalEngine(), world=spec))


def test_replay_is_refused_where_a_reset_does_not_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    reach().check_repeats(TASK_NAME)
    assert not capsys.readouterr().err
    spec = WorldSpec.of(REACH, {"forgetful": True})
    with pytest.raises(UserError, match=r"does not repeat: .* differ by up to 0\.\d+"):
        list(replay_episodes([(TASK_NAME, 0, np.zeros((2, 2)))], LocalEngine(), world=spec))
    reach(fixed=True).check_repeats(TASK_NAME)
    assert "give the same scene" in capsys.readouterr().err


def test_demonstrations_are_recorded_and_replayed_as_they_were(tmp_path: Path) -> None:
    spec = WorldSpec.of(REACH)
    attempt = Attempt(TASK_NAME, 5, 40, None, 0.1, tmp_path / "5.npz", render_every=2, world=spec)
    assert record_attempt(attempt)
    episode = load_attempt(attempt)
    assert 1 < len(episode) < 40  # the world ends it
    assert {key: shown.shape[1:3] for key, shown in episode.pictures.items()} == {
        f"observation.images.{name}": size for name, size in CAMERAS.items()
    }
    assert episode.task == "move the green square onto the red one"
    assert episode.metadata["world"] == REACH
    (result,) = replay_episodes([(TASK_NAME, 5, episode.actions)], LocalEngine(), world=spec)
    assert result["success"]
    np.testing.assert_array_equal(result["states"][:-1], episode.states)


class Towards:
    """It goes where the red square is seen by the camera it calls `eye`."""

    def predict_action_chunk(self, observation: dict[str, Any], noise_seeds: Any = None) -> torch.Tensor:
        assert set(observation) == {"eye", STATE, TASK}
        rows, columns = (torch.arange(32.0), torch.arange(32.0))
        red = observation["eye"][:, 0] * (observation["eye"][:, 0] > 0.8)
        total = red.sum((1, 2))
        y, x = (red.sum(2) * rows).sum(1) / total, (red.sum(1) * columns).sum(1) / total
        goal = torch.stack([(x - 1.5) / 28 * 2 - 1, (y - 5.5) / 20 * 2 - 1], 1)  # letterboxed by 4 rows
        return ((goal - observation[STATE]) / 0.2).clip(-0.3, 0.3)[:, None]


def test_a_policy_sees_the_cameras_that_it_asks_for() -> None:
    world = open_world(WorldSpec.of(REACH))
    options: dict[str, Any] = {"max_steps": 50, "image_size": (32, 32), "cameras": {"eye": "observation.images.top"}}
    results = rollout(Towards(), {TASK_NAME: [1, 2, 3]}, world=world, record_first=1, **options)
    assert [(result.seed, result.success) for result in results] == [(1, True), (2, True), (3, True)]
    assert results[0].frames is not None
    disturbed = rollout(Towards(), {TASK_NAME: [1, 2, 3]}, world=world, suite=SUITES["perturbed"], **options)
    again = rollout(Towards(), {TASK_NAME: [3, 2, 1]}, world=world, suite=SUITES["perturbed"], **options)
    assert [r.steps for r in disturbed] == [r.steps for r in again][::-1]
    assert [r.steps for r in disturbed] != [r.steps for r in results]


# ------------------------------------------------------------------------------------------------ other people's worlds


def test_aloha_is_drawn_on_demand_and_its_demonstrator_hands_the_cube_over() -> None:
    world = open_world(WorldSpec.of("lerobot:aloha"))
    (env,) = world.make("AlohaTransferCube-v0", size=32)
    assert env.cameras == {"observation.images.top": (24, 32)}
    assert env.state_names[13] == "right_gripper"
    assert (env.fps, len(env.action_names)) == (50, 14)
    assert env.instruction.startswith("Pick up the cube with the right arm")
    env.reset(4)
    red = env.render()["observation.images.top"].astype(int)
    assert ((red[..., 0] - red[..., 1]) > 60).any()  # the cube is in the picture
    demonstrator = world.demonstrator(env, 4, 0.1, 0)
    assert demonstrator is not None
    state, solved, steps = env.reset(4), False, 0
    while not solved and steps < 400:
        state, solved = env.step(demonstrator.action(env, {}, state))
        steps += 1
    assert solved
    assert env.ended
    inside, outside = (next(world.scene_stream(env.task, 0, where)) for where in ("inner", "outer"))
    assert inside != outside
    env.close()


def test_the_so101_plugin_is_a_world_with_its_own_demonstrator() -> None:
    world = open_world(WorldSpec.of("lerobot:so101"))
    assert world.task_name("SO101PickCube-v0") == "SO101PickCube-v0"
    world = open_world(WorldSpec.of("gymnasium:lerobot_env_so101/SO101PickPlace-v0"))
    (env,) = world.make("SO101PickPlace-v0")
    assert env.cameras == {"observation.images.front": (128, 128)}
    assert len(env.state_names) == 14
    assert (env.fps, env.action_names[-1]) == (10, "gripper")
    state, solved = env.reset(1), False
    demonstrator = world.demonstrator(env, 1, 0.1, 0)
    assert demonstrator is not None
    for _ in range(80):
        state, solved = env.step(demonstrator.action(env, {}, state))
        if env.ended:
            break
    assert solved
    env.close()


def test_pusht_by_the_same_door() -> None:
    """`make test-all` installs it into a folder of its own, since it brings another OpenCV."""
    pytest.importorskip("gym_pusht")
    world = open_world(WorldSpec.of("lerobot:pusht"))
    world.check_repeats("PushT-v0")
    (env,) = world.make("PushT-v0", size=64)
    assert env.cameras == {"observation.image": (64, 64)}
    first, pictures = replay_actions(env, 3, PUSHES)["states"], env.render()
    assert pictures["observation.image"].shape == (64, 64, 3)
    assert np.array_equal(replay_actions(env, 3, PUSHES)["states"], first)
    assert np.array_equal(env.render()["observation.image"], pictures["observation.image"])
    assert not np.array_equal(replay_actions(env, 4, PUSHES)["states"], first)
    assert np.ptp(first, axis=0).min() > 10  # pixels of the table


# --------------------------------------------------------------------------------------------------- what goes wrong


def seed_of(kind: str, env: Any) -> int:
    return next(seed for seed in range(100) if Perturbation(env, seed, 100).kind == kind)


def test_late_actions_are_those_of_before_and_only_for_a_while() -> None:
    (env,) = reach().make(TASK_NAME)
    fate = Perturbation(env, seed_of("late", env), 100)
    low, high = (max(1, round(seconds * env.fps)) for seconds in perturbations.LATE_SECONDS)
    assert low <= fate.delay <= high
    assert 10 <= fate.start < 40
    assert fate.stop == fate.start + 20
    asked = [np.full(2, step, np.float32) for step in range(100)]
    done = [int(fate.executed(action)[0]) for action in asked]
    expected = [step - fate.delay if fate.start <= step < fate.stop else step for step in range(100)]
    assert done == expected


def test_noisy_actions_are_noisy_for_a_while_and_the_same_every_time() -> None:
    (env,) = reach().make(TASK_NAME)
    seed, asked = seed_of("noisy", env), np.zeros((100, 2), np.float32)
    runs = []
    for _ in range(2):
        fate = Perturbation(env, seed, 100)
        runs.append(np.array([fate.executed(action) for action in asked]))
    np.testing.assert_array_equal(*runs)
    changed = np.flatnonzero(runs[0].any(1))
    np.testing.assert_array_equal(changed, np.arange(fate.start, fate.stop))
    assert 0.05 < runs[0][changed].std() < 0.2


@pytest.mark.parametrize("kind", ["push", "move"])
def test_metaworld_pushes_the_hand_or_moves_the_object(kind: str) -> None:
    env = MetaWorldEnv("push")
    assert list(env.disturbances) == ["push", "move"]
    assert list(MetaWorldEnv("drawer-open").disturbances) == ["push"]
    seed, observations, before = seed_of(kind, env), [], []
    for disturbed in (False, True):
        env.reset(7)
        fate = Perturbation(env, seed, 100)
        action = np.zeros(4, np.float32)
        for step in range(fate.start + 40):
            env.step(fate.executed(action) if disturbed else action)
            if step == fate.start - 1:
                before.append(env.observation.copy())
        observations.append(env.observation.copy())
    np.testing.assert_array_equal(*before)
    hand, thing = (np.abs(observations[1][part] - observations[0][part]).max() for part in (slice(0, 2), slice(4, 6)))
    assert (hand > 0.02) == (kind == "push")
    assert (thing > 0.005) == (kind == "move")
