"""A GPU that is full gives one line with a batch that fits. No GPU is needed: the memory is made up."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from toolkit.base.errors import UserError
from toolkit.data.batches import ALL, Part
from toolkit.training import out_of_memory
from toolkit.training.config import OptimConfig, RuntimeConfig
from toolkit.training.loop import train
from toolkit.training.out_of_memory import (
    Memory,
    divided,
    measured,
    one_line_if_full,
    pending_bytes,
    sampling_advice,
    training_advice,
)

GIB = 2**30
MESSAGE = "CUDA out of memory. Tried to allocate 3.00 GiB. GPU 0 has a total capacity of 79.6 GiB"


class Full(nn.Module):
    """Out of memory in its n-th step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.weight, self.left = nn.Parameter(torch.ones(3)), step

    def loss(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        self.left -= 1
        if not self.left:
            raise torch.cuda.OutOfMemoryError(MESSAGE)
        return (self.weight * batch["x"].mean()).sum(), {}


class Numbers:
    def batch(self, step: int, part: Part = ALL) -> dict[str, Any]:
        return {"x": torch.ones(2)}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Memory(total=80 * GIB, before=20 * GIB, reached=82 * GIB)
    monkeypatch.setattr(out_of_memory, "measured", lambda *_: found)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("step", "said"), [(1, "there is no checkpoint from before"), (3, "the last good checkpoint is")]
)
def test_a_training_that_is_out_of_memory_says_what_fits(tmp_path: Path, step: int, said: str) -> None:
    optim = OptimConfig(steps=5, batch_size=8, gradient_accumulation=1, checkpoint_every=1, warmup_steps=1)
    with pytest.raises(UserError) as error:
        train(Full(step), Numbers(), optim, RuntimeConfig(device="cpu"), tmp_path, "generator")
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith("optim.batch_size=8 optim.gradient_accumulation=1: out of memory, 82.0 GiB with 20.0 before")
    assert "optim.batch_size=4 optim.gradient_accumulation=2 should fit" in line
    assert said in line


@pytest.mark.usefixtures("gpu")
def test_the_tokenizer_has_options_of_its_own(tmp_path: Path) -> None:
    optim = OptimConfig(steps=1, batch_size=8)
    with pytest.raises(UserError, match=r"tokenizer_optim\.batch_size=4 tokenizer_optim\.gradient_accumulation=2"):
        train(Full(1), Numbers(), optim, RuntimeConfig(device="cpu"), tmp_path, "tokenizer")


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), one_line_if_full("cpu", lambda memory: "full"):
        raise RuntimeError("shapes")


def test_a_batch_fits_into_what_is_left() -> None:
    assert Memory(80 * GIB, 20 * GIB, 100 * GIB).most(8) == 4  # 10 GiB a clip, 56 left: at most half
    assert Memory(80 * GIB, 60 * GIB, 100 * GIB).most(8) == 3  # 5 a clip, 16 left
    assert Memory(80 * GIB, 60 * GIB, 100 * GIB, foreign=10 * GIB).most(8) == 1
    assert Memory(80 * GIB, 60 * GIB, 100 * GIB, pending=15 * GIB).most(8) == 0
    assert Memory(24 * GIB, 23 * GIB, 26 * GIB).most(8) == 0
    assert Memory(24 * GIB, 2 * GIB, 26 * GIB).most(1) == 0


@pytest.mark.parametrize(
    ("clips", "most", "both"), [(40, 4, (4, 10)), (40, 3, (2, 20)), (7, 3, (1, 7)), (6, 9, (6, 1))]
)
def test_a_batch_is_divided_evenly(clips: int, most: int, both: tuple[int, int]) -> None:
    assert divided(clips, most) == both


def test_where_nothing_fits_other_ways_are_named() -> None:
    line = training_advice(Memory(24 * GIB, 22 * GIB, 30 * GIB), 1, 8)
    assert "which one clip does not fit into" in line
    for way in ("gradient_checkpointing", "train=lora", "fewer frames", "smaller pictures", "larger GPU"):
        assert way in line
    assert "which one sample does not fit into" in sampling_advice(Memory(24 * GIB, 22 * GIB, 30 * GIB), 1)


def test_samples_that_are_too_many_get_a_number_that_fits() -> None:
    assert "batch_size=10 should fit" in sampling_advice(Memory(80 * GIB, 10 * GIB, 81 * GIB), 20)


def test_memory_is_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"mem_get_info": (GIB, 80 * GIB), "max_memory_allocated": 76 * GIB, "memory_reserved": 77 * GIB}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    memory = measured(torch.device("cuda"), 5 * GIB, 7, MESSAGE)
    assert memory == Memory(80 * GIB, 5 * GIB, 79 * GIB, foreign=2 * GIB, pending=7)


def test_moments_are_still_to_come_before_the_first_step() -> None:
    layer = nn.Linear(10, 1, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    assert pending_bytes(optimizer) == 3 * 40
    layer(torch.ones(10)).backward()
    optimizer.step()
    assert pending_bytes(optimizer) == 40
