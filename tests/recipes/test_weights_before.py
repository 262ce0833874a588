"""A policy that goes on from other weights: what these had learned from counts, and stands on its card."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from recipes.benchmark_policies import learned_from
from recipes.cards import card, open_thing
from toolkit.base.files import write_json
from toolkit.reporting.results import PretrainResult


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


def text_of(checkpoint: str) -> str:
    return card(open_thing(checkpoint), "me/policy", "mit", [], [])


def test_generators_behind_the_weights_that_pretraining_began_with_count(policy: Callable[..., str]) -> None:
    first = policy("first", "pretrain", {"policy": {"type": "act", "path": None}}, "made")
    second = policy("second", "pretrain", {"policy": {"type": "act", "path": first}}, "other")
    published = policy("third", "pretrain", {"policy": {"type": "act", "path": "lerobot/act"}}, "other")
    assert learned_from(second) == {"id of made", "id of other"}
    assert learned_from(published) == {"id of other"}


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
def test_a_card_marks_synthetic_data_behind_the_weights_before(command: str, policy: Callable[..., str]) -> None:
    first = policy("first", "pretrain", {"policy": {"type": "act", "path": None}}, "made")
    before = {"checkpoint": first} if command == "finetune" else {"policy": {"type": "act", "path": first}}
    text = text_of(policy("second", command, before))
    assert "# policy (trained on synthetic data)" in text
    assert "\n- synthetic\n" in text
    assert "had learned from data of the generators id of made" in text


def test_a_card_says_what_is_not_known_and_marks_nothing_without_reason(policy: Callable[..., str]) -> None:
    text = text_of(policy("tuned", "finetune", {"checkpoint": "lerobot/act"}))
    assert "what that learned from is not known here" in text
    assert "synthetic data)" not in text
    real = policy("first", "pretrain", {"policy": {"type": "act", "path": None}})
    text = text_of(policy("second", "finetune", {"checkpoint": real}))
    assert "had learned from no synthetic data" in text
    assert "synthetic data)" not in text
