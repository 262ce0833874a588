"""Cards say what a checkpoint was trained on, also before it was finetuned."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.cards import card, open_thing
from recipes.common import weights_id
from recipes.evaluate import summary
from toolkit.base.files import write_json
from toolkit.reporting.cards import numbers_of
from toolkit.reporting.results import OpenLoop, OpenLoopResult, PretrainResult

MakeRun = Callable[..., Path]


@pytest.fixture
def trained(tmp_path: Path, write_stage: Callable[..., None], example: Callable[..., Any]) -> MakeRun:
    """trained(name, command, data, **config) -> a policy with a record that lists these data."""

    def make(name: str, command: str, data: list[dict[str, Any]], share: float, **config: Any) -> Path:
        write_stage(tmp_path / name, command, example(PretrainResult))
        record = json.loads((tmp_path / name / "run.json").read_text())
        record["config"] |= config
        record["result"]["synthetic_fraction"] = share
        write_json(tmp_path / name / "run.json", {**record, "data": data})
        path = tmp_path / name / "pretrained_model"
        path.mkdir()
        write_json(path / "config.json", {"type": "act"})
        (path / "model.safetensors").write_text(name)
        return path

    return make


def front_and_body(path: Path) -> tuple[dict[str, Any], str]:
    _, front, body = card(open_thing(str(path)), "me/policy", "mit", [], []).split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
def test_synthetic_data_of_the_checkpoint_that_was_finetuned_are_said(
    trained: MakeRun, tmp_path: Path, command: str
) -> None:
    made = {"path": "made/dataset", "id": "id of made", "episodes": 9}
    base = trained("base", "pretrain", [made], 0.25, synthetic=["made/dataset"])
    own = [{"path": str(base), "id": weights_id(base), "episodes": None}, {"path": "my", "id": "mine", "episodes": 2}]
    went_on: dict[str, Any] = {"checkpoint": str(base)} if command == "finetune" else {"policy": {"path": str(base)}}
    front, body = front_and_body(trained("tuned", command, own, 0, **went_on))
    assert "synthetic" in front["tags"]
    assert "# policy (trained on synthetic data)" in body
    assert "| made/dataset | id of made | synthetic | 9 |" in body
    assert "Synthetic clips among all that were drawn: 0.25." in body
    assert str(tmp_path) not in body


def test_a_base_that_is_gone_or_was_trained_anew_is_unknown(trained: MakeRun) -> None:
    base = trained("base", "pretrain", [{"path": "made", "id": "x", "episodes": 9}], 0.5, synthetic=["made"])
    own = [{"path": str(base), "id": weights_id(base), "episodes": None}]
    tuned = trained("tuned", "finetune", own, 0, checkpoint=str(base))
    (base / "model.safetensors").write_text("other weights")
    unknown = "base/pretrained\\_model was trained on, from which it went on\n\nNo record of its training lies beside"
    front, body = front_and_body(tuned)
    assert unknown in body
    assert "synthetic" not in front["tags"]
    shutil.rmtree(base.parent)
    assert unknown in front_and_body(tuned)[1]


@pytest.mark.parametrize(("errors", "interval"), [([0.5], "no interval"), ([0.25, 0.75], "[0.2500, 0.7500]")])
def test_one_held_out_episode_has_no_interval(errors: list[float], interval: str) -> None:
    loop = OpenLoop(
        action_distance=0.5,
        low=min(errors),
        high=max(errors),
        n=len(errors),
        mean=0.3,
        per_dimension=[0.5],
        per_episode=errors,
        n_action_steps=8,
    )
    result = OpenLoopResult(policy="act", checkpoint_id="x", arm="policy", open_loop=loop)
    assert interval in summary(result)
    (number,) = numbers_of(result)
    assert (number.low, number.high) == ((None, None) if len(errors) == 1 else (0.25, 0.75))
