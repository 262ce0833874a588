"""Results of commands as JSON: nothing is lost, and what does not fit is named in one line."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from toolkit.base.errors import UserError
from toolkit.base.typed_json import from_json, read_as, to_json
from toolkit.reporting.benchmark_results import BenchmarkRecord
from toolkit.reporting.generator_results import EvaluateGeneratorResult, SynthesizeResult, Throughput
from toolkit.reporting.results import RESULTS, OpenLoopResult, RolloutResult

RECORDS = sorted((Path(__file__).parents[2] / "recipes/benchmarks").glob("*.json"))
MISSING = object()


@pytest.mark.parametrize("command", RESULTS)
def test_every_result_comes_back_as_it_was(command: str, example: Callable[..., Any]) -> None:
    for kind in get_args(RESULTS[command]) or (RESULTS[command],):
        result = example(kind)
        text = json.dumps(to_json(result), allow_nan=False)
        assert from_json(RESULTS[command], json.loads(text), "run.json") == result
        assert from_json(kind, {**json.loads(text), "later": 3}, "run.json") is not None  # of a later version


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_record_comes_back_as_it_was(path: Path) -> None:
    record = json.loads(path.read_text())
    assert to_json(from_json(BenchmarkRecord, record, path, "record")) == record


def test_what_was_not_measured_is_left_out_and_what_is_unknown_is_null(example: Callable[..., Any]) -> None:
    text = to_json(example(SynthesizeResult)) | {"seen_scenes": None}
    del text["metrics"]
    result = from_json(SynthesizeResult, text, "run.json")
    assert (result.metrics, result.seen_scenes) == (None, None)
    assert to_json(result) == text
    assert to_json(Throughput()) == {}
    assert read_as(dict, {"tokenizer": 3}, "result") == {"tokenizer": 3}  # as far as a run is
    assert to_json({"ratio": float("nan"), "more": [float("inf")]}) == {"ratio": None, "more": [None]}


def test_of_several_kinds_the_one_whose_keys_are_there_is_read(example: Callable[..., Any]) -> None:
    for kind in (RolloutResult, OpenLoopResult):
        assert type(from_json(RESULTS["evaluate"], to_json(example(kind)), "run.json")) is kind
    rollouts = to_json(example(RolloutResult))
    del rollouts["suites"]
    with pytest.raises(UserError, match=r"'result\.suites' is missing"):
        from_json(RESULTS["evaluate"], rollouts, "run.json")


@pytest.mark.parametrize(
    ("kind", "place", "value", "said"),
    [
        (RolloutResult, ["arm"], MISSING, "'result.arm' is missing"),
        (RolloutResult, ["arm"], 3, "'result.arm' is 3, expected text"),
        (RolloutResult, ["seen_scenes"], "none", "'result.seen_scenes' is 'none', expected a whole number"),
        (RolloutResult, ["suites"], [], "'result.suites' is [], expected a mapping"),
        (RolloutResult, ["suites", "one"], [1], "'result.suites.one' is [1], expected a mapping"),
        (RolloutResult, ["suites", "one", "n"], MISSING, "'result.suites.one.n' is missing"),
        (RolloutResult, ["suites", "one", "n"], True, "'result.suites.one.n' is True, expected a whole number"),
        (RolloutResult, ["suites", "one", "n"], 2.5, "'result.suites.one.n' is 2.5, expected a whole number"),
        (RolloutResult, ["suites", "one", "n"], 1, "'result.suites.one': 2 of 1 and 0.5 [0.5, 0.5] are no rate"),
        (RolloutResult, ["suites", "one", "low"], float("nan"), "'result.suites.one.low' is nan, expected a finite"),
        (RolloutResult, ["suites", "one", "low"], 10**400, "expected a finite number"),
        (RolloutResult, ["suites", "one", "high"], None, "'result.suites.one.high' is None, expected a finite number"),
        (RolloutResult, ["suites", "one", "outcomes"], {}, "'result.suites.one.outcomes' is {}, expected a list"),
        (RolloutResult, ["suites", "one", "outcomes"], [], "'result.suites.one': 0 outcomes of 2 trials"),
        (RolloutResult, ["suites", "one", "outcomes", 1], ["a", 1], "outcomes[1]' is ['a', 1], expected a list of 3"),
        (RolloutResult, ["suites", "one", "outcomes", 1, 2], 1, "outcomes[1][2]' is 1, expected true or false"),
        (RolloutResult, ["media", 0, "path"], ["a"], "'result.media[0].path' is ['a'], expected text"),
        (EvaluateGeneratorResult, ["scenes", "psnr"], "high", "'result.scenes.psnr' is 'high', expected a list"),
        (EvaluateGeneratorResult, ["scenes", "psnr"], [1.0], "'result.scenes': lists of 2, 2, 2, 2, 1 values"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    kind: type, place: list[Any], value: Any, said: str, example: Callable[..., Any]
) -> None:
    text = copy.deepcopy(to_json(example(kind)))
    inner = text
    for key in place[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    with pytest.raises(UserError) as error:
        from_json(kind, text, "runs/evaluate/run.json")
    line = str(error.value)
    assert line.startswith("runs/evaluate/run.json: '")
    assert said in line
    assert line.endswith("; delete runs/evaluate to have it made again")
    assert "\n" not in line
    assert len(line) < 300
