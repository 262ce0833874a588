"""A pretrained network whose blocks are divided among processes: torch's FSDP2, `fully_shard`.

Each process keeps a part of every large matrix of a block, of its gradient, of the optimizer's moments and of the
average; a block is put together where it is computed, and taken apart again. What is outside of blocks, vectors and
small matrices stay whole in every process, and `parallel` averages their gradients.

FSDP divides matrices by their first dimension. Tensors that are divided are torch's DTensors; `local` is the part of
one that this process holds. torch's modules for this are imported where they are used: it takes half a second.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from toolkit.base.errors import UserError
from toolkit.base.processes import processes
from toolkit.training.config import ParallelismConfig

NAMED_BY = ("_no_split_modules", "_fsdp_wrap_modules")  # class names, in transformers and diffusers, and in LeRobot
PLUGINS = ("fsdp", "deepspeed", "megatron_lm", "parallelism_config")  # of `accelerate launch --use_...`
ENTRANCES = ("loss", "sample")  # methods through which an objective is run


@runtime_checkable
class OwnBlocks(Protocol):
    """An objective that knows more of its blocks than the networks inside it say, as policies do."""

    @property
    def block_classes(self) -> Sequence[str]:
        """Names of further classes of blocks."""

    @property
    def calls_layers(self) -> bool:
        """Whether it calls the layers inside of a block one by one, and never the block itself."""


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is divided among processes."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory; of one that is not divided, all of it."""
    return cast(Any, tensor.detach()).to_local() if is_sharded(tensor) else tensor


