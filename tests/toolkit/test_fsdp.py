"""Which weights are divided among processes, and that what FSDP makes of a module is taken back. Of training itself see
tests/recipes/test_fsdp_training.py."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from toolkit.base.errors import UserError
from toolkit.training.checkpoint import load_checkpoint, save_checkpoint
from toolkit.training.config import OptimConfig, ParallelismConfig
from toolkit.training.fsdp import (
    called_as_units,
    check_sharding,
    divided,
    group_sizes,
    is_sharded,
    local,
    shard,
    whole_state,
    wrap_units,
)
from toolkit.training.optim import ExponentialMovingAverage, make_optimizer, trained_state


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.Linear(4, 8, bias=False), nn.LayerNorm(8)
        self.down = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.norm(self.up(x)))


class Network(nn.Module):
    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.out = nn.Linear(4, 1)


class Objective(nn.Module):
    block_classes: tuple[str, ...] = ()
    calls_layers = False

    def __init__(self) -> None:
        super().__init__()
        self.network, self.other = Network(), Block()
        self.in_step = False

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["x"]
        for block in self.network.blocks:
            x = block(x)
        return self.other(self.network.out(x) + x).square().mean(), {}


def started(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("toolkit.training.fsdp.processes", lambda: SimpleNamespace(size=size, is_main=True))


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The first of two processes, whose messages go nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    started(monkeypatch, 2)
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    torch.distributed.destroy_process_group()


def test_blocks_are_those_that_networks_name() -> None:
    objective = Objective()
    assert wrap_units(objective) == list(objective.network.blocks)
    objective.block_classes = ("Block",)  # of the objective itself
    assert wrap_units(objective) == [*objective.network.blocks, objective.other]
    objective.calls_layers = True
    block = objective.other
    assert wrap_units(objective)[-3:] == [block.up, block.norm, block.down]


def test_vectors_small_matrices_the_rarer_type_and_what_is_shared_stay_whole() -> None:
    network = Network()
    first, second = network.blocks
    both = {block: [block.up.weight, block.down.weight] for block in network.blocks}
    assert divided(network, 2) == both
    assert divided(network, 8) == {block: [block.up.weight] for block in network.blocks}
    assert divided(network, 16) == {}
    first.up.to(torch.bfloat16)
    assert len(divided(network, 2)[first]) == 1
    first.up.requires_grad_(False)
    assert divided(network, 2) == both
    network.other = nn.Linear(4, 8)
    network.other.weight = second.up.weight  # which FSDP would take for two
    assert divided(network, 2) == {first: both[first], second: [second.down.weight]}


@pytest.mark.parametrize(
    ("size", "groups", "count", "found"),
    [(1, None, 1, (1, 1)), (4, None, 1, (4, 1)), (4, None, 2, (2, 2)), (4, 2, 2, (2, 2)), (4, 4, 1, (4, 1))],
)
def test_groups_of_processes(
    size: int, groups: int | None, count: int, found: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    started(monkeypatch, size)
    assert group_sizes(ParallelismConfig(groups, count)) == found


def test_numbers_that_make_other_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, 4)
    with pytest.raises(UserError, match=r"parallelism.dp_shard=3: make 3 processes, .* 4; .*--nproc_per_node 3"):
        group_sizes(ParallelismConfig(None, 3))
    with pytest.raises(UserError, match=r"parallelism.dp_replicate=1 parallelism.dp_shard=2: make 2 processes"):
        group_sizes(ParallelismConfig(1, 2))
    with pytest.raises(UserError, match=r"parallelism.dp_shard=2: no network of this model names blocks"):
        check_sharding(nn.Linear(4, 4), ParallelismConfig(None, 2))
    check_sharding(Objective(), ParallelismConfig(None, 2))
    started(monkeypatch, 16)
    with pytest.raises(UserError, match="too small"):
        check_sharding(Objective(), ParallelismConfig(None, 16))  # which is more than rows


@pytest.mark.parametrize("plugin", ["fsdp", "deepspeed", "megatron_lm", "parallelism_config"])
def test_a_plugin_that_is_not_applied_is_an_error(plugin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{plugin.upper()}", "true")
    with pytest.raises(UserError, match=f"--use_{plugin} does, and is not applied here.*parallelism.dp_shard=N"):
        group_sizes(ParallelismConfig())


def test_a_network_that_does_not_call_its_blocks_is_one_line(two: None) -> None:
    objective = Objective()
    shard(objective, ParallelismConfig(None, 2), torch.device("cpu"))
    with (
        pytest.raises(UserError, match="dp_shard=2: this network computes with the weights of its blocks without"),
        called_as_units(ParallelismConfig(None, 2)),
    ):
        objective.network.blocks[0].up(torch.zeros(1, 4))


@pytest.mark.parametrize("steps", [0, 1])
def test_a_divided_module_becomes_what_it_was(steps: int, two: None) -> None:
    objective = Objective()
    before = copy.deepcopy(objective)
    shards = shard(objective, ParallelismConfig(None, 2), torch.device("cpu"))
    assert shards is not None
    assert objective.in_step
    for name, weight in objective.named_parameters():
        half = name.startswith("network.blocks") and name.endswith(("up.weight", "down.weight"))
        assert is_sharded(weight) == half, name
        assert local(weight).numel() == weight.numel() // (1 + half), name
    for _ in range(steps):
        objective.loss({"x": torch.ones(3, 4)})[0].backward()
    shards.make_whole()
    assert not objective.in_step
    parts = zip(objective.modules(), before.modules(), strict=True)
    assert all(type(part) is type(plain) and vars(part).keys() == vars(plain).keys() for part, plain in parts)
    for (name, weight), plain in zip(objective.named_parameters(), before.parameters(), strict=True):
        assert not is_sharded(weight)
        assert weight.shape == plain.shape
        if not name.startswith("network.blocks"):
            assert weight.equal(plain)
    objective.load_state_dict(before.state_dict())
    batch = {"x": torch.ones(3, 4)}
    assert objective.loss(batch)[0].equal(before.loss(batch)[0])
    copy.deepcopy(objective)  # which FSDP forbids


def test_a_checkpoint_says_how_it_was_divided(two: None, tmp_path: Path) -> None:
    """And one of whole weights is not taken for one of parts, nor the other way round."""
    objective, parallelism = Objective(), ParallelismConfig(None, 2)
    shards = shard(objective, parallelism, torch.device("cpu"))
    assert shards is not None
    optimizer, config = make_optimizer(objective, OptimConfig())
    average = ExponentialMovingAverage(objective, config.ema_decay)
    for weight in objective.parameters():
        weight.grad = torch.zeros_like(weight)
        local(weight.grad).fill_(1)
    optimizer.step()
    parts = objective, optimizer, average
    save_checkpoint(tmp_path, 3, *parts, {"loss": 1.0}, shards)
    kept = {name: tensor.clone() for name, tensor in trained_state(objective).items()}
    for tensor in trained_state(objective).values():
        tensor.zero_()
    assert load_checkpoint(tmp_path, *parts, 5, shards) == (3, {"loss": 1.0})
    assert all(tensor.equal(kept[name]) for name, tensor in trained_state(objective).items())
    with whole_state(objective):
        whole = objective.state_dict()
    assert {name: tensor.shape for name, tensor in whole.items()} == {
        name: tensor.shape for name, tensor in Objective().state_dict().items()
    }
    assert not any(map(is_sharded, whole.values()))
    with pytest.raises(
        UserError, match=r"made with parallelism.dp_replicate=1 parallelism.dp_shard=2, go on with that"
    ):
        load_checkpoint(tmp_path, *parts, 5)
    state = json.loads((tmp_path / "step_000003/state.json").read_text())
    del state["parallelism"]
    (tmp_path / "step_000003/state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"made with parallelism.dp_shard=1, go on with that"):
        load_checkpoint(tmp_path, *parts, 5, shards)
    assert {path.name for path in (tmp_path / "step_000003").iterdir()} == {
        "state.json",
        *(f"{part}{of}.safetensors" for part in ("model", "ema", "optimizer") for of in ("", "-shard-1-of-2")),
    }
