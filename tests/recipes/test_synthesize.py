"""Several plans of a scene, of which the first that the simulator solves becomes the episode."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipes import cli, plans, start_scenes, synthesize
from recipes.schema import SynthesizeConfig
from toolkit.data.formats.lerobot_read import dataset_id, read_actions
from toolkit.data.images import moved
from toolkit.envs.metaworld import cached_env, record_episode
from vag_core import Generator
from vag_core.config import GeneratorConfig

SEEDS = [100_000, 100_001, 100_002]


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose plans depend on where things are in the picture, though it has learned nothing."""
    torch.manual_seed(0)
    config = GeneratorConfig(image_size=[32, 32], num_frames=9, state_dim=4, action_dim=4)
    model = Generator(config)
    for name, parameter in model.named_parameters():
        if name.startswith("action.") and not parameter.any():  # what starts at zero would hide the scene
            torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("draws") / "generator"
    model.save_pretrained(path)
    return path


@pytest.fixture
def command(generator: Path) -> list[str]:
    words = ["synthesize", f"checkpoint={generator}", "tasks=[push]", "episodes_per_task=3", "draws=4"]
    return [*words, "draw_shift=1", "sampler.num_inference_steps=1", "workers=1"]


Tried = dict[tuple[int, int], np.ndarray]  # (seed, draw): actions


def solving(
    solved: dict[int, int], asked: list[list[int]], tried: Tried | None = None
) -> Callable[..., Iterator[dict[str, Any]]]:
    """A simulator in which each scene is solved by the draw of that number; it notes what it was asked for."""

    def replay(
        items: Sequence[tuple[str, int, np.ndarray]], workers: int, description: str, world: Any
    ) -> Iterator[dict]:
        draw = int(description.split()[1]) - 1
        asked.append([seed for _, seed, _ in items])
        if tried is not None:
            tried.update({(seed, draw): actions.copy() for _, seed, actions in items})
        return ({"success": solved.get(seed) == draw} for _, seed, _ in items)

    return replay