def like_parameter(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A tensor of this process's part of a parameter, divided as that is."""
    if not is_sharded(parameter):
        return tensor
    from torch.distributed.tensor import DTensor

    assert isinstance(parameter, DTensor)
    place, shape, stride = (parameter.device_mesh, parameter.placements), parameter.shape, parameter.stride()
    return DTensor.from_local(tensor.to(local(parameter).device), *place, shape=shape, stride=stride, run_check=False)


def group_sizes(config: ParallelismConfig) -> tuple[int, int]:
    """Groups that hold the model side by side, and processes of each. Raises UserError unless they make all, and as
    `check_plugins`."""
    check_plugins()
    size, count = processes().size, config.dp_shard
    groups = max(1, size // count) if config.dp_replicate is None else config.dp_replicate
    if groups * count != size:
        told = f"parallelism.dp_shard={count}"
        if config.dp_replicate is not None:
            told = f"parallelism.dp_replicate={groups} {told}"
        raise UserError(
            f"{told}: make {groups * count} processes, this command was started in {size}; start it with torchrun "
            f"--nproc_per_node {groups * count}, or give numbers whose product is {size}"
        )
    return groups, count


def check_plugins() -> None:
    """Raise UserError for a plugin that `accelerate launch` was asked for and that is not applied here.

    accelerate itself says nothing: on CPUs it takes its FSDP plugin and trains without it.
    """
    for plugin in PLUGINS:
        name = f"ACCELERATE_USE_{plugin.upper()}"
        if os.environ.get(name, "").lower() in ("true", "1", "yes"):
            raise UserError(
                f"${name} is set, as accelerate launch --use_{plugin} does, and is not applied here; leave it out: "
                "parallelism.dp_shard=N divides a pretrained network among N processes"
            )


def wrap_units(module: nn.Module) -> list[nn.Module]:
    """What is put together at once, in order: blocks, of the classes that the networks inside a module name.

    FSDP does so when a unit is called. Where the layers of blocks are called instead, each layer is a unit.
    """
    own = module if isinstance(module, OwnBlocks) else None
    blocks = named_blocks(module, frozenset(own.block_classes if own else ()))
    if own is None or not own.calls_layers:
        return blocks
    return [layer for block in blocks for layer in layers_of(block)]


def layers_of(block: nn.Module) -> list[nn.Module]:
    """The outermost modules inside of a block that have weights of their own."""
    if next(block.parameters(recurse=False), None) is not None:
        return [block]
    return [layer for child in block.children() for layer in layers_of(child)]


def named_blocks(module: nn.Module, names: frozenset[str] = frozenset()) -> list[nn.Module]:
    """The outermost modules of the classes that those around them name, or `names`."""
    names = names.union(*(getattr(module, key, None) or () for key in NAMED_BY))
    found: list[nn.Module] = []
    for child in module.children():
        found += [child] if type(child).__name__ in names else named_blocks(child, names)
    return list(dict.fromkeys(found))


def check_sharding(module: nn.Module, config: ParallelismConfig) -> None:
    """Raise UserError for numbers of processes that do not fit, or a module without blocks that can be divided."""
    _, count = group_sizes(config)
    if count > 1 and not divided(module, count):
        raise UserError(
            f"parallelism.dp_shard={count}: no network of this model names blocks to divide (_no_split_modules), or "
            "they are too small; models trained from scratch fit on one GPU, leave it out"
        )


def divided(module: nn.Module, count: int) -> dict[nn.Module, list[nn.Parameter]]:
    """The weights that are divided among so many processes, by the unit that they are in; units without any are left
    out.

    Matrices with a row for each process, of one type where they are trained, that of most: FSDP sums gradients of one
    type. What another module uses too, as a table of words, stays whole: FSDP would make two of it.
    """
    uses, found = _uses(module), dict[nn.Module, list[nn.Parameter]]()
    for unit in wrap_units(module):
        own = _uses(unit)
        matrices = [w for w in own if w.ndim > 1 and len(w) >= count and own[w] == uses[w]]
        numbers = Counter[torch.dtype]()
        for weight in matrices:
            numbers[weight.dtype] += weight.numel() if weight.requires_grad else 0
        most = max(numbers, key=lambda kind: numbers[kind], default=None)
        if kept := [weight for weight in matrices if not weight.requires_grad or weight.dtype == most]:
            found[unit] = kept
    return found


def _uses(module: nn.Module) -> Counter[nn.Parameter]:
    """How many modules inside have each parameter as their own, in order."""
    return Counter(weight for part in module.modules() for weight in part.parameters(recurse=False))


def shard(
    module: nn.Module, config: ParallelismConfig, device: torch.device, mixed_precision: str = "no"
) -> FullySharded | None:
    """Divide the blocks of a module, which is on the CPU, among processes and put their parts on the device, block by
    block; None where nothing is to be divided. All processes call it, with the same weights.

    mixed_precision: bf16 sends blocks as bfloat16; their parts, and the sums of gradients, stay as they are. Raises
    UserError as `check_sharding`.
    """
    check_sharding(module, config)
    groups, count = group_sizes(config)
    if count == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(device.type, (groups, count), mesh_dim_names=("dp_replicate", "dp_shard"))
    index, group = mesh.get_local_rank("dp_shard"), mesh.get_local_rank("dp_replicate")
    before = {part: _Plain.of(part) for part in module.modules()}
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    options: dict[str, Any] = {"mesh": mesh if groups > 1 else mesh["dp_shard"]}
    if mixed_precision == "bf16":
        options["mp_policy"] = half
    units = divided(module, count)
    for unit, weights in units.items():
        fully_shard(unit, ignored_params=set(unit.parameters()) - set(weights), **options)
    whole = {weight for weight in module.parameters() if not is_sharded(weight)}
    fully_shard(module, mesh=options["mesh"], ignored_params=whole)
    for name in ENTRANCES:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)
    for part, plain in before.items():
        plain.added = vars(part).keys() - plain.names
    set_in_step(module, True)
    made = FullySharded(module, list(units), before, groups, count, index, group)
    made.say()
    return made


@dataclass
class _Plain:
    """What a module was before `fully_shard`. added: names of attributes that it has since."""

    kind: type[nn.Module]
    names: set[str]
    hooks: dict[str, dict[int, Any]]
    added: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, module: nn.Module) -> _Plain:
        own = vars(module)
        hooks = {name: dict(value) for name, value in own.items() if "_hooks" in name and isinstance(value, dict)}
        return cls(type(module), set(own), hooks)

    def restore(self, module: nn.Module) -> None:
        module.__class__ = self.kind
        for name in self.added & vars(module).keys():
            delattr(module, name)
        for name, hooks in self.hooks.items():
            mine = vars(module)[name]
            mine.clear()
            mine.update(hooks)


