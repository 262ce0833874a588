"""Generators as policies, by the commands: written, rolled out, benchmarked, and as an arm of the study."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import ablate, cli
from recipes.benchmark_policies import labels_of, learned_from, rollout_words
from recipes.common import weights_id
from recipes.study import Cell, cell_stages, parse_grid
from recipes.study_record import controls, gather, system_comparisons
from recipes.study_schema import AblateConfig, BenchmarkPoliciesConfig
from toolkit.base.errors import UserError
from toolkit.data.canvas import Canvas
from toolkit.data.conventions import Conventions
from toolkit.data.seen_scenes import read_scenes, write_scenes
from toolkit.data.windows import Windows
from toolkit.envs.metaworld import MetaWorldEnv
from toolkit.evaluation.rates import RolloutRates
from toolkit.evaluation.statistics import rollout_rates
from toolkit.reporting.results import RolloutResult
from vag_core import Generator, GeneratorConfig


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the shipped sizes, but for a short window; its weights are random."""
    path = tmp_path_factory.mktemp("trained") / "generator"
    torch.manual_seed(0)
    made = Generator(GeneratorConfig(num_frames=9))
    made.trajectory.set_statistics(*(torch.full((8,), value).numpy() for value in (0.0, 0.5, -1.0, 1.0)))
    made.save_pretrained(path)
    env = MetaWorldEnv
    Conventions("data", env.fps, env.state_names, env.action_names, Canvas.single((64, 64))).write(path)
    Windows(False, {"Push": [9]}).write(path)
    write_scenes(path, {"push": [500_001]})
    return path


def result(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())["result"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_generator_is_written_rolled_out_and_looked_at(
    generator: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written, policy = tmp_path / "written", tmp_path / "written/pretrained_model"
    words = ["sample=joint", "num_inference_steps=1", "n_action_steps=4", "save_predicted_video=true"]
    assert cli.main(["generator-policy", f"checkpoint={generator}", *words, f"out={written}"]) == 0
    made = result(written)
    assert (made["generator_id"], made["sample"], made["n_action_steps"], made["horizon"]) == (
        *(weights_id(generator), "joint"),
        *(4, 8),
    )
    assert "n_action_steps=4 of 8: the generator was trained on" in capsys.readouterr().err
    assert weights_id(policy) == weights_id(generator)
    assert read_scenes(policy) == {"push": [500_001]}
    assert "push: 1 (seeds 500001 to 500001)" in (policy / "README.md").read_text()

    rolled = ["evaluate", "tasks=[push]", "episodes_per_task=1", "max_steps=6"]
    assert cli.main([*rolled, f"checkpoint={policy}", f"out={tmp_path / 'joint'}"]) == 0
    found = result(tmp_path / "joint")
    assert (found["policy"], found["checkpoint_id"]) == ("vag_policy", weights_id(generator))
    assert "below each what the generator imagined" in found["media"][0]["caption"]
    import av

    with av.open(str(tmp_path / "joint/media/unseen.mp4")) as video:
        stream = video.streams.video[0]
        assert stream.height >= 1.9 * stream.width  # two pictures, one below the other
    assert cli.main([*rolled, f"checkpoint={generator}", f"out={tmp_path / 'plan'}"]) == 0
    capsys.readouterr()
    assert cli.main([*rolled, f"checkpoint={policy}", "first_seed=500001", f"out={tmp_path / 'seen'}"]) == 2
    assert "was trained on 1 of these scenes" in capsys.readouterr().err
    assert cli.main([*rolled, f"checkpoint={generator}", "generator_policy.n_action_steps=9"]) == 2
    assert "n_action_steps is 9; expected 1 to 8" in capsys.readouterr().err


def test_a_generator_and_the_policies_that_it_feeds_are_one_cluster(generator: Path, tmp_path: Path) -> None:
    own = frozenset({weights_id(generator)})
    assert learned_from(str(generator)) == own
    assert labels_of([str(generator)], [own]) == [own]
    config = BenchmarkPoliciesConfig(evaluate=["max_steps=9"], evaluate_generators=["generator_policy.sample=joint"])
    assert rollout_words(config, str(generator)) == ["max_steps=9", "generator_policy.sample=joint"]
    assert rollout_words(config, str(tmp_path)) == ["max_steps=9"]


STUDY = [
    "grid=['arm=generator generator_policy=default,replanned policy=pi05_compact,diffusion seed=0,1']",
    "generator_policies.replanned=['generator_policy.n_action_steps=16']",
]


def test_the_generator_is_an_arm_that_trains_nothing_else(config: Callable[..., AblateConfig], tmp_path: Path) -> None:
    study = config(*STUDY, "generator_seeds=[5,6]")
    cells = parse_grid(study)
    assert [(cell.policy, cell.generator_policy, cell.seed) for cell in cells] == [
        ("vag_policy", how, seed) for how in ("default", "replanned") for seed in (0, 1)
    ]
    assert cells[2].system == "generator generator_policy=replanned"
    ablate.check(study, cells)
    stages = {stage.name: stage for stage in ablate.study_stages(study, tmp_path, cells)}
    assert {stage.command for stage in stages.values()} == {"train-generator", "evaluate"}
    stage = stages["generator-generator_policy_replanned-vag_policy-1/evaluate"]
    assert stage.needs == ("generator_same_tasks_6",)
    assert stage.config.checkpoint == str(tmp_path / "generator_same_tasks_6/generator")
    assert (stage.config.generator_policy.n_action_steps, stage.config.arm) == (16, "generator")
    fed = config("grid=['arm=generator','arm=cotrain']", "generator_seeds=[5]")
    commands = [stage.command for stage in ablate.study_stages(fed, tmp_path, parse_grid(fed))]
    assert {"synthesize", "pretrain"} < set(commands)
    assert commands.count("train-generator") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("arm=generator generator_policy=replaned", "generator_policy=replaned is unknown. Did you mean 'replanned'"),
        ("arm=cotrain policy=vag_policy", "policy=vag_policy is of arm=generator alone"),
    ],
)
def test_a_line_that_names_no_such_arm_is_refused(config: Callable[..., AblateConfig], line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_grid(config(STUDY[1], f"grid=['{line}']"))


def test_policies_are_compared_with_the_generator_that_feeds_them(
    config: Callable[..., AblateConfig], tmp_path: Path, write_stage: Callable[..., None]
) -> None:
    study = config("grid=['arm=generator,cotrain,real_few seed=0,1']", "generator_seeds=[0,1]")
    cells = parse_grid(study)
    rates = {"generator": [True, True, False], "cotrain": [True, False, False], "real_few": [False, False, False]}
    for cell in cells:
        stage = cell_stages(study, tmp_path, cell)[-1]
        rolled: RolloutRates = rollout_rates([("push", seed, ok) for seed, ok in enumerate(rates[cell.arm])])
        found = RolloutResult(
            policy=cell.policy, checkpoint_id="x", arm=cell.arm, seen_scenes=0, suites={"unseen": rolled}, media=[]
        )
        write_stage(tmp_path / stage.name, "evaluate", found, stage.config)
    outcomes = gather(tmp_path, cells)
    assert [cell.policy for cell, _ in outcomes][-1] == "vag_policy"
    assert Cell("generator", "vag_policy") in controls(Cell("cotrain"), outcomes, "unseen")
    assert controls(Cell("generator", "vag_policy"), outcomes, "unseen") == []
    found_pairs = {(c.a, c.b): c.difference for c in system_comparisons(study, outcomes)}
    assert found_pairs["cotrain", "generator"] == pytest.approx(-1 / 3)
