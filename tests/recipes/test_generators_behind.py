"""Generators behind weights that a training went on from; numbers of other policies are not of this one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from recipes.benchmark_policies import learned_from
from recipes.cards import open_thing, trained_before
from recipes.common import weights_id
from recipes.push import check_subject
from recipes.study_schema import BenchmarkPoliciesConfig
from toolkit.base.errors import UserError
from toolkit.base.files import write_json
from toolkit.evaluation.rates import Rate
from toolkit.reporting.benchmark_results import BenchmarkPoliciesResult, Row
from toolkit.reporting.cards import measured
from toolkit.reporting.results import PretrainResult, RolloutRates, RolloutResult


@pytest.fixture
def policy(tmp_path: Path, example: Callable[..., Any], write_stage: Callable[..., None]) -> Callable[..., str]:
    """A checkpoint beside the record of the command that trained it."""

    def write(name: str, command: str, config: dict[str, Any], synthetic: str = "") -> str:
        result = {**vars(example(PretrainResult)), "synthetic_fraction": 0.5 if synthetic else 0.0}
        write_stage(tmp_path / name, command, PretrainResult(**result))
        record = json.loads((tmp_path / name / "run.json").read_text())
        config |= {"real": ["real"], "synthetic": [synthetic] if synthetic else []}
        data = [{"path": path, "id": f"id of {path}", "episodes": 3} for path in ("real", synthetic) if path]
        write_json(tmp_path / name / "run.json", {**record, "config": {"seed": 0, **config}, "data": data})
        path = tmp_path / name / "pretrained_model"
        path.mkdir()
        write_json(path / "config.json", {"type": "act"})
        save_file({"w": np.zeros(3, np.float32)}, path / "model.safetensors")
        return str(path)

    return write


def test_generators_behind_the_weights_that_pretraining_began_with_count(policy: Callable[..., str]) -> None:
    first = policy("first", "pretrain", {"policy": {"type": "act", "path": None}}, "made")
    second = policy("second", "pretrain", {"policy": {"type": "act", "path": first}}, "other")
    published = policy("third", "pretrain", {"policy": {"type": "act", "path": "lerobot/act"}}, "other")
    assert learned_from(second) == {"id of made", "id of other"}
    assert learned_from(published) == {"id of other"}


def test_records_that_name_each_other_end(policy: Callable[..., str], tmp_path: Path) -> None:
    own = str(tmp_path / "loop/pretrained_model")
    assert policy("loop", "finetune", {"checkpoint": own}, "made") == own
    record = json.loads((tmp_path / "loop/run.json").read_text())
    record["data"].append({"path": own, "id": weights_id(own), "episodes": None})
    write_json(tmp_path / "loop/run.json", record)
    assert learned_from(own) == {"id of made"}
    assert [checkpoint for checkpoint, _ in trained_before(record)] == [own]


def benchmark(path: Path, write_stage: Callable[..., None], row: Any, checkpoints: list[str], **config: Any) -> Path:
    found = BenchmarkPoliciesResult(rows=[row], comparisons=[], leaderboards={}, notes={})
    write_stage(path, "benchmark policies", found, BenchmarkPoliciesConfig(**config))
    for k, checkpoint in enumerate(checkpoints):
        rate = Rate(successes=1, n=2, rate=0.5, low=0.1, high=0.9)
        rates = RolloutRates(**vars(rate), tasks={"push": rate}, outcomes=[("push", 0, True), ("push", 1, False)])
        rolled = RolloutResult(
            policy="act",
            checkpoint_id=weights_id(checkpoint),
            arm="a",
            seen_scenes=0,
            suites={"unseen": rates},
            media=[],
        )
        write_stage(path / f"a_{k}", "evaluate", rolled)
    return path


def test_a_benchmark_of_other_policies_is_no_number_of_this_one(
    policy: Callable[..., str],
    tmp_path: Path,
    write_stage: Callable[..., None],
    example: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    own, row = policy("own", "pretrain", {}), example(Row)
    other = policy("other", "pretrain", {})
    save_file({"w": np.ones(3, np.float32)}, Path(other) / "model.safetensors")
    foreign = benchmark(tmp_path / "foreign", write_stage, row, [other])
    ranked = benchmark(tmp_path / "ranked", write_stage, row, [other, own])
    judged = benchmark(tmp_path / "judged", write_stage, row, [], results="trials.csv")
    with pytest.raises(UserError, match="give runs that read it as it is now"):
        check_subject(open_thing(own), [measured(foreign)])
    check_subject(open_thing(own), [measured(ranked)])
    assert not capsys.readouterr().err
    check_subject(open_thing(own), [measured(judged)])
    assert "judged elsewhere" in capsys.readouterr().err