@dataclass
class FullySharded:
    """A module whose blocks are divided, and how it becomes whole again.

    dp_replicate, dp_shard: groups, and processes of each. index: which part this process has; group: and in which group
    it is.
    """

    module: nn.Module
    units: list[nn.Module]
    before: dict[nn.Module, _Plain]
    dp_replicate: int
    dp_shard: int
    index: int
    group: int

    @property
    def sizes(self) -> dict[str, int]:
        """As a checkpoint says them."""
        return {"dp_replicate": self.dp_replicate, "dp_shard": self.dp_shard}

    def file(self, name: str) -> str:
        """The name of the file of this process's parts."""
        return f"{name}-shard-{self.index + 1}-of-{self.dp_shard}.safetensors"

    def say(self) -> None:
        """What is divided, in one line of the main process."""
        total = sum(weight.numel() for weight in self.module.parameters())
        shared = sum(weight.numel() for weight in self.module.parameters() if is_sharded(weight))
        if processes().is_main:
            beside = f", {self.dp_replicate} groups side by side" if self.dp_replicate > 1 else ""
            print(
                f"FSDP2: {len(self.units)} units with {shared / total:.1%} of {total:,} weights are divided among "
                f"{self.dp_shard} processes{beside}",
                flush=True,
            )

    def make_whole(self) -> None:
        """Take the division back: the main process gets whole weights on the CPU, one tensor at a time.

        All processes call it. In the others what was divided has its shape and no numbers, on the meta device.
        """
        made: dict[Tensor, nn.Parameter] = {}
        with torch.no_grad():
            for part in self.module.modules():
                for name, weight in list(part.named_parameters(recurse=False)):
                    if is_sharded(weight):
                        if weight not in made:
                            made[weight] = nn.Parameter(gathered(weight), weight.requires_grad)
                        part.register_parameter(name, made[weight])
        for part, plain in self.before.items():
            plain.restore(part)
        set_in_step(self.module, False)
        self.module._apply(lambda tensor: tensor if tensor.is_meta else tensor.cpu())


@contextmanager
def called_as_units(config: ParallelismConfig) -> Iterator[None]:
    """Inside, a network that computes with weights of a unit without calling it raises UserError, in one line."""
    try:
        yield
    except RuntimeError as error:
        if "mixed torch.Tensor and DTensor" not in str(error):
            raise
        raise UserError(
            f"parallelism.dp_shard={config.dp_shard}: this network computes with the weights of its blocks without "
            "calling them, so that they cannot be put together; leave it out"
        ) from error


def set_in_step(module: nn.Module, value: bool) -> None:
    """Tell a module that has to know that all processes must run its blocks in each pass, or that they need not."""
    if hasattr(module, "in_step"):
        vars(module)["in_step"] = value


def gathered(tensor: Tensor) -> Tensor:
    """A tensor that is divided, whole: on the CPU in the main process, on the meta device elsewhere. All call it."""
    whole = cast(Any, tensor.detach()).full_tensor()
    return whole.cpu() if processes().is_main else whole.to("meta")


@contextmanager
def whole_state(module: nn.Module) -> Iterator[None]:
    """Inside, the state dict of a module has whole tensors where its trained weights are divided, in the main process.

    All processes enter it. Others have tensors without numbers there. What is frozen is left as it is.
    """
    state = module.state_dict(keep_vars=True)
    whole = {name: gathered(weight) for name, weight in state.items() if is_sharded(weight) and weight.requires_grad}

    def replace(part: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        state.update({prefix + name: tensor for name, tensor in whole.items()})

    handle = module.register_state_dict_post_hook(replace)
    try:
        yield
    finally:
        handle.remove()
