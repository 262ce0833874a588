"""What is made of the outcomes of a study: rows, comparisons, notes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recipes import ablate, study_notes, study_record
from recipes.study import Cell, parse_grid
from recipes.study_schema import AblateConfig
from toolkit.base.errors import UserError
from toolkit.evaluation.statistics import rollout_rates
from toolkit.reporting.benchmark_results import AblateResult
from toolkit.reporting.generator_results import SynthesizeResult
from toolkit.reporting.results import ReplayResult, RolloutResult


def test_the_record_tells_what_each_round_solved(
    config: Callable[..., AblateConfig], tmp_path: Path, example: Callable[..., Any], write_stage: Callable[..., None]
) -> None:
    solved = {"other_tasks_0": [2, 4], "other_tasks_0_round_2": [3, 6]}
    for k, values in solved.items():
        made = replace(example(SynthesizeResult), episodes=9, solved_by_draw=values)
        write_stage(tmp_path / f"synthetic_{k}", "synthesize", made)
        replayed = rollout_rates([("push", i, i < values[-1]) for i in range(9)])
        write_stage(tmp_path / f"replay_{k}", "replay", ReplayResult(systems={"vag": replayed}))
    study = config("rounds={other_tasks:2}", "generator_seeds=[0]", "grid=['arm=cotrain generator_data=other_tasks']")
    assert study_notes.describe_draws(study, tmp_path, parse_grid(study)) == (
        "generator_data=other_tasks generator=0 round=1: 2 of 9 scenes by the first, 4 by one of 2, 16 tries; "
        "generator_data=other_tasks generator=0 round=2: 3 of 9 scenes by the first, 6 by one of 2, 15 tries"
    )
    rows = study_record.generator_rows(tmp_path, parse_grid(study), study)
    assert [(r.system, r.value) for r in rows if r.metric == "success"] == [
        ("synthetic generator_data=other_tasks round=1", 4 / 9),
        ("synthetic generator_data=other_tasks", 6 / 9),
    ]
    told = study_notes.notes(study, parse_grid(study), [], ())["generator trained on other_tasks"]
    assert "after round 1 also its earlier episodes with replay_success==1, in 2 rounds" in told


def outcomes(**rates: float) -> study_record.Outcomes:
    """Scenes are easy or hard for all: the same draw decides each, so pairs differ far less than lone rates."""
    difficulty = np.random.default_rng(0).random(300)
    found: study_record.Outcomes = {}
    for k, (name, rate) in enumerate(rates.items()):
        noise = np.random.default_rng(k + 1).random((3, 300)) < 0.01
        arm, _, few = name.partition("_of_")
        cell = Cell(arm, "diffusion", few=int(few or 5))
        found[cell, "unseen"] = {s: ((difficulty < rate) ^ noise[s]).tolist() for s in range(3)}
    return found


def test_rows_say_how_much_of_the_gap_is_closed_and_comparisons_are_paired(
    config: Callable[..., AblateConfig],
) -> None:
    study, found = config(), outcomes(real_few=0.3, cotrain=0.6, real_all=0.9)
    rows = {(row.system, row.metric): row for row in study_record.system_rows(study, found)}
    assert rows["cotrain", "success"].n == 900
    closed = rows["cotrain", "gap_closed"]
    assert closed.low_these_checkpoints < closed.value < closed.high_these_checkpoints
    assert closed.value == pytest.approx(0.5, abs=0.1)
    assert (closed.low, closed.note) == (None, "no interval of systems: 3 training runs, it takes 12")
    assert ("real_all", "gap_closed") not in rows
    comparisons = {(c.a, c.b): c for c in study_record.system_comparisons(study, found)}
    assert comparisons.keys() == {("cotrain", "real_few"), ("cotrain", "real_all"), ("real_all", "real_few")}
    assert comparisons["cotrain", "real_few"].low > 0.2
    assert comparisons["cotrain", "real_few"].p_these_checkpoints < 0.002
    assert comparisons["cotrain", "real_all"].high < -0.2
    close = outcomes(real_few=0.5, cotrain=0.56, real_all=0.57)
    (paired,) = (c for c in study_record.system_comparisons(study, close) if (c.a, c.b) == ("cotrain", "real_few"))
    assert 0 < paired.low < paired.high < 0.1  # the rates alone are only known within .06 each
    assert not [
        row
        for row in study_record.system_rows(study, outcomes(real_few=0.5, cotrain=0.6, real_all=0.45))
        if "gap" in row.metric
    ]


def test_policies_that_share_a_generator_are_one_cluster(config: Callable[..., AblateConfig]) -> None:
    found = outcomes(real_few=0.3, cotrain=0.6, synthetic_only=0.65)
    for seeds, lacking in (([0, 1], True), ([0, 1, 2], False)):
        study = config(f"generator_seeds={seeds}")
        rows = {row.system: row for row in study_record.system_rows(study, found)}
        pairs = {(c.a, c.b): c for c in study_record.system_comparisons(study, found)}
        assert rows["real_few"].low is not None  # it has no generator
        told = [rows["cotrain"], pairs["cotrain", "real_few"], pairs["cotrain", "synthetic_only"]]
        assert [row.low is None for row in told] == [lacking] * 3
        assert all(("2 generators behind 3 training runs" in (row.note or "")) is lacking for row in told)
        assert all(row.low_these_checkpoints is not None for row in told)
    cells = [cell for cell, _ in found]
    assert study_record.trained(config("generator_seeds=[7,8]"), cells[1], found[cells[1], "unseen"]).clusters == [
        ("same_tasks", 7),
        ("same_tasks", 8),
        ("same_tasks", 7),
    ]


def test_success_is_told_by_task(
    config: Callable[..., AblateConfig],
    tmp_path: Path,
    example: Callable[..., Any],
    write_stage: Callable[..., None],
) -> None:
    study = config("generator_seeds=[4,5]")
    cells = [Cell("real_few", seed=seed) for seed in (0, 1)]
    solved = {0: {"push": [True, True, False], "sweep": [False]}, 1: {"push": [True, False, False], "sweep": [True]}}
    for cell in cells:
        rollouts = [(task, i, s) for task, found in solved[cell.seed].items() for i, s in enumerate(found)]
        result = replace(example(RolloutResult), suites={"unseen": rollout_rates(rollouts)})
        write_stage(tmp_path / cell.name / "evaluate", "evaluate", result)
    table = study_record.rollout_table(study, tmp_path, cells)
    assert table[["seed", "task", "scene", "success"]].values.tolist()[3:5] == [
        [0, "sweep", 0, False],
        [1, "push", 0, True],
    ]
    assert len(table) == 8
    assert list(study_record.rollout_table(study, tmp_path, []).columns) == list(table.columns)
    assert table["generator"].isna().all()
    tasks = study_record.scene_tasks(tmp_path, cells)
    rows = study_record.task_rows(study, study_record.gather(tmp_path, cells), tasks)
    told = {row.metric: (row.value, row.n, row.seeds) for row in rows}
    assert told == {"push": (0.5, 6, 2), "sweep": (0.5, 2, 2)}
    assert {row.suite for row in rows} == {"unseen by task"}


def test_each_system_is_compared_with_as_many_real_episodes_as_it_has(config: Callable[..., AblateConfig]) -> None:
    found = outcomes(real_few_of_2=0.2, real_few_of_20=0.6, cotrain_of_20=0.65, cotrain_of_2=0.3, synthetic_only=0.4)
    study = config("real_per_task=50")
    pairs = [(c.a, c.b) for c in study_record.system_comparisons(study, found)]
    assert pairs == [
        ("cotrain few=20", "real_few few=20"),
        ("cotrain few=20", "synthetic_only"),
        ("cotrain few=2", "real_few few=2"),
        ("cotrain few=2", "synthetic_only"),
        ("synthetic_only", "real_few few=2"),
    ]
    few, augmented = (({(Cell(arm), "unseen"): {0: [True, False]}}) for arm in ("real_few", "real_few_augmented"))
    assert len(study_record.system_comparisons(study, few | augmented)) == 1
    rows = [row for row in study_record.exchange_rows(study, found) if row.metric != "synthetic_per_real"]
    assert {row.system for row in rows} == {"cotrain few=2"}  # nothing lies beyond 20 on the curve
    values = {row.metric: row.value for row in rows}
    assert values["net_real_episodes"] == pytest.approx(200 * values["real_per_synthetic"] - 48)
    found |= outcomes(real_all=0.9)
    rows = [row for row in study_record.exchange_rows(study, found) if row.metric == "real_per_synthetic"]
    assert {row.system for row in rows} == {"cotrain few=2", "cotrain few=20"}
    other = {
        (replace(cell, generator_data="other_tasks"), suite): s
        for (cell, suite), s in found.items()
        if cell.arm == "cotrain"
    }
    values = {(row.system, row.metric): row.value for row in study_record.exchange_rows(study, found | other)}
    worth = 200 * values["cotrain generator_data=other_tasks few=2", "real_per_synthetic"]
    assert values["cotrain generator_data=other_tasks few=2", "net_real_episodes"] == pytest.approx(worth)
    assert values["cotrain few=2", "net_real_episodes"] == pytest.approx(worth - 48)
    for suite in ("position", "task"):  # which real episodes of the curve never cover
        assert not study_record.exchange_rows(study, {(cell, suite): seeds for (cell, _), seeds in found.items()})


def test_filtered_episodes_are_compared_with_unfiltered_ones_and_with_what_their_generator_saw(
    config: Callable[..., AblateConfig],
) -> None:
    seeds = next(iter(outcomes(any_arm=0.5).values()))
    cells = [
        Cell("real_few"),
        Cell("cotrain"),
        Cell("real_all"),
        Cell("cotrain_shuffled", generator_data="other_tasks"),
    ]
    cells.append(Cell("cotrain_filtered_shuffled", generator_data="other_tasks", filter="replay"))
    cells += [Cell(arm, generator_data="other_tasks") for arm in ("real_all", "cotrain")]
    cells += [Cell("cotrain_filtered", generator_data="other_tasks", filter="replay")]
    pairs: dict[str, list[str]] = {}
    for found in study_record.system_comparisons(config(), {(cell, "unseen"): seeds for cell in cells}):
        pairs.setdefault(found.a, []).append(found.b)
    assert pairs == {
        "cotrain": ["real_few", "real_all"],
        "real_all": ["real_few"],
        "cotrain_shuffled generator_data=other_tasks": ["real_few"],
        "cotrain_filtered_shuffled generator_data=other_tasks filter=replay": [
            "real_few",
            "cotrain_shuffled generator_data=other_tasks",
        ],
        "real_all generator_data=other_tasks": ["real_few"],
        "cotrain generator_data=other_tasks": [
            "real_few",
            "real_all generator_data=other_tasks",
            "cotrain_shuffled generator_data=other_tasks",
        ],
        "cotrain_filtered generator_data=other_tasks filter=replay": [
            "real_few",
            "real_all generator_data=other_tasks",
            "cotrain_filtered_shuffled generator_data=other_tasks filter=replay",
            "cotrain generator_data=other_tasks",
        ],
    }


def test_each_variant_is_compared_with_what_it_is_a_variant_of(config: Callable[..., AblateConfig]) -> None:
    seeds = next(iter(outcomes(any_arm=0.5).values()))
    cells = [Cell("cotrain"), Cell("cotrain", weight_by="score_nearest"), Cell("cotrain_augmented")]
    pairs = [(c.a, c.b) for c in study_record.system_comparisons(config(), {(cell, "unseen"): seeds for cell in cells})]
    assert pairs == [("cotrain weight_by=score_nearest", "cotrain"), ("cotrain_augmented", "cotrain")]
    tuned = [Cell("pretrain_finetune", finetune=name) for name in ("default", "gentle")]
    (pair,) = study_record.system_comparisons(config(), {(cell, "unseen"): seeds for cell in tuned})
    assert (pair.a, pair.b) == ("pretrain_finetune finetune=gentle", "pretrain_finetune")


def test_where_a_cell_has_failed_the_training_seeds_that_both_have_are_compared(
    config: Callable[..., AblateConfig],
) -> None:
    found = outcomes(real_few=0.3, cotrain=0.6)
    few, cotrain = found.values()
    few |= {seed: cotrain[seed] for seed in (1, 2)}
    del cotrain[0]
    (comparison,) = study_record.system_comparisons(config(), found)
    assert (comparison.seeds, comparison.difference, comparison.p_these_checkpoints) == (2, 0, 1)
    del few[1], few[2]
    assert study_record.system_comparisons(config(), found) == []


def test_replays_are_told_by_task_and_generator(
    config: Callable[..., AblateConfig], tmp_path: Path, write_stage: Callable[..., None]
) -> None:
    solved = {0: {"push": 9, "sweep": 0}, 1: {"push": 15, "sweep": 20}}  # of 20 episodes each
    for seed, tasks in solved.items():
        replayed = rollout_rates([(t, i, i < n) for t, n in tasks.items() for i in range(20)])
        write_stage(tmp_path / f"replay_same_tasks_{seed}", "replay", ReplayResult(systems={"vag": replayed}))
    study = config("generator_seeds=[0,1,2]", "grid=['arm=cotrain seed=0,1,2']")  # the third one was not replayed
    rows = {(r.system, r.metric): r for r in study_record.generator_rows(tmp_path, parse_grid(study), study)}
    both, name = "synthetic generator_data=same_tasks", "synthetic generator_data=same_tasks generator=1"
    assert {metric: (rows[both, metric].value, rows[both, metric].n) for s, metric in rows if s == both} == {
        "success": (44 / 80, 80),
        "success push": (24 / 40, 40),
        "success sweep": (0.5, 40),
    }
    assert (rows[name, "success"].value, rows[name, "success push"].value) == (35 / 40, 15 / 20)
    sweep = rows[both, "success sweep"]  # one generator solves all, one none: who knows of the next
    assert (sweep.low, sweep.note) == (None, "no interval of systems: 2 training runs, it takes 3")
    assert rows[both, "success"].seeds == 2
    record = json.loads((tmp_path / "replay_same_tasks_0/run.json").read_text())
    del record["result"]["systems"]["vag"]["outcomes"]  # of an earlier version
    (tmp_path / "replay_same_tasks_0/run.json").write_text(json.dumps(record))
    with pytest.raises(
        UserError, match="replay_same_tasks_0/run.json: 'result.systems.vag.outcomes' is missing; delete"
    ):
        study_record.generator_rows(tmp_path, parse_grid(study), study)


def test_filters_are_told_by_how_many_of_what_they_keep_succeed(
    config: Callable[..., AblateConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_record, "is_finished", lambda path: path.name.endswith("same_tasks_0"))
    episodes = [
        {
            "task_name": task,
            "replay_success": i < 10,
            "score_cycle_error": i,
            "score_nearest": i,
        }  # the farthest is the best
        for task in ("push", "sweep")
        for i in range(20)
    ]
    monkeypatch.setattr(study_record, "noted_episodes", lambda dataset, runs: episodes)
    study = config("generator_seeds=[0,1]", "grid=['arm=cotrain seed=0,1']")  # of the second one nothing is finished
    rows = study_record.filter_rows(tmp_path, parse_grid(study), study)
    assert {row.suite for row in rows} == {"filters, generator_data=same_tasks generator=0"}
    found = {(row.system, row.metric): row for row in rows}
    best = "success of the best {} %"
    assert found["score_cycle_error", best.format(25)].value == 1
    assert found["score_cycle_error", best.format(75)].value == pytest.approx(2 / 3, abs=0.05)
    assert found["score_nearest", best.format(25)].value == 0
    assert {found[s, best.format(100)].value for s in ("score_cycle_error", "score_nearest")} == {0.5}
    assert found["score_cycle_error", best.format(100)].n == 40


def test_notes_tell_the_training_settings_that_count(config: Callable[..., AblateConfig]) -> None:
    study = config("steps=11", "train=['optim.learning_rate=1','optim.batch_size=4']")
    study.policy_train = {"diffusion": ["optim.learning_rate=2"]}
    assert study_notes.describe_training(study, "diffusion") == (
        "diffusion optim.steps=11 optim.learning_rate=2 optim.batch_size=4"
    )
    assert "optim.learning_rate=1" in study_notes.describe_training(study, "pi05_compact")


def test_what_is_told_of_tasks_without_real_episodes(config: Callable[..., AblateConfig]) -> None:
    study = config("experiment=ablate_task", "grid=['arm=real_few,real_all,cotrain']")
    cells = parse_grid(study)
    told = study_notes.notes(study, cells, [], {"success"})
    assert told["scenes"].startswith(
        "40 of each of push, pick-place, lever-pull in every suite but `task`; "
        "40 of each of window-open, sweep-into in `task`"
    )
    assert "of window-open, sweep-into the policies get no real episode, but in real_all" in told["new tasks"]
    assert "80 scenes x 1 training seeds" in told["power"]
    assert told["power"].endswith("No interval of systems of that arm: it takes 3")
    shared = config("generator_seeds=[0,1]", "grid=['arm=real_few,cotrain seed=0,1,2,3']")
    assert "250 scenes x 2 training seeds, of generators where policies share them" in study_notes.power_sentence(
        shared, parse_grid(shared)
    )
    assert {"generators", "real episodes"} <= told.keys()
    assert not {"exchange", "gap_closed"} & told.keys()
    lone = parse_grid(config("grid=['arm=real_all']"))
    assert not {"generators", "real episodes", "exchange"} & study_notes.notes(config(), lone, [], ()).keys()
    alone = study_notes.notes(config("experiment=ablate_task", "suites=[task]"), lone, [], {"gap_closed"})
    assert alone["scenes"].startswith("40 of each of window-open, sweep-into in `task`; all from seed")
    assert "gap_closed" in alone

    cells = parse_grid(config("grid=['arm=real_few few=5,20','arm=real_all,cotrain']"))
    told = study_notes.notes(config(), cells, [], {"success", "real_per_synthetic"})["exchange"]
    assert "through 5 and 20 and 50 real episodes a task" in told
    assert "no more than 0 net_real_episodes" in told
    told = study_notes.notes(config(), cells, ["real_all-pi05_compact-0"], {"real_per_synthetic"})["exchange"]
    assert "through 5 and 20 real episodes a task" in told
    assert "no more than -30 net_real_episodes" in told
    found = {(cell, suite): {0: [cell.arm != "real_few", True]} for cell in cells for suite in ("unseen", "task")}
    assert study_record.exchange_rows(study, found) == []
    pairs = study_record.system_comparisons(config(), found)
    text = ablate.summary(AblateResult(rows=[], comparisons=pairs, notes={}))
    assert "largest lift of 1 over real_few on unseen: cotrain (pi05_compact) +0.500, of these checkpoints [" in text
    assert "on task: cotrain" in text
