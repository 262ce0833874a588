"""Commands that run other commands: what goes on after one has failed."""

import json
import re
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from recipes import benchmark_generators, demo, study
from recipes.compose import compose_config
from recipes.stages import Stage, chains_of, check_begun, in_turn, make_stage, run_stage, run_stages
from toolkit.base import engine
from toolkit.base.errors import UserError
from toolkit.base.files import write_json
from toolkit.base.record import read_record
from toolkit.reporting.results import ReportResult


def work(root: Path) -> dict[str, Stage]:
    """Two that succeed, one that fails, and two that wait for it."""
    (root / "page").mkdir()
    (root / "page/run.json").write_text(json.dumps({"command": "collect", "status": "finished", "result": {}}))
    good, bad = [str(root / "page")], [str(root / "nowhere")]
    what = {"good": good, "bad": bad, "after_good": good, "after_bad": good, "after_after_bad": good}
    needs = {"after_good": ["good"], "after_bad": ["bad"], "after_after_bad": ["after_bad"]}
    return {name: make_stage(name, "report", {"runs": runs}, needs=needs.get(name, [])) for name, runs in what.items()}


def changed(stage: Stage, **values: Any) -> Stage:
    return replace(stage, config=replace(stage.config, **values))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [pytest.param(2, marks=pytest.mark.long), 0])
def test_others_go_on_when_one_fails(tmp_path: Path, limit: int) -> None:
    failed = run_stages(tmp_path, list(work(tmp_path).values()), limit=limit, keep_going=True)
    assert sorted(failed) == ["after_after_bad", "after_bad", "bad"]
    assert all(read_record(tmp_path / name)["status"] == "finished" for name in ("good", "after_good"))
    assert "not found" in read_record(tmp_path / "bad")["error"]
    assert not (tmp_path / "after_bad").exists()


@pytest.mark.slow
def test_a_finished_stage_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    good = work(tmp_path)["good"]
    first = run_stage(tmp_path, good, ReportResult)
    assert run_stage(tmp_path, good, ReportResult) == first
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert run_stage(moved, changed(good, runs=[str(moved / "page")]), ReportResult) == first
    moved.rename(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"good: begun with runs=.*page.*; now it is .*other"):
        run_stage(tmp_path, changed(good, runs=[str(tmp_path / "other")]), ReportResult)
    record = json.loads((tmp_path / "good/run.json").read_text())
    del record["config"]["seed"]  # of a version that had no such setting: it was at its default
    (tmp_path / "good/run.json").write_text(json.dumps(record))
    assert run_stage(tmp_path, good, ReportResult) == first
    with pytest.raises(UserError, match=r"good: begun with seed=0; now it is 1"):
        run_stage(tmp_path, changed(good, seed=1), ReportResult)


def test_strict_is_handed_to_the_stages(tmp_path: Path) -> None:
    good = work(tmp_path)["good"]
    run_stage(tmp_path, good, ReportResult)
    record = json.loads((tmp_path / "good/run.json").read_text())
    unfinished = json.dumps({**record, "status": "running", "git_sha": "beef"})
    for strict in (True, False):
        (tmp_path / "good/run.json").write_text(unfinished)
        whole = {**record, "config": {**record["config"], "strict": strict}}
        (tmp_path / "run.json").write_text(json.dumps(whole))
        with pytest.raises(UserError, match="strict=true refuses") if strict else nullcontext():
            run_stage(tmp_path, good, ReportResult)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2, 0])
def test_a_failure_is_an_error_unless_told_otherwise(tmp_path: Path, limit: int) -> None:
    stages = work(tmp_path)
    with pytest.raises(UserError, match="^bad failed; the messages stand above"):
        run_stages(tmp_path, [stages[name] for name in ("bad", "after_bad")], limit=limit)


@pytest.mark.slow
def test_stages_that_are_finished_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = work(tmp_path)
    few = [stages["good"], stages["after_good"]]
    run_stages(tmp_path, few, limit=0)
    monkeypatch.setattr(engine.multiprocessing, "get_context", lambda _: None)
    assert run_stages(tmp_path, few, limit=2) == []
    other = changed(stages["good"], seed=1)
    assert run_stages(tmp_path, [other], limit=2, keep_going=True) == ["good"]  # finished otherwise
    with pytest.raises(UserError, match="^good failed"):
        run_stages(tmp_path, [other, stages["after_good"]], limit=2)
    (tmp_path / "after_good/run.json").write_text("{")
    with pytest.raises(AttributeError, match="Process"):  # it would start one, which says what is damaged
        run_stages(tmp_path, few, limit=2)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [pytest.param(2, marks=pytest.mark.long), 0])
