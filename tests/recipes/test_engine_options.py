"""Which engine commands use: what their processes get, what counts as another run, GPUs of lanes."""

import os
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recipes.compose import checked_config, command_words
from recipes.engine_options import StageEngineConfig, chain_resources, stages_engine
from recipes.stages import Chain, make_stage
from toolkit.base.engine import LocalEngine, Resources, open_engine
from toolkit.base.errors import UserError
from toolkit.base.run import is_compared
from toolkit.training.runtime import name_gpu, take_gpus


def test_a_process_gets_the_most_that_its_stages_need(tmp_path: Path) -> None:
    replay = make_stage("a", "replay", {"dataset": "x"})
    evaluate = make_stage("b", "evaluate", {"checkpoint": "x", "tasks": ["push"], "runtime.device": "auto"})
    on_cpu = make_stage("c", "evaluate", {"checkpoint": "x", "tasks": ["push"], "runtime.device": "cpu"})
    config = StageEngineConfig(kind="ray", cpus=2)
    for stages, changed, expected in (
        ([replay], {}, Resources(2, 0.0)),
        ([on_cpu], {}, Resources(2, 0.0)),
        ([replay, evaluate], {}, Resources(2, None)),
        ([replay, evaluate], {"gpus": 0.5}, Resources(2, 0.5)),
        ([evaluate], {"stage_cpus": {"evaluate": 4}, "stage_gpus": {"evaluate": 0.25}}, Resources(4, 0.25)),
        ([replay, evaluate], {"stage_cpus": {"evaluate": 1}, "gpus": 1.0}, Resources(2, 1.0)),
    ):
        assert chain_resources(StageEngineConfig(**{**asdict(config), **changed}), Chain(stages, set())) == expected
    assert stages_engine(StageEngineConfig(), tmp_path) is None
    with pytest.raises(UserError, match=r"engine\.stage_cpus: 'evaluat' is no command\. Did you mean 'evaluate'"):
        stages_engine(StageEngineConfig(stage_cpus={"evaluat": 1}), tmp_path)
    with pytest.raises(UserError, match=r"engine\.address: is for a cluster; give engine\.kind=ray too"):
        stages_engine(StageEngineConfig(address="auto"), tmp_path)
    with pytest.raises(UserError, match=r"engine\.gpus: is for a cluster"):
        open_engine(StageEngineConfig(gpus=0.5), tmp_path)
    engine = open_engine(StageEngineConfig(), tmp_path, 3)
    assert isinstance(engine, LocalEngine)
    assert engine.workers == 3


def test_a_run_goes_on_by_another_engine() -> None:
    assert not any(map(is_compared, ("engine.kind", "engine.stage_gpus.evaluate", "workers", "shard")))
    assert is_compared("seed")
    assert is_compared("generator.engine")


def test_the_command_of_a_record_can_be_typed() -> None:
    words = ["engine.kind=ray", 'engine.address="host:6379"', "engine.stage_gpus={evaluate:0.5}", "seed=3"]
    words += ["experiment=ablate_smoke"]
    config: Any = checked_config("ablate", words)
    typed = command_words("ablate", config_dict(config))
    assert 'engine.kind="ray"' in [word.strip("'") for word in typed]
    again = checked_config("ablate", [word.strip("'") for word in typed])
    assert config_dict(again) == config_dict(config)


def config_dict(config: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config)
    return dict(plain)


def test_lanes_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, before, number, lanes, expected in (
        *((0, None, 1, 2, None), (2, None, 0, 4, "0"), (2, None, 3, 4, "1"), (2, "4,6", 1, 2, "6")),
        *((1, "GPU-a", 5, 9, "GPU-a"), (8, None, 0, 1, "0,1,2,3,4,5,6,7"), (8, None, 1, 3, "1,4,7")),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # so that what is set below is taken back in the end
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        if before is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
        take_gpus(number, lanes)
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected


def test_workers_compute_on_the_gpu_of_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "")
    monkeypatch.delenv("LOCAL_RANK")
    name_gpu(3)
    assert "LOCAL_RANK" not in os.environ  # no GPU here
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_available=lambda: True, device_count=lambda: 2))
    name_gpu(3)
    assert os.environ.pop("LOCAL_RANK") == "1"
