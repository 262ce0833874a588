"""A study as a whole: what is refused before it begins, and the command at smoke scale."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from recipes import ablate, cli, study_notes
from recipes.compose import command_words, compose_config
from recipes.study import Cell, cell_stages, parse_grid
from recipes.study_schema import AblateConfig
from toolkit.base.errors import UserError
from toolkit.reporting.results import RESULTS


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["suites=[unsen]"], "unknown suite 'unsen'"),
        (["suites=[task]"], "suite 'task' needs new_tasks"),
        (
            ["other_tasks=[push-v3]"],
            "other_tasks: 'push' is told as 'Push the puck to a goal', and so is 'push' of tasks",
        ),
        (["other_tasks=[push-back]"], "other_tasks: 'push-back' is told as .* and so is 'push' of tasks; drop one"),
        (["other_tasks=[shove]"], "other_tasks: unknown Meta-World task 'shove'"),
        (["filters.mine=['score<0.2']"], "cannot read 'score<0.2'"),
        (["grid=['arm=cotrain synthetic_per_task=50000']"], "keep 500,000 seeds between them"),
        (["grid=['arm=cotrain_shuffled synthetic_per_task=1']"], "has no other one to take actions from"),
        (["generator_seeds=[0,0]"], "generator_seeds=.0, 0. names one twice"),
        (["held_out_seed=100050"], "synthetic_seed=100000 and held_out_seed=100050: .* would overlap"),
        (["suites=[]"], r"suites=\[\] is empty"),
        (["generator_seeds=[]"], r"generator_seeds=\[\] is empty"),
        (["gap=[0.3,0.3]"], "expected two different rates"),
        (["power=1"], "power=1"),
        (["policy_steps={difusion:9}"], "policy_steps: unknown policy 'difusion'"),
        (["rounds={other_task:2}"], "rounds: unknown generator_data 'other_task'. Did you mean 'other_tasks'"),
        (
            ["synthesize_by_generator_data={other_task:['draws=2']}"],
            "synthesize_by_generator_data: unknown generator_data 'other_task'",
        ),
        (["round_select=['score']"], "cannot read 'score'"),
        (
            ["rounds={other_tasks:2}", "round_select=['score_nearest>=1']"],
            "'score_nearest>=1': between rounds there are",
        ),
        (
            ["rounds={other_tasks:2}", "train_generator=['dataset_shares=[1,1]']"],
            "does not fit generators that learn in",
        ),
        (
            ["grid=['arm=cotrain synthetic_per_task=25000']", "rounds={other_tasks:2}"],
            "keep 500,000 seeds between them",
        ),
        (["grid=['arm=cotrain generator_data=other_tasks']"], "generator_data=other_tasks needs other_tasks"),
        (
            ["grid=['arm=cotrain generator_data=other_tasks few=2']", "other_tasks=[door-open]"],
            "saw generator_few=5 .* would get 2",
        ),
    ],
)
def test_studies_that_would_mislead_are_refused(
    config: Callable[..., AblateConfig], overrides: list[str], message: str
) -> None:
    made = config(*overrides)
    cells = parse_grid(made)
    with pytest.raises(UserError, match=message):
        ablate.check(made, cells)


@pytest.mark.parametrize(
    "path",
    sorted((Path(ablate.__file__).parent / "configs/experiment").glob("ablate_*.yaml")),
    ids=lambda path: path.stem,
)
def test_every_experiment_is_a_study_that_may_be_run(path: Path) -> None:
    made: Any = OmegaConf.to_object(compose_config("ablate", [f"experiment={path.stem}", "out=x"]))
    ablate.check(made, parse_grid(made))


def test_a_stage_that_was_finished_otherwise_or_cannot_be_composed_is_told_before_any_begins(
    config: Callable[..., AblateConfig],
    tmp_path: Path,
    example: Callable[..., Any],
    write_stage: Callable[..., None],
) -> None:
    study = config("finetunes.mine=['optim.learning_rat=1']", "grid=['arm=pretrain_finetune finetune=mine']")
    with pytest.raises(UserError, match="learning_rat"):
        ablate.study_stages(study, tmp_path, parse_grid(study))
    study = config("grid=['arm=real_few']")
    stages = cell_stages(study, tmp_path, parse_grid(study)[0])
    for stage in stages:
        write_stage(tmp_path / stage.name, stage.command, example(RESULTS[stage.command]), stage.config)
    ablate.check_stages(tmp_path, stages)
    told = study_notes.describe_commits(tmp_path, [*parse_grid(study), Cell("cotrain")])
    assert told == "pi05_compact trained by commit beef"
    path = tmp_path / stages[0].name / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "result": {**record["result"], "steps": "many"}}))
    with pytest.raises(UserError, match="run.json: 'result.steps' is 'many', expected a whole number; delete .*/train"):
        ablate.check_stages(tmp_path, stages)
    path.write_text(json.dumps(record))
    study = config("grid=['arm=real_few']", "threads=2", "scenes_per_task=9")  # the number of threads does not matter
    with pytest.raises(UserError, match="begun with episodes_per_task=50; now it is 9"):
        ablate.check_stages(tmp_path, cell_stages(study, tmp_path, parse_grid(study)[0]))


def test_the_few_must_be_among_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"real_few": [("push", 3)], "real_all": [("push", 0), ("push", 3)]}
    for name in rows:
        (tmp_path / name / "dataset").mkdir(parents=True)
    monkeypatch.setattr(
        ablate, "read_actions", lambda path: [({"task_name": t, "seed": s}, None) for t, s in rows[path.parent.name]]
    )
    ablate.check_nested(tmp_path)
    rows["real_few"].append(("push", 7))
    with pytest.raises(UserError, match="lacks .first: push, seed 7.; raise real_per_task"):
        ablate.check_nested(tmp_path)


def test_the_command_of_a_record_makes_the_same_config_again() -> None:
    words = ["grid=['arm=cotrain filter=cycle','arm=real_few seed=0,1']", "steps=7", "filters.best=['score_x<=20%']"]
    words += ["policy_train.diffusion=['optim.batch_size=3']", "experiment=ablate_smoke", "threads=2"]
    first: Any = OmegaConf.to_container(compose_config("ablate", words))
    again = shlex.split(" ".join(command_words("ablate", first)))
    assert OmegaConf.to_container(compose_config("ablate", again)) == first


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_study_at_smoke_scale_marks_what_fails_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pandas as pd

    out = tmp_path / "study"
    words = ["ablate", "experiment=ablate_smoke", f"out={out}"]
    assert cli.main([*words, "filters.cycle=['score_cycle_error<=-1']"]) == 0  # leaves no episode: that cell fails
    record = json.loads((out / "record.json").read_text())
    for figure in ("figure.svg", "arms.svg"):
        assert (out / figure).read_text().startswith("<svg xmlns")
    table = pd.read_parquet(out / "cells.parquet")
    assert set(table["suite"]) == {"unseen", "position"}
    failed = table[table["status"] == "failed"]
    assert set(failed["arm"]) == {"pretrain_finetune_filtered"}
    assert failed["error"].str.contains("leaves no episode").all()
    assert failed["rate"].isna().all()
    rollouts = pd.read_parquet(out / "rollouts.parquet")
    assert set(rollouts["arm"]) == set(table["arm"]) - {"pretrain_finetune_filtered"}
    assert len(rollouts) == table["n"].sum()
    assert rollouts["success"].sum() == table["successes"].sum()
    systems = {row["system"] for row in record["rows"]}
    assert {
        "real_few few=2",
        "real_few few=3",
        "real_all",
        "cotrain generator_data=other_tasks few=2 synthetic_per_task=2",
        "generator",
        "generator generator_policy=replanned",
    } <= systems
    assert {row["metric"] for row in record["rows"]} >= {"success", "real_per_synthetic"}
    replayed = {
        row["metric"]: row["n"] for row in record["rows"] if row["system"] == "synthetic generator_data=other_tasks"
    }
    assert replayed == {"success": 2, "success plate-slide": 2}
    suites = {"filters, generator_data=same_tasks generator=0", "unseen by task", "position by task"}
    assert suites < {row["suite"] for row in record["rows"]}
    assert all(row["low_these_checkpoints"] <= row["value"] <= row["high_these_checkpoints"] for row in record["rows"])
    assert all(row["low"] is None and "training run" in row["note"] for row in record["rows"])  # of one seed or two
    assert {c["b"] for c in record["comparisons"]} == {"real_few few=2", "real_all generator_data=other_tasks"}
    assert "rollouts an arm" in capsys.readouterr().out
    assert cli.main(["report", str(out), f"out={tmp_path / 'page'}"]) == 0

    # A study grows: cells that are there are taken as they are, those that are not are made.
    before = {path: path.read_bytes() for path in out.glob("*/train/run.json")}
    for cell in out.glob("pretrain_finetune_filtered*"):
        del before[cell / "train/run.json"]
        shutil.rmtree(cell)
    assert cli.main(words) == 2
    assert "resume=true to extend it" in capsys.readouterr().err
    assert cli.main([*words, "resume=true"]) == 0
    assert set(pd.read_parquet(out / "cells.parquet")["status"]) == {"finished"}
    assert all(path.read_bytes() == content for path, content in before.items())
