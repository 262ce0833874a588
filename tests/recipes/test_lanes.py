"""Commands that run other commands: what goes on after one has failed."""

import json
from pathlib import Path

import pytest

from recipes import lanes as lanes_module
from recipes.lanes import Lane, run_lanes, stage
from toolkit.base.errors import UserError
from toolkit.base.run import read_record
from toolkit.reporting.results import ReportResult


def lanes(root: Path) -> tuple[dict[str, Lane], dict[str, str]]:
    """Two that succeed, one that fails, and two that wait for it."""
    (root / "page").mkdir()
    (root / "page/run.json").write_text(json.dumps({"command": "collect", "status": "finished", "result": {}}))
    good, bad = f"runs=[{root / 'page'}]", f"runs=[{root / 'nowhere'}]"
    what = {"good": good, "bad": bad, "after_good": good, "after_bad": good, "after_after_bad": good}
    after = {"after_good": "good", "after_bad": "bad", "after_after_bad": "after_bad"}
    return {name: [(name, "report", [words])] for name, words in what.items()}, after


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2, 0])
def test_others_go_on_when_one_fails(tmp_path: Path, limit: int) -> None:
    work, after = lanes(tmp_path)
    failed = run_lanes(tmp_path, work, limit=limit, after=after, keep_going=True)
    assert sorted(failed) == ["after_after_bad", "after_bad", "bad"]
    assert all(read_record(tmp_path / name)["status"] == "finished" for name in ("good", "after_good"))
    assert "not found" in read_record(tmp_path / "bad")["error"]
    assert not (tmp_path / "after_bad").exists()


@pytest.mark.slow
def test_a_finished_stage_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    work, _ = lanes(tmp_path)
    name, command, words = work["good"][0]
    first = stage(tmp_path / name, command, words, ReportResult)
    assert stage(tmp_path / name, command, words, ReportResult) == first
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert stage(moved / name, command, [f"runs=[{moved / 'page'}]"], ReportResult) == first
    moved.rename(tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"good: begun with runs=.*page.*; now it is .*other"):
        stage(tmp_path / name, command, [f"runs=[{tmp_path / 'other'}]"], ReportResult)
    record = json.loads((tmp_path / name / "run.json").read_text())
    del record["config"]["seed"]  # of a version that had no such setting: it was at its default
    (tmp_path / name / "run.json").write_text(json.dumps(record))
    assert stage(tmp_path / name, command, words, ReportResult) == first
    with pytest.raises(UserError, match=r"good: begun with seed=0; now it is 1"):
        stage(tmp_path / name, command, [*words, "seed=1"], ReportResult)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2, 0])
def test_a_failure_is_an_error_unless_told_otherwise(tmp_path: Path, limit: int) -> None:
    work, after = lanes(tmp_path)
    with pytest.raises(UserError, match="stages of bad failed"):
        run_lanes(tmp_path, {name: work[name] for name in ("bad", "after_bad")}, limit=limit, after=after)


@pytest.mark.slow
def test_lanes_that_are_finished_start_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, after = lanes(tmp_path)
    few = {name: work[name] for name in ("good", "after_good")}
    run_lanes(tmp_path, few, limit=0, after=after)
    monkeypatch.setattr(lanes_module.multiprocessing, "get_context", lambda _: None)
    assert run_lanes(tmp_path, few, limit=2, after=after) == []
    few["good"] = [("good", "report", [*work["good"][0][2], "seed=1"])]
    assert run_lanes(tmp_path, {"good": few["good"]}, limit=2, keep_going=True) == ["good"]  # finished otherwise
    with pytest.raises(UserError, match="stages of good failed"):
        run_lanes(tmp_path, few, limit=2, after=after)
    (tmp_path / "after_good/run.json").write_text("{")
    with pytest.raises(AttributeError, match="Process"):  # it would start one, which says what is damaged
        run_lanes(tmp_path, few | {"good": work["good"]}, limit=2, after=after)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2, 0])
def test_what_is_finished_does_not_wait_for_what_fails(tmp_path: Path, limit: int) -> None:
    work, after = lanes(tmp_path)
    directory, command, words = work["after_bad"][0]
    stage(tmp_path / directory, command, words, ReportResult)
    assert run_lanes(tmp_path, work, limit=limit, after=after, keep_going=True) == ["bad"]
    assert read_record(tmp_path / "after_after_bad")["status"] == "finished"


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
        stage(tmp_path, "report", ["runs=[x]"], ReportResult)
