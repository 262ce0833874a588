"""The study: which cells a grid names, what each of them runs, and what is made of their outcomes."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from policies.factory import CONFIGS
from recipes import ablate, cli, study_record
from recipes.compose import command_words, compose_config, options_of
from recipes.schema import AblateConfig
from recipes.study import ARMS, POLICIES, Cell, cell_lane, generator_lane, parse_grid, pretraining_lane
from toolkit.errors import UserError
from toolkit.evaluation.exchange import exchange_rate


def config(*overrides: str) -> AblateConfig:
    composed = compose_config("ablate", ["grid=['arm=real_few']", "steps=10", "out=x", *overrides])
    made: Any = OmegaConf.to_object(composed)
    return made


def test_lines_are_products_and_axes_that_do_not_matter_make_no_cells() -> None:
    grid = "grid=['arm=real_few,cotrain synthetic_fraction=0.25,0.5 feed=paper,fair seed=0,1','arm=real_few seed=1,2']"
    cells = parse_grid(config(grid))
    assert len(cells) == len(set(cells)) == 3 + 2 * 2 * 2
    assert [cell.seed for cell in cells if cell.arm == "real_few"] == [0, 1, 2]
    fair = next(cell for cell in cells if (cell.feed, cell.synthetic_fraction, cell.seed) == ("fair", 0.25, 1))
    assert fair.system == "cotrain feed=fair synthetic_fraction=0.25"
    assert fair.name == "cotrain-feed_fair-synthetic_fraction_0.25-pi05_compact-1"
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
def test_grids_that_make_no_sense_are_named(grid: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        parse_grid(config(f"grid={grid}"))


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
        (["other_tasks=[shove]"], "other_tasks: unknown task 'shove'"),
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
        (["policy_steps={diffusion:0}"], "policy_steps={diffusion:0}: expected at least 1"),
        (["rounds={fare:2}"], "rounds: unknown feed 'fare'. Did you mean 'fair'"),
        (["feed_synthesize={fare:['draws=2']}"], "feed_synthesize: unknown feed 'fare'"),
        (["rounds={fair:0}"], "rounds={fair:0}: expected at least 1"),
        (["round_select=['score']"], "cannot read 'score'"),
        (["rounds={fair:2}", "round_select=['score_nearest>=1']"], "'score_nearest>=1': between rounds there are"),
        (["rounds={fair:2}", "train_generator=['dataset_shares=[1,1]']"], "does not fit generators that learn in"),
        (["grid=['arm=cotrain synthetic_per_task=25000']", "rounds={fair:2}"], "keep 500,000 seeds between them"),
        (["grid=['arm=cotrain feed=fair']"], "feed=fair needs other_tasks"),
        (["grid=['arm=cotrain feed=fair few=2']", "other_tasks=[door-open]"], "has seen fed_few=5 .* would get 2"),
    ],
)
def test_studies_that_would_mislead_are_refused(overrides: list[str], message: str) -> None:
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


def test_every_policy_can_be_studied() -> None:
    assert set(POLICIES) == set(CONFIGS) == set(options_of("policy"))


def test_a_policy_may_have_steps_of_its_own() -> None:
    study = config("steps=11", "policy_steps={diffusion:7}", "grid=['arm=real_few policy=pi05_compact,diffusion']")
    steps = [compose_config(*cell_lane(study, Path("root"), cell)[0][1:]).optim.steps for cell in parse_grid(study)]
    assert steps == [11, 7]
    with pytest.raises(UserError, match="of steps=1: both stages"):
        parse_grid(config("policy_steps={diffusion:1}", "grid=['arm=pretrain_finetune policy=diffusion']"))


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_takes_the_same_steps_and_commands_that_compose(arm: str) -> None:
    batch = "['optim.batch_size=7']"
    study = config("steps=11", f"policy_train={{pi05_compact:{batch}}}", f"finetune={batch}")
    (cell,) = parse_grid(config(f"grid=['arm={arm} seed=3 feed=fair finetune_share=0.3 finetune_fraction=0.25']"))
    before = pretraining_lane(study, Path("root"), cell) if ARMS[arm].finetuned else []
    lane = [*before, *cell_lane(study, Path("root"), cell)]
    composed = [compose_config(command, words) for _, command, words in lane]
    assert sum(c.optim.steps for c in composed[:-1]) == 11
    assert all(c.seed == 3 for c in composed)
    assert composed[0].augment == ("augmented" in arm)
    assert bool(composed[0].select) == ("filtered" in arm)
    assert composed[0].shuffle_actions == ("shuffled" in arm)
    assert {c.optim.batch_size for c in composed[:-1]} == {7}
    if "finetune" in arm:
        assert composed[1].synthetic_fraction == 0.25
        assert composed[1].checkpoint.startswith(f"root/{lane[0][0]}")
    if arm == "real_all":
        assert composed[0].real_shares == [0.5, 0.5]
    assert composed[-1].checkpoint.startswith(f"root/{lane[-2][0]}")
    for _, command, words in generator_lane(study, Path("root"), "fair", 1, 20):
        compose_config(command, words)


def test_all_ways_to_fine_tune_go_on_from_one_pretraining(tmp_path: Path) -> None:
    line = "arm=pretrain_finetune finetune=default,gentle finetune_fraction=0,0.5 few=2,5"
    cells = parse_grid(config(f"grid=['{line}']"))
    assert len(cells) == 8
    assert {cell.pretraining for cell in cells} == {"pretrain_finetune-pi05_compact-0/train"}
    first = cells[0]
    changes = {"finetune_share": 0.25, "seed": 1, "policy": "diffusion", "synthetic_per_task": 20, "feed": "fair"}
    others = [replace(first, **{axis: value}) for axis, value in changes.items()]
    assert len({cell.pretraining for cell in [first, *others]}) == 6
    trained = tmp_path / first.pretraining
    trained.mkdir(parents=True)
    record: dict[str, Any] = {"command": "pretrain", "git_sha": "beef", "config": {}, "status": "failed", "error": "no"}
    (trained / "run.json").write_text(json.dumps(record))
    assert "trained by commit beef" in study_record.told_commits(tmp_path, cells[-1:])
    assert ablate.first_error(config(), tmp_path, cells[-1]) == f"{first.pretraining}: no"
    del record["error"]  # it was killed
    (trained / "run.json").write_text(json.dumps({**record, "status": "running"}))
    assert "ended without a message" in ablate.first_error(config(), tmp_path, cells[-1])


def test_generators_learn_in_rounds_and_policies_get_the_last(tmp_path: Path) -> None:
    study = config(
        "rounds={fair:3}", "feed_synthesize={fair:['draws=4']}", "grid=['arm=cotrain feed=paper,fair seed=1']"
    )
    lanes = {feed: generator_lane(study, tmp_path, feed, 1, 20) for feed in ("paper", "fair")}
    stages = {name: compose_config(command, words) for name, command, words in [*lanes["paper"], *lanes["fair"]]}
    suffixes = ("fair_1", "fair_1_round_2", "fair_1_round_3")
    made = [f"{kind}_{suffix}" for suffix in suffixes for kind in ("generator", "synthetic", "replay")]
    assert [name for name, _, _ in lanes["fair"]] == [*made, "score_fair_1_round_3"]
    synthetic = [str(tmp_path / f"synthetic_{suffix}/dataset") for suffix in suffixes]
    for turn, suffix in enumerate(suffixes):
        learned, generated = stages[f"generator_{suffix}"], stages[f"synthetic_{suffix}"]
        assert learned.synthetic == synthetic[:turn]
        assert learned.select == ["replay_success==1"] * bool(turn)
        assert (learned.tokenizer_from is None) == (turn == 0)
        assert (generated.first_seed, generated.draws) == (study.synthetic_seed + 20 * turn, 4)
    assert stages["synthetic_paper_1"].draws == 1
    given = [compose_config(*cell_lane(study, tmp_path, cell)[0][1:]).synthetic for cell in parse_grid(study)]
    assert given == [[str(tmp_path / "synthetic_paper_1/dataset")], synthetic[-1:]]


def test_the_record_tells_what_each_round_solved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solved = {"fair_0": [2, 4], "fair_0_round_2": [3, 6]}
    results: dict[str, Any] = {f"synthetic_{k}": {"solved_by_draw": v, "episodes": 9} for k, v in solved.items()}
    for k, values in solved.items():
        outcomes = [["push", i, i < values[-1]] for i in range(9)]
        results[f"replay_{k}"] = {"systems": {"vag": {"outcomes": outcomes}}}
    monkeypatch.setattr(study_record, "finished", lambda path: results.get(path.name))
    study = config("rounds={fair:2}", "generator_seeds=[0]", "grid=['arm=cotrain feed=fair']")
    assert study_record.told_draws(study, tmp_path, parse_grid(study)) == (
        "feed=fair generator=0 round=1: 2 of 9 scenes by the first, 4 by one of 2, 16 tries; "
        "feed=fair generator=0 round=2: 3 of 9 scenes by the first, 6 by one of 2, 15 tries"
    )
    rows = study_record.generator_rows(tmp_path, parse_grid(study), study)
    assert [(r["system"], r["value"]) for r in rows if r["metric"] == "success"] == [
        ("synthetic feed=fair round=1", 4 / 9),
        ("synthetic feed=fair", 6 / 9),
    ]
    told = study_record.notes(study, parse_grid(study), [])["generator of feed=fair"]
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


def test_rows_say_how_much_of_the_gap_is_closed_and_comparisons_are_paired() -> None:
    found = outcomes(real_few=0.3, cotrain=0.6, real_all=0.9)
    rows = {(row["system"], row["metric"]): row for row in study_record.system_rows(found)}
    assert rows["cotrain", "success"]["n"] == 900
    closed = rows["cotrain", "gap_closed"]
    assert closed["low"] < closed["value"] < closed["high"]
    assert closed["value"] == pytest.approx(0.5, abs=0.1)
    assert ("real_all", "gap_closed") not in rows
    comparisons = {(c["a"], c["b"]): c for c in study_record.system_comparisons(found)}
    assert comparisons.keys() == {("cotrain", "real_few"), ("cotrain", "real_all"), ("real_all", "real_few")}
    assert comparisons["cotrain", "real_few"]["low"] > 0.2
    assert comparisons["cotrain", "real_few"]["p"] < 1e-6
    assert comparisons["cotrain", "real_all"]["high"] < -0.2
    close = outcomes(real_few=0.5, cotrain=0.56, real_all=0.57)
    (paired,) = (c for c in study_record.system_comparisons(close) if (c["a"], c["b"]) == ("cotrain", "real_few"))
    assert 0 < paired["low"] < paired["high"] < 0.1  # the rates alone are only known within .06 each
    assert not [
        row
        for row in study_record.system_rows(outcomes(real_few=0.5, cotrain=0.6, real_all=0.45))
        if "gap" in row["metric"]
    ]


def test_success_is_told_by_task(tmp_path: Path) -> None:
    cells = [Cell("real_few", seed=seed) for seed in (0, 1)]
    solved = {0: {"push": [True, True, False], "sweep": [False]}, 1: {"push": [True, False, False], "sweep": [True]}}
    for cell in cells:
        rollouts = [[task, i, s] for task, found in solved[cell.seed].items() for i, s in enumerate(found)]
        record = {"command": "evaluate", "status": "finished", "result": {"suites": {"unseen": {"outcomes": rollouts}}}}
        (tmp_path / cell.name / "evaluate").mkdir(parents=True)
        (tmp_path / cell.name / "evaluate/run.json").write_text(json.dumps(record))
    table = study_record.rollout_table(tmp_path, cells)
    assert table[["seed", "task", "scene", "success"]].values.tolist()[3:5] == [
        [0, "sweep", 0, False],
        [1, "push", 0, True],
    ]
    assert len(table) == 8
    assert list(study_record.rollout_table(tmp_path, []).columns) == list(table.columns)
    rows = study_record.task_rows(tmp_path, cells, study_record.gather(tmp_path, cells))
    told = {row["metric"]: (row["value"], row["n"], row["seeds"]) for row in rows}
    assert told == {"push": (0.5, 6, 2), "sweep": (0.5, 2, 2)}
    assert {row["suite"] for row in rows} == {"unseen by task"}


def test_each_system_is_compared_with_as_many_real_episodes_as_it_has() -> None:
    found = outcomes(real_few_of_2=0.2, real_few_of_20=0.6, cotrain_of_20=0.65, cotrain_of_2=0.3, synthetic_only=0.4)
    pairs = [(c["a"], c["b"]) for c in study_record.system_comparisons(found)]
    assert pairs == [
        ("cotrain few=20", "real_few few=20"),
        ("cotrain few=20", "synthetic_only"),
        ("cotrain few=2", "real_few few=2"),
        ("cotrain few=2", "synthetic_only"),
        ("synthetic_only", "real_few few=2"),
    ]
    few, augmented = (({(Cell(arm), "unseen"): {0: [True, False]}}) for arm in ("real_few", "real_few_augmented"))
    assert len(study_record.system_comparisons(few | augmented)) == 1
    study = config("real_per_task=50")
    rows = [row for row in study_record.exchange_rows(study, found) if row["metric"] != "synthetic_per_real"]
    assert {row["system"] for row in rows} == {"cotrain few=2"}  # nothing lies beyond 20 on the curve
    values = {row["metric"]: row["value"] for row in rows}
    assert values["net_real_episodes"] == pytest.approx(200 * values["real_per_synthetic"] - 48)
    found |= outcomes(real_all=0.9)
    rows = [row for row in study_record.exchange_rows(study, found) if row["metric"] == "real_per_synthetic"]
    assert {row["system"] for row in rows} == {"cotrain few=2", "cotrain few=20"}
    fair = {(replace(cell, feed="fair"), suite): s for (cell, suite), s in found.items() if cell.arm == "cotrain"}
    values = {(row["system"], row["metric"]): row["value"] for row in study_record.exchange_rows(study, found | fair)}
    worth = 200 * values["cotrain feed=fair few=2", "real_per_synthetic"]
    assert values["cotrain feed=fair few=2", "net_real_episodes"] == pytest.approx(worth)
    assert values["cotrain few=2", "net_real_episodes"] == pytest.approx(worth - 48)
    for suite in ("position", "task"):  # which real episodes of the curve never cover
        assert not study_record.exchange_rows(study, {(cell, suite): seeds for (cell, _), seeds in found.items()})


def test_filtered_episodes_are_compared_with_unfiltered_ones_and_with_what_their_generator_saw() -> None:
    seeds = next(iter(outcomes(any_arm=0.5).values()))
    cells = [Cell("real_few"), Cell("cotrain"), Cell("real_all"), Cell("cotrain_shuffled", feed="fair")]
    cells.append(Cell("cotrain_filtered_shuffled", feed="fair", filter="replay"))
    cells += [Cell(arm, feed="fair") for arm in ("real_all", "cotrain")]
    cells += [Cell("cotrain_filtered", feed="fair", filter="replay")]
    pairs: dict[str, list[str]] = {}
    for found in study_record.system_comparisons({(cell, "unseen"): seeds for cell in cells}):
        pairs.setdefault(found["a"], []).append(found["b"])
    assert pairs == {
        "cotrain": ["real_few", "real_all"],
        "real_all": ["real_few"],
        "cotrain_shuffled feed=fair": ["real_few"],
        "cotrain_filtered_shuffled feed=fair filter=replay": ["real_few", "cotrain_shuffled feed=fair"],
        "real_all feed=fair": ["real_few"],
        "cotrain feed=fair": ["real_few", "real_all feed=fair", "cotrain_shuffled feed=fair"],
        "cotrain_filtered feed=fair filter=replay": [
            "real_few",
            "real_all feed=fair",
            "cotrain_filtered_shuffled feed=fair filter=replay",
            "cotrain feed=fair",
        ],
    }


def test_each_variant_is_compared_with_what_it_is_a_variant_of() -> None:
    seeds = next(iter(outcomes(any_arm=0.5).values()))
    cells = [Cell("cotrain"), Cell("cotrain", weight_by="score_nearest"), Cell("cotrain_augmented")]
    pairs = [(c["a"], c["b"]) for c in study_record.system_comparisons({(cell, "unseen"): seeds for cell in cells})]
    assert pairs == [("cotrain weight_by=score_nearest", "cotrain"), ("cotrain_augmented", "cotrain")]
    tuned = [Cell("pretrain_finetune", finetune=name) for name in ("default", "gentle")]
    (pair,) = study_record.system_comparisons({(cell, "unseen"): seeds for cell in tuned})
    assert (pair["a"], pair["b"]) == ("pretrain_finetune finetune=gentle", "pretrain_finetune")


def test_where_a_cell_has_failed_the_training_seeds_that_both_have_are_compared() -> None:
    found = outcomes(real_few=0.3, cotrain=0.6)
    few, cotrain = found.values()
    few |= {seed: cotrain[seed] for seed in (1, 2)}
    del cotrain[0]
    (comparison,) = study_record.system_comparisons(found)
    assert (comparison["seeds"], comparison["difference"], comparison["p"]) == (2, 0, 1)
    del few[1], few[2]
    assert study_record.system_comparisons(found) == []


def test_a_stage_that_was_finished_otherwise_or_cannot_be_composed_is_told_before_any_begins(tmp_path: Path) -> None:
    study = config("finetunes.mine=['optim.learning_rat=1']", "grid=['arm=pretrain_finetune finetune=mine']")
    with pytest.raises(UserError, match="learning_rat"):
        ablate.check_lanes(tmp_path, {"mine": cell_lane(study, tmp_path, parse_grid(study)[0])}, {"mine"})
    study = config("grid=['arm=real_few']")
    lane = cell_lane(study, tmp_path, parse_grid(study)[0])
    for name, command, words in lane:
        made: Any = OmegaConf.to_container(compose_config(command, [*words, f"out={tmp_path / name}"]))
        (tmp_path / name).mkdir(parents=True)
        record = {"command": command, "status": "finished", "config": made, "result": {}, "git_sha": "beef"}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    ablate.check_lanes(tmp_path, {"mine": lane}, ())
    told = study_record.told_commits(tmp_path, [*parse_grid(study), Cell("cotrain")])
    assert told == "pi05_compact trained by commit beef"
    study = config("grid=['arm=real_few']", "threads=2", "scenes_per_task=9")  # the number of threads does not matter
    with pytest.raises(UserError, match="begun with episodes_per_task=50; now it is 9"):
        ablate.check_lanes(tmp_path, {"mine": cell_lane(study, tmp_path, parse_grid(study)[0])}, ())


def test_more_real_episodes_have_a_dataset_of_their_own() -> None:
    study = config("fed_few=5", "grid=['arm=real_few few=2,5,20']")
    words = [cell_lane(study, Path("root"), cell)[0][2] for cell in parse_grid(study)]
    named = [next(word for word in some if word.startswith("real=")) for some in words]
    assert named == [f"real=[root/{name}/dataset]" for name in ("real_few", "real_few", "real_few_20")]


def test_replays_are_told_by_task_and_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solved = {0: {"push": 9, "sweep": 0}, 1: {"push": 15, "sweep": 20}}  # of 20 episodes each
    replays: dict[str, Any] = {
        f"replay_paper_{seed}": {
            "systems": {"vag": {"outcomes": [[t, i, i < n] for t, n in tasks.items() for i in range(20)]}}
        }
        for seed, tasks in solved.items()
    }
    monkeypatch.setattr(study_record, "finished", lambda path: replays.get(path.name))
    study = config("generator_seeds=[0,1,2]", "grid=['arm=cotrain seed=0,1,2']")  # the third one was not replayed
    rows = {(r["system"], r["metric"]): r for r in study_record.generator_rows(tmp_path, parse_grid(study), study)}
    both, name = "synthetic feed=paper", "synthetic feed=paper generator=1"
    assert {metric: (rows[both, metric]["value"], rows[both, metric]["n"]) for s, metric in rows if s == both} == {
        "success": (44 / 80, 80),
        "success push": (24 / 40, 40),
        "success sweep": (0.5, 40),
    }
    assert (rows[name, "success"]["value"], rows[name, "success push"]["value"]) == (35 / 40, 15 / 20)
    assert rows[both, "success sweep"]["low"] < 0.1  # one generator solves all, one none: who knows of the next
    assert rows[both, "success"]["seeds"] == 2
    del replays["replay_paper_0"]["systems"]["vag"]["outcomes"]
    with pytest.raises(UserError, match="replay_paper_0: of an earlier version; delete it"):
        study_record.generator_rows(tmp_path, parse_grid(study), study)


def test_filters_are_told_by_how_many_of_what_they_keep_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_record, "finished", lambda path: {} if path.name.endswith("paper_0") else None)
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
    monkeypatch.setattr(study_record, "episode_table", lambda path: episodes)
    study = config("generator_seeds=[0,1]", "grid=['arm=cotrain seed=0,1']")  # of the second one nothing is finished
    rows = study_record.filter_rows(tmp_path, parse_grid(study), study)
    assert {row["suite"] for row in rows} == {"filters, feed=paper generator=0"}
    found = {(row["system"], row["metric"]): row for row in rows}
    best = "success of the best {} %"
    assert found["score_cycle_error", best.format(25)]["value"] == 1
    assert found["score_cycle_error", best.format(75)]["value"] == pytest.approx(2 / 3, abs=0.05)
    assert found["score_nearest", best.format(25)]["value"] == 0
    assert {found[s, best.format(100)]["value"] for s in ("score_cycle_error", "score_nearest")} == {0.5}
    assert found["score_cycle_error", best.format(100)]["n"] == 40


def test_notes_tell_the_training_settings_that_count() -> None:
    study = config("steps=11", "train=['optim.learning_rate=1','optim.batch_size=4']")
    study.policy_train = {"diffusion": ["optim.learning_rate=2"]}
    assert study_record.told_training(study, "diffusion") == (
        "diffusion optim.steps=11 optim.learning_rate=2 optim.batch_size=4"
    )
    assert "optim.learning_rate=1" in study_record.told_training(study, "pi05_compact")


def test_what_is_told_of_tasks_without_real_episodes() -> None:
    study = config("experiment=ablate_task", "grid=['arm=real_few,real_all,cotrain']")
    cells = parse_grid(study)
    told = study_record.notes(study, cells, [])
    assert told["scenes"].startswith(
        "40 of each of push, pick-place, lever-pull in every suite but `task`, there of each of window-open, sweep-into"
    )
    assert "of window-open, sweep-into the policies get no real episode, but in real_all" in told["new tasks"]
    assert "80 scenes x 1 training seeds" in told["power"]
    assert {"generators", "real episodes"} <= told.keys()
    assert "exchange" not in told
    lone = parse_grid(config("grid=['arm=real_all']"))
    assert not {"generators", "real episodes", "exchange"} & study_record.notes(config(), lone, []).keys()
    found = {(cell, suite): {0: [cell.arm != "real_few", True]} for cell in cells for suite in ("unseen", "task")}
    assert study_record.exchange_rows(study, found) == []
    pairs = study_record.system_comparisons(found)
    text = ablate.summary({"cells": [], "failed": [], "comparisons": pairs})
    assert "largest lift of 1 over real_few on unseen: cotrain (pi05_compact) +0.500" in text
    assert "on task: cotrain" in text


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


def test_a_synthetic_episode_is_worth_what_the_learning_curve_says() -> None:
    def table(rate: float) -> np.ndarray:
        return np.repeat([[1.0] * round(1000 * rate) + [0.0] * round(1000 * (1 - rate))], 2, axis=0)

    curve = {5: table(0.3), 10: table(0.5), 20: table(0.7)}
    assert exchange_rate(table(0.5), curve, few=5, synthetic=100)["value"] == pytest.approx(5 / 100)
    assert exchange_rate(table(0.6), curve, 5, 100)["value"] == pytest.approx((np.sqrt(200) - 5) / 100)
    assert exchange_rate(table(0.9), curve, 5, 100)["value"] == pytest.approx(15 / 100)  # the end of the curve
    flat = {**curve, 40: table(0.7)}
    assert exchange_rate(table(0.7), flat, 5, 100)["value"] == pytest.approx(15 / 100)  # so many suffice
    beyond = exchange_rate(table(0.9), flat, 5, 100)
    assert (beyond["value"], beyond["at_end_of_curve"]) == (pytest.approx(35 / 100), 1)
    falling = {5: table(0.5), 50: table(0.4)}
    assert exchange_rate(table(0.9), falling, 5, 100)["value"] == pytest.approx(45 / 100)
    worse = exchange_rate(table(0.2), curve, 5, 100)
    assert worse["value"] == worse["low"] == 0
    with pytest.raises(ValueError, match="expected 5 and more"):
        exchange_rate(table(0.5), {5: table(0.3)}, 5, 100)


@pytest.mark.slow
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
    assert {"real_few few=2", "real_few few=3", "real_all", "cotrain feed=fair few=2 synthetic_per_task=2"} <= systems
    assert {row["metric"] for row in record["rows"]} >= {"success", "real_per_synthetic"}
    replayed = {row["metric"]: row["n"] for row in record["rows"] if row["system"] == "synthetic feed=fair"}
    assert replayed == {"success": 2, "success plate-slide": 2}
    suites = {"filters, feed=paper generator=0", "unseen by task", "position by task"}
    assert suites < {row["suite"] for row in record["rows"]}
    assert all(row["low"] <= row["value"] <= row["high"] for row in record["rows"])
    assert {c["b"] for c in record["comparisons"]} == {"real_few few=2", "real_all feed=fair"}
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


def test_cells_have_names_of_their_own() -> None:
    cells = [Cell("cotrain", few=5), Cell("cotrain", few=2), Cell("cotrain", synthetic_fraction=0.25)]
    assert len({cell.name for cell in cells}) == len({cell.system for cell in cells}) == 3
