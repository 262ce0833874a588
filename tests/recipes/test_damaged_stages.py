"""A stage whose result was damaged, or written by another version, is one line for whoever is made of stages."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recipes import cli, demo
from toolkit.reporting.results import RESULTS, RolloutResult

MISSING = object()
DAMAGES = [
    (["seen_scenes"], MISSING, "'result.seen_scenes' is missing"),
    (["seen_scenes"], "none", "'result.seen_scenes' is 'none', expected a whole number"),
    (["suites"], MISSING, "'result.suites' is missing"),
    (["suites"], [], "'result.suites' is [], expected a mapping"),
    (["suites", "unseen"], 5, "'result.suites.unseen' is 5, expected a mapping"),
    (["suites", "unseen"], MISSING, "'result.suites.unseen' is missing"),
    (["suites", "unseen", "n"], "2", "'result.suites.unseen.n' is '2', expected a whole number"),
    (["suites", "unseen", "rate"], float("nan"), "'result.suites.unseen.rate' is nan, expected a finite number"),
    (["suites", "unseen", "low"], MISSING, "'result.suites.unseen.low' is missing"),
    (["suites", "unseen", "tasks"], [["push", 1]], "'result.suites.unseen.tasks' is [['push', 1]], expected a mapping"),
    (["suites", "unseen", "outcomes"], MISSING, "'result.suites.unseen.outcomes' is missing"),
    (["suites", "unseen", "outcomes"], {"push": True}, "'result.suites.unseen.outcomes' is {'push': True}, expected"),
    (["suites", "unseen", "outcomes", 0], ["push", 1], "'result.suites.unseen.outcomes[0]' is ['push', 1], expected a"),
    (["suites", "unseen", "outcomes"], [["push", 1, True]], "'result.suites.unseen': 1 outcomes of 2 trials"),
]


def damage(path: Path, place: list[Any], value: Any) -> None:
    record = json.loads(path.read_text())
    inner = record["result"]
    for key in place[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    path.write_text(json.dumps(record))


@pytest.fixture(autouse=True)
def _stages_end_at_once(
    monkeypatch: pytest.MonkeyPatch, example: Callable[..., Any], write_stage: Callable[..., None]
) -> None:
    """Each leaves a result that fits, and nothing else."""
    whole = cli.run_recipe

    def run_recipe(command: str, config: Any, stage: bool = False) -> Any:
        if not stage:
            return whole(command, config)
        result = example(RolloutResult if command == "evaluate" else RESULTS[command])
        if command == "evaluate":
            result = replace(result, suites=dict.fromkeys(config.suites, result.suites["one"]))
        elif command == "replay":
            result = replace(result, systems={config.system: result.systems["one"]})
        elif command == "synthesize":
            result = replace(result, metrics={"action_distance": 0.5})
        write_stage(Path(config.out), command, result, config)
        return result

    monkeypatch.setattr(cli, "run_recipe", run_recipe)
    monkeypatch.setattr(demo, "run_stages", partial(demo.run_stages, limit=0))
    monkeypatch.setattr(demo, "read_table", lambda path: SimpleNamespace(lengths=np.array([9])))


COMMANDS = {
    "demo": (["demo", "tasks=[push]", "policies=[pi05_compact]"], "evaluate_pi05_compact_real_few"),
    "ablate": (
        ["ablate", "grid=['arm=real_few']", "steps=3", "suites=[unseen]", "lanes=0"],
        "real_few-pi05_compact-0/evaluate",
    ),
    "benchmark policies": (
        ["benchmark", "policies", "checkpoints={ours:x}", "suites=[unseen]", "tasks=[push]", "lanes=0"],
        "ours_0",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_what_was_damaged_is_named_when_all_is_resumed(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, name = COMMANDS[command]
    out = tmp_path / "out"
    assert cli.main([*words, f"out={out}"]) == 0
    path = out / name / "run.json"
    whole = path.read_text()
    for place, value, said in DAMAGES:
        damage(path, place, value)
        if command == "demo":  # a finished one is not gone on with
            record = json.loads((out / "run.json").read_text())
            (out / "run.json").write_text(json.dumps({**record, "status": "running"}))
        capsys.readouterr()
        assert cli.main([*words, f"out={out}", "resume=true"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert all(line.startswith("vag: error: ") for line in lines)
        (line,) = (line for line in lines if str(path) in line)
        assert said in line
        assert line.endswith(f"; delete {path.parent} to have it made again")
        if command == "benchmark policies":  # as good as any
            assert cli.main(["report", str(path.parent), f"out={tmp_path / 'page'}", "overwrite=true"]) == 0
            page = unescape((tmp_path / "page/report.html").read_text())
            assert ("left out of its record: " + said in page) == ("suites.unseen' is missing" not in said)
        path.write_text(whole)
    assert cli.main([*words, f"out={out}", "resume=true"]) == 0
