"""Meta-World: exact replay, pictures that show the simulated scene, an operator whose noise tells nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from toolkit.base.errors import UserError
from toolkit.data.episode import IMAGE, PICTURE_EVERY
from toolkit.envs.metaworld import (
    MetaWorldEnv,
    ScriptedTeleoperator,
    cached_env,
    initial_scene,
    instructions,
    record_episode,
)
from toolkit.envs.recording import Attempt, load_attempt, record_attempt
from toolkit.evaluation.replay import replay_actions
from toolkit.evaluation.video_metrics import psnr

REPLAY = """
import hashlib, numpy as np
from toolkit.envs.metaworld import MetaWorldEnv
from toolkit.evaluation.replay import replay_actions
actions = np.random.default_rng(3).uniform(-1, 1, (30, 4))
print(hashlib.sha256(replay_actions(MetaWorldEnv("push"), 5, actions)["states"].tobytes()).hexdigest())
"""


def expert_actions(env: MetaWorldEnv, seed: int, steps: int) -> np.ndarray:
    env.reset(seed)
    operator, actions = ScriptedTeleoperator(env.task, seed), []
    for _ in range(steps):
        actions.append(operator.action(env.observation))
        env.step(actions[-1])
    return np.stack(actions)


def test_a_recorded_episode_replays_exactly() -> None:
    episode, success = record_episode(cached_env("drawer-open", 64), seed=11, num_steps=100)
    assert episode.images.shape == (100, 64, 64, 3)
    assert episode.images.dtype == np.uint8
    assert episode.states.shape == episode.actions.shape == (100, 4)
    assert episode.states.dtype == episode.actions.dtype == np.float32
    assert np.abs(episode.actions).max() <= 1
    assert success
    assert episode.task == "Open a drawer"
    assert episode.metadata == {
        "seed": 11,
        "task_name": "drawer-open",
        "success": True,
        "source": "teleoperation",
        "picture_every": 1,
    }

    env = MetaWorldEnv("drawer-open")
    replay_actions(env, 12, episode.actions)  # a used environment must forget its last scene
    replayed = replay_actions(env, 11, episode.actions)
    assert replayed["success"]
    np.testing.assert_array_equal(replayed["states"][:-1], episode.states)


def test_replay_is_exact_in_another_process() -> None:
    def run() -> str:
        return subprocess.run([sys.executable, "-c", REPLAY], check=True, capture_output=True, text=True).stdout

    assert run() == run() != ""


@pytest.mark.parametrize("task", ["push", "hammer"])
def test_fast_rendering_leaves_physics_alone_and_pictures_alike(task: str) -> None:
    thinned, full, blind = MetaWorldEnv(task), MetaWorldEnv(task, mesh_cell_m=0), MetaWorldEnv(task)
    actions = expert_actions(blind, 4, 60)
    states = []
    for env in (thinned, full, blind):
        states.append([env.reset(4)])
        for step, action in enumerate(actions):
            if env is not blind and step % 10 == 0:
                env.render()[IMAGE]
            states[-1].append(env.step(action)[0])
    np.testing.assert_array_equal(states[0], states[2])
    np.testing.assert_array_equal(states[1], states[2])
    assert psnr(thinned.render()[IMAGE][None], full.render()[IMAGE][None]) > 32
    faces = [env._renderer.model.mesh_facenum.sum() for env in (thinned, full)]
    assert faces[0] < faces[1] / 3
    assert blind._env.model.mesh_facenum.sum() == faces[1]
    for env in (thinned, full):
        env.close()


@pytest.mark.parametrize("task", ["push", "drawer-open", "basketball"])
def test_what_is_left_out_of_view_changes_no_pixel(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = cached_env(task, 64)
    actions = expert_actions(env, 2, 60)
    env.reset(2)
    for step, action in enumerate(actions):
        if step % 10 == 0:
            culled = env.render()[IMAGE]
            drawn = env._renderer.scene.ngeom
            with monkeypatch.context() as patch:
                patch.setattr(env._renderer, "_in_view", lambda data: True)
                np.testing.assert_array_equal(env.render()[IMAGE], culled)
            assert drawn < env._renderer.scene.ngeom - 5
        env.step(action)


@pytest.mark.parametrize("task", ["push", "window-open", "lever-pull"])
def test_the_first_picture_shows_the_scene_that_is_simulated(task: str) -> None:
    import mujoco

    env = cached_env(task, 64)
    first, state = initial_scene(env, 9)
    np.testing.assert_array_equal(state, env.observation[:4].astype(np.float32))
    observed = env.observation.copy()
    mujoco.mj_forward(env._env.model, env._env.data)
    np.testing.assert_array_equal(env.render()[IMAGE], first[IMAGE])
    np.testing.assert_array_equal(env._env._get_curr_obs_combined_no_goal(), observed[:18])


@pytest.mark.parametrize("shift", [False, True])
def test_siblings_are_drawn_by_one_renderer_as_each_by_its_own(shift: bool) -> None:
    first, alone = (MetaWorldEnv("push", visual_shift=shift) for _ in range(2))
    both = [first, first.sibling()]
    for env, seed in zip(both, (1, 2), strict=True):
        env.reset(seed)
    drawn = [env.render()[IMAGE] for _ in range(2) for env in both]
    for seed, pictures in ((1, drawn[::2]), (2, drawn[1::2])):
        alone.reset(seed)
        for picture in pictures:
            np.testing.assert_array_equal(picture, alone.render()[IMAGE])
    first.close()
    alone.close()


def test_renderers_of_other_sizes_and_reopened_ones_share_the_context() -> None:
    small, large = MetaWorldEnv("push", image_size=32), MetaWorldEnv("push", image_size=64)
    first = [initial_scene(env, 3)[0][IMAGE] for env in (small, large)]
    sibling = large.sibling()
    sibling.reset(3)
    large.close()
    for _ in range(2):
        np.testing.assert_array_equal(sibling.render()[IMAGE], first[1])
        np.testing.assert_array_equal(small.render()[IMAGE], first[0])
    small.close()
    np.testing.assert_array_equal(large.render()[IMAGE], first[1])
    large.close()


def test_scenes_and_pictures_differ_between_seeds_and_repeat_within_one() -> None:
    env = cached_env("push", 64)
    first, again, other = (initial_scene(env, seed)[0][IMAGE] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).max() > 40


def test_a_picture_is_the_mean_of_its_samples() -> None:
    fine, coarse = MetaWorldEnv("push", image_size=64, supersample=1), MetaWorldEnv("push", image_size=32)
    pictures = [initial_scene(env, 3)[0][IMAGE].astype(float) for env in (fine, coarse)]
    boxes = pictures[0].reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(boxes - pictures[1]).max() <= 0.5
    for env in (fine, coarse):
        env.close()


def test_operator_noise_has_its_scale_and_does_not_know_the_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    noise, scene = [], []
    for seed in range(300):
        operator = ScriptedTeleoperator("push", seed, noise_scale=0.1)
        monkeypatch.setattr(operator._expert, "get_action", lambda observation: np.zeros(4))
        noise.append([operator.action(np.zeros(39)) for _ in range(40)])
        scene.append(np.random.default_rng(seed).uniform(size=3))  # the stream that Meta-World draws scenes from
    actions = np.array(noise)
    assert (actions[..., 3] == 0).all()
    assert 0.09 < actions[:, 20:, :3].std() < 0.11
    correlation = np.corrcoef(actions[:, 0, :3].T, np.array(scene).T)[:3, 3:]
    assert np.abs(correlation).max() < 0.2
    assert np.corrcoef(actions[:, 20, 0], actions[:, 21, 0])[0, 1] > 0.7  # a hand drifts, it does not flicker


def test_recording_repeats_itself_and_spools(tmp_path) -> None:
    attempt = Attempt("button-press", 2, 60, 64, 0.1, tmp_path / "a.npz")
    assert record_attempt(attempt)
    spooled = load_attempt(attempt)
    episode, _ = record_episode(cached_env("button-press", 64), 2, 60, 0.1)
    np.testing.assert_array_equal(spooled.images, episode.images)
    np.testing.assert_array_equal(spooled.actions, episode.actions)
    assert spooled.task == episode.task == "Press a button"


def test_a_slow_camera_repeats_its_last_picture() -> None:
    env = cached_env("button-press", 64)
    slow, _ = record_episode(env, 2, 20, 0.1, render_every=8)
    full, _ = record_episode(env, 2, 20, 0.1)
    np.testing.assert_array_equal(slow.images, full.images[[0] * 8 + [8] * 8 + [16] * 4])
    np.testing.assert_array_equal(slow.actions, full.actions)


def test_a_hidden_robot_is_not_in_the_picture_and_nothing_else_changes() -> None:
    hidden, seen = cached_env("push", 64, hide_robot=True), cached_env("push", 64)
    first, _ = initial_scene(hidden, 3)
    changed = (first[IMAGE] != initial_scene(seen, 3)[0][IMAGE]).any(-1)
    assert 0.02 < changed.mean() < 0.6
    episodes = [record_episode(env, 3, 12)[0] for env in (hidden, seen)]
    np.testing.assert_array_equal(episodes[0].states, episodes[1].states)
    moved = [(episode.images[0] != episode.images[8]).any(-1).mean() for episode in episodes]
    assert moved[0] < 0.2 * moved[1]  # the hand is on its way, the object has only settled


def test_task_names_and_their_mistakes() -> None:
    assert len(instructions()) == 50
    assert MetaWorldEnv("push-v3").task == "push"
    with pytest.raises(UserError, match="drawer-open"):
        MetaWorldEnv("drawer-opne")


@pytest.mark.parametrize("action", [np.zeros(3), np.full(4, np.nan)])
def test_an_impossible_action_is_refused(action: np.ndarray) -> None:
    env = cached_env("push", 64)
    env.reset(0)
    with pytest.raises(UserError, match="4 finite numbers"):
        env.step(action)


def test_the_module_is_light_and_missing_opengl_is_named() -> None:
    code = (
        "import sys, toolkit.envs.metaworld as m\n"
        "assert not {'torch', 'lerobot', 'mujoco', 'metaworld'} & set(sys.modules)\n"
        "sys.modules['OpenGL'] = None  # as if the library were missing\n"
        "try: m.MetaWorldEnv('push').reset(0)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("UserError")
    assert "libegl1" in done.stdout or "pip install" in done.stdout
    assert done.stderr == ""


def test_a_slow_camera_is_noted_of_the_episode(tmp_path: Path) -> None:
    """So that policies are trained on the steps that have a picture of their own."""
    for every, noted in ((8, 8), (1, None)):
        attempt = Attempt("plate-slide", 3, 60, 16, 0.0, tmp_path / f"{every}.npz", render_every=every)
        assert record_attempt(attempt)
        episode = load_attempt(attempt)
        assert episode.metadata.get(PICTURE_EVERY) == noted
        assert np.array_equal(episode.images[0], episode.images[1]) == (every == 8)
