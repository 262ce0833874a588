"""The grid of a study: which cells it names and what each of them runs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policies.factory import CONFIGS
from recipes import ablate, study_notes
from recipes.compose import options_of
from recipes.study import ARMS, POLICIES, Cell, cell_stages, generator_stages, parse_grid, pretraining_stage
from recipes.study_schema import AblateConfig
from toolkit.base.errors import UserError


def test_lines_are_products_and_axes_that_do_not_matter_make_no_cells(config: Callable[..., AblateConfig]) -> None:
    axes = "synthetic_fraction=0.25,0.5 generator_data=same_tasks,other_tasks seed=0,1"
    cells = parse_grid(config(f"grid=['arm=real_few,cotrain {axes}','arm=real_few seed=1,2']"))
    assert len(cells) == len(set(cells)) == 3 + 2 * 2 * 2
    assert [cell.seed for cell in cells if cell.arm == "real_few"] == [0, 1, 2]
    other = next(
        cell for cell in cells if (cell.generator_data, cell.synthetic_fraction, cell.seed) == ("other_tasks", 0.25, 1)
    )
    assert other.system == "cotrain generator_data=other_tasks synthetic_fraction=0.25"
    assert other.name == "cotrain-generator_data_other_tasks-synthetic_fraction_0.25-pi05_compact-1"
    (filtered,) = parse_grid(config("grid=['arm=cotrain_filtered']"))
    assert filtered.filter == "cycle"  # the first


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("[]", "names no cell"),
        ("['seed=0']", "names no arm"),
        ("['arm=cotrian']", "arm=cotrian is unknown. Did you mean 'cotrain'"),
        ("['arm=cotrain fraction=0.5']", "unknown axis 'fraction'"),
        ("['arm=cotrain synthetic_fraction=1.5']", "synthetic_fraction=1.5: expected a number from 0 to 1"),
        ("['arm=cotrain seed=one']", "seed=one is not a number"),
        ("['arm=cotrain few=0']", "at least 1"),
        ("['arm=pretrain_finetune finetune_share=1']", "both stages need at least one step"),
        ("['arm=cotrain_filtered filter=cycel']", "filter=cycel is unknown"),
        ("['arm cotrain']", "expected axis=value"),
        ("['arm=glob(*)']", "expected axis=value"),
        ("['arm=cotrain seed=-1']", "seed=-1 is negative"),
        ("['arm=cotrain weight_by=scor_nearest']", "Did you mean 'score_nearest'"),
        ("['arm=pretrain_finetune finetune_share=nan']", "both stages need at least one step"),
    ],
)
def test_grids_that_make_no_sense_are_named(config: Callable[..., AblateConfig], grid: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        parse_grid(config(f"grid={grid}"))


def test_cells_have_names_of_their_own() -> None:
    cells = [Cell("cotrain", few=5), Cell("cotrain", few=2), Cell("cotrain", synthetic_fraction=0.25)]
    assert len({cell.name for cell in cells}) == len({cell.system for cell in cells}) == 3


def test_every_policy_can_be_studied() -> None:
    assert set(POLICIES) == set(options_of("policy")) >= set(CONFIGS)


def test_a_policy_may_have_steps_of_its_own(config: Callable[..., AblateConfig]) -> None:
    study = config("steps=11", "policy_steps={diffusion:7}", "grid=['arm=real_few policy=pi05_compact,diffusion']")
    steps = [cell_stages(study, Path("root"), cell)[0].config.optim.steps for cell in parse_grid(study)]
    assert steps == [11, 7]
    with pytest.raises(UserError, match="of steps=1: both stages"):
        parse_grid(config("policy_steps={diffusion:1}", "grid=['arm=pretrain_finetune policy=diffusion']"))


@pytest.mark.parametrize("arm", [name for name, arm in ARMS.items() if not arm.generator])  # which trains no policy
def test_every_arm_takes_the_same_steps_and_commands_that_compose(
    config: Callable[..., AblateConfig], arm: str
) -> None:
    batch = "['optim.batch_size=7']"
    study = config("steps=11", f"policy_train={{pi05_compact:{batch}}}", f"finetune={batch}")
    (cell,) = parse_grid(
        config(f"grid=['arm={arm} seed=3 generator_data=other_tasks finetune_share=0.3 finetune_fraction=0.25']")
    )
    before = [pretraining_stage(study, Path("root"), cell)] if ARMS[arm].finetuned else []
    stages = [*before, *cell_stages(study, Path("root"), cell)]
    composed = [stage.config for stage in stages]
    assert sum(c.optim.steps for c in composed[:-1]) == 11
    assert all(c.seed == 3 for c in composed)
    assert composed[0].augment == ("augmented" in arm)
    assert bool(composed[0].select) == ("filtered" in arm)
    assert [Path(run).name.partition("_")[0] for run in composed[0].notes] == ["replay", "score"] * ("filtered" in arm)
    assert composed[0].shuffle_actions == ("shuffled" in arm)
    assert {c.optim.batch_size for c in composed[:-1]} == {7}
    if "finetune" in arm:
        assert composed[1].synthetic_fraction == 0.25
        assert composed[1].checkpoint.startswith(f"root/{stages[0].name}")
    if arm == "real_all":
        assert composed[0].real_shares == [0.5, 0.5]
    assert composed[-1].checkpoint.startswith(f"root/{stages[-2].name}")
    made = generator_stages(study, Path("root"), "other_tasks", 0, 20)
    assert [stage.needs for stage in stages[1:]] == [(stage.name,) for stage in stages[:-1]]
    assert stages[0].needs == ((made[-1].name,) if cell.needs_generator else ())


def test_generators_learn_in_rounds_and_policies_get_the_last(
    config: Callable[..., AblateConfig], tmp_path: Path
) -> None:
    study = config(
        "rounds={other_tasks:3}",
        "synthesize_by_generator_data={other_tasks:['draws=4']}",
        "grid=['arm=cotrain generator_data=same_tasks,other_tasks seed=1']",
    )
    stages_by_data = {data: generator_stages(study, tmp_path, data, 1, 20) for data in ("same_tasks", "other_tasks")}
    stages = {stage.name: stage.config for data in stages_by_data.values() for stage in data}
    suffixes = ("other_tasks_1", "other_tasks_1_round_2", "other_tasks_1_round_3")
    made = [f"{kind}_{suffix}" for suffix in suffixes for kind in ("generator", "synthetic", "replay")]
    assert [stage.name for stage in stages_by_data["other_tasks"]] == [*made, "score_other_tasks_1_round_3"]
    synthetic = [str(tmp_path / f"synthetic_{suffix}/dataset") for suffix in suffixes]
    for turn, suffix in enumerate(suffixes):
        learned, generated = stages[f"generator_{suffix}"], stages[f"synthetic_{suffix}"]
        assert learned.synthetic == synthetic[:turn]
        assert learned.notes == [str(tmp_path / f"replay_{earlier}") for earlier in suffixes[:turn]]
        assert learned.select == ["replay_success==1"] * bool(turn)
        assert (learned.tokenizer_from is None) == (turn == 0)
        assert (generated.first_seed, generated.draws) == (study.synthetic_seed + 20 * turn, 4)
    assert stages["synthetic_same_tasks_1"].draws == 1
    given = [cell_stages(study, tmp_path, cell)[0].config.synthetic for cell in parse_grid(study)]
    assert given == [[str(tmp_path / "synthetic_same_tasks_1/dataset")], synthetic[-1:]]


def test_more_real_episodes_have_a_dataset_of_their_own(config: Callable[..., AblateConfig]) -> None:
    study = config("generator_few=5", "grid=['arm=real_few few=2,5,20']")
    named = [cell_stages(study, Path("root"), cell)[0].config.real for cell in parse_grid(study)]
    assert named == [[f"root/{name}/dataset"] for name in ("real_few", "real_few", "real_few_20")]


def test_all_ways_to_fine_tune_go_on_from_one_pretraining(config: Callable[..., AblateConfig], tmp_path: Path) -> None:
    line = "arm=pretrain_finetune finetune=default,gentle finetune_fraction=0,0.5 few=2,5"
    cells = parse_grid(config(f"grid=['{line}']"))
    assert len(cells) == 8
    assert {cell.pretraining for cell in cells} == {"pretrain_finetune-pi05_compact-0/train"}
    first = cells[0]
    changes = {
        "finetune_share": 0.25,
        "seed": 1,
        "policy": "diffusion",
        "synthetic_per_task": 20,
        "generator_data": "other_tasks",
    }
    others = [replace(first, **{axis: value}) for axis, value in changes.items()]
    assert len({cell.pretraining for cell in [first, *others]}) == 6
    trained = tmp_path / first.pretraining
    trained.mkdir(parents=True)
    record: dict[str, Any] = {"command": "pretrain", "git_sha": "beef", "config": {}, "status": "failed", "error": "no"}
    (trained / "run.json").write_text(json.dumps(record))
    assert "trained by commit beef" in study_notes.describe_commits(tmp_path, cells[-1:])
    study = config(f"grid=['{line}']")
    stages = {stage.name: stage for stage in ablate.study_stages(study, tmp_path, cells)}
    assert list(stages).count(first.pretraining) == 1
    evaluation = f"{cells[-1].name}/evaluate"
    assert ablate.first_error(tmp_path, stages, evaluation) == f"{first.pretraining}: no"
    del record["error"]  # it was killed
    (trained / "run.json").write_text(json.dumps({**record, "status": "running"}))
    assert "ended without a message" in str(ablate.first_error(tmp_path, stages, evaluation))