def test_the_first_plan_that_is_solved_is_taken_and_its_video_follows(
    command: list[str], generator: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    tried: Tried = {}
    monkeypatch.setattr(plans, "replay_episodes", solving({SEEDS[0]: 0, SEEDS[2]: 2}, asked, tried))
    assert cli.main([*command, f"out={tmp_path / 'drawn'}"]) == 0
    assert asked == [SEEDS, SEEDS[1:], SEEDS[1:], SEEDS[1:2]]
    drawn = read_actions(tmp_path / "drawn/dataset")
    assert [(row["draw"], row["replay_success"]) for row, _ in drawn] == [(0, True), (0, False), (2, True)]
    for row, actions in drawn:  # what was tried, bit for bit
        np.testing.assert_array_equal(actions, tried[row["seed"], row["draw"]])
    assert all(metadata["sampler"].endswith("-actions_first-draws-4-shift-1") for metadata, _ in drawn)
    result = json.loads((tmp_path / "drawn/run.json").read_text())["result"]
    assert result["solved_by_draw"] == [1, 1, 2, 2]
    assert not list((tmp_path / "drawn").rglob(plans.PLANS))

    assert cli.main([*command, "draws=1", f"out={tmp_path / 'once'}"]) == 0
    once = read_actions(tmp_path / "once/dataset")
    assert "draw" not in once[0][0]
    for index in (0, 1):
        np.testing.assert_allclose(drawn[index][1], once[index][1], atol=1e-5)
    assert np.abs(drawn[2][1] - once[2][1]).max() > 1e-3


def test_a_run_that_is_cut_goes_on_with_the_next_draw(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = {SEEDS[0]: 1, SEEDS[1]: 3}
    monkeypatch.setattr(plans, "replay_episodes", solving(solved, []))
    assert cli.main([*command, f"out={tmp_path / 'whole'}"]) == 0
    asked: list[list[int]] = []
    replay = solving(solved, asked)

    def cut(*arguments: Any) -> Iterator[dict]:
        if len(asked) == 2:
            raise KeyboardInterrupt
        return replay(*arguments)

    monkeypatch.setattr(plans, "replay_episodes", cut)
    assert cli.main([*command, f"out={tmp_path / 'cut'}"]) == 130
    asked.clear()
    monkeypatch.setattr(plans, "replay_episodes", replay)
    assert cli.main([*command, f"out={tmp_path / 'cut'}", "resume=true"]) == 0
    assert asked == [SEEDS[1:], SEEDS[1:]]
    assert dataset_id(tmp_path / "cut/dataset") == dataset_id(tmp_path / "whole/dataset")


def test_plans_of_another_generator_are_not_gone_on_with(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    asked: list[list[int]] = []
    monkeypatch.setattr(plans, "replay_episodes", solving({}, asked))
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "sample", interrupted)
        assert cli.main([*command, "draws=2", f"out={tmp_path / 'run'}"]) == 130
    monkeypatch.setattr(synthesize, "weights_id", lambda path: "another")
    assert cli.main([*command, "draws=2", f"out={tmp_path / 'run'}", "resume=true"]) == 2
    assert "has changed since" in capsys.readouterr().err
    assert asked == [SEEDS] * 2
    assert list((tmp_path / "run").rglob(plans.PLANS))


@pytest.mark.parametrize("expert", [True, False])
def test_plans_are_executed_in_the_simulator(expert: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan as recorded from an expert solves its scene at once, to stand still never does."""
    env = cached_env("push", 64)
    episode, solved = record_episode(env, SEEDS[0], 96, render_every=96)
    assert solved
    actions = torch.from_numpy(episode.actions)[None] * expert
    states = torch.zeros(1, 97, 4)
    monkeypatch.setattr(Generator, "plan_actions", lambda *_: (actions, states))
    generator = Generator(GeneratorConfig(num_frames=97, state_dim=4, action_dim=4))
    config = SynthesizeConfig(checkpoint="", tasks=["push"], draws=2, workers=1)
    row = start_scenes.SceneRow(0, "", {"task_name": "push", "seed": SEEDS[0]})
    scenes = start_scenes.Scenes([row], lambda _: (episode.images[0], episode.states[0], None), {})
    found = plans.solved_plans(config, tmp_path / "plans.npz", generator, list, scenes, "")
    assert found.metadata(0) == {"draw": 0, "replay_success": expert}
    np.testing.assert_array_equal(found.actions, actions.numpy())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["draws=0"], "draws=0: expected at least 1"),
        (["draws=10"], "draws=10: with draw_shift=1 there are 9 different ones"),
        (["draw_shift=-1"], "draw_shift=-1: expected at least 0"),
        (["sampler.order=synchronised"], "a sample of order synchronised does not begin with one"),
        (["scenes_from=nowhere"], "draws are tried in the simulator"),
    ],
)
def test_draws_that_cannot_be_made_are_refused(
    words: list[str], message: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command, *words, f"out={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/dataset").exists()


def test_a_picture_is_moved_and_its_edges_repeated() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert moved(image, 1, -1)[..., 0].tolist() == [[1, 2, 3, 3], [1, 2, 3, 3], [5, 6, 7, 7]]
    assert (moved(image, 0, 0) == image).all()


def test_the_noise_of_a_scene_does_not_depend_on_the_others(generator: Path, tmp_path: Path) -> None:
    """At the shipped batch size and at 2, alone, and beside another task."""

    def made(name: str, *words: str) -> dict[tuple[str, int], np.ndarray]:
        command = ["synthesize", f"checkpoint={generator}", f"out={tmp_path / name}"]
        command += ["sampler.order=synchronised", "sampler.num_inference_steps=2"]
        assert cli.main([*command, *words]) == 0
        return {(row["task_name"], row["seed"]): actions for row, actions in read_actions(tmp_path / name / "dataset")}

    alone = made("alone", "tasks=[push]", "episodes_per_task=1")
    many = made("many", "tasks=[button-press,push]", "episodes_per_task=2")
    few = made("few", "tasks=[push,button-press]", "episodes_per_task=2", "batch_size=3")
    for scene, actions in many.items():
        np.testing.assert_allclose(few[scene], actions, atol=1e-3)
    np.testing.assert_allclose(alone["push", SEEDS[0]], many["push", SEEDS[0]], atol=1e-3)


def test_episodes_from_one_scene_have_noise_of_their_own() -> None:
    rows: list[dict[str, Any]] = [{"task_name": "push", "seed": 1}, {}, {"task_name": "push", "seed": 1}, {}]
    seeds = start_scenes.scene_seeds(0, rows)
    assert len(set(seeds)) == 4
    assert start_scenes.scene_seeds(0, rows[:1]) == seeds[:1]
    assert not set(start_scenes.scene_seeds(1, rows)) & set(seeds)