def test_what_is_finished_does_not_wait_for_what_fails(tmp_path: Path, limit: int) -> None:
    stages = work(tmp_path)
    run_stage(tmp_path, stages["after_bad"], ReportResult)
    assert run_stages(tmp_path, list(stages.values()), limit=limit, keep_going=True) == ["bad"]
    assert read_record(tmp_path / "after_after_bad")["status"] == "finished"


def test_a_stage_shares_the_process_of_the_one_that_it_alone_needs() -> None:
    lone = in_turn([Stage(name, "report", None) for name in "abc"])
    assert [stage.needs for stage in lone] == [(), ("a",), ("b",)]
    stages = [*lone, Stage("d", "report", None, ("c",)), Stage("e", "report", None, ("c", "made before"))]
    chains = chains_of(stages, set("abcde"))
    assert [[stage.name for stage in chain.stages] for chain in chains] == [["a", "b", "c"], ["d"], ["e"]]
    assert [chain.needs for chain in chains] == [set(), {"c"}, {"c"}]


def test_what_a_study_asks_for_stands_above_its_words_or_below() -> None:
    words = ["max_steps=3", "suites=[visual]"]
    stage = make_stage("x", "evaluate", {"checkpoint": "a, b", "max_steps": 9}, words, {"suites": ["unseen"]})
    assert (stage.config.checkpoint, stage.config.max_steps, stage.config.suites) == ("a, b", 3, ["unseen"])
    for defaults, said in (
        ({}, "checkpoint=... is required"),
        ({"checkpoint": "x", "max_steps": 0}, "max_steps=0: expected at least 1"),
        ({"checkpoint": "${oc.env:HOME}"}, "is not read"),
        ({"checkpoint": "x", "tasks": ["pushh"]}, "unknown Meta-World task 'pushh'. Did you mean 'push'?"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            make_stage("x", "evaluate", defaults)


def test_generators_of_studies_learn_from_every_episode_as_those_of_old_records(tmp_path: Path) -> None:
    """They bring held-out scenes of their own. A training that is older than held-out episodes held out none."""
    config: Any = {
        command: OmegaConf.to_object(compose_config(command, words))
        for command, words in (
            ("demo", ["experiment=bridge", "source=x"]),
            ("benchmark generators", []),
            ("ablate", ["experiment=ablate_smoke"]),
        )
    }
    stages = [
        *demo.data_stages(config["demo"], tmp_path),
        *benchmark_generators.system_stages(config["benchmark generators"], tmp_path, "dense", "dense", 0),
        *study.generator_stages(config["ablate"], tmp_path, "same_tasks", 0, 2),
    ]
    trainings = [stage for stage in stages if stage.command == "train-generator"]
    assert len(trainings) > 5
    assert {stage.config.held_out_fraction for stage in trainings} == {0}
    old = {key: value for key, value in asdict(trainings[0].config).items() if not key.startswith("held_out")}
    record = {"command": "train-generator", "status": "running", "config": {**old, "out": str(tmp_path / "old")}}
    write_json(tmp_path / "old" / "run.json", record)
    assert check_begun(tmp_path, replace(trainings[0], name="old"))["status"] == "running"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"command": "collect", "config": {"out": "x"}}, "holds a run of 'vag collect', expected one of 'vag report'"),
        ({"command": "report", "config": {}}, r"run\.json: damaged \(no 'out' in 'config'\)"),
        ({"command": "report", "config": {"out": [1]}}, r"run\.json: damaged \(no 'out' in 'config'\)"),
    ],
)
def test_a_finished_stage_that_vag_did_not_write_is_not_taken(
    tmp_path: Path, record: dict[str, object], message: str
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished", "result": {}, **record}))
    with pytest.raises(UserError, match=message):
        run_stage(tmp_path, make_stage(".", "report", {"runs": ["x"]}), ReportResult)
