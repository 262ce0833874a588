"""What a training step takes, measured without a number: the generator on torch's `meta` device, its real loss, its
real backward pass.

Every operation runs for its shapes alone. Measured: parameters and their bytes, and the bytes that are alive at each
moment of forward and backward pass, as PyTorch's allocator would hand them out, blocks computed again included. Not
seen, and so not counted: the workspace of kernels, the accumulator of attention's backward pass on a GPU, gaps between
blocks of memory, the CUDA context. Mixed precision is that of a GPU, whose rules `GpuKernels` follows.

Shapes: as in `branches`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakIdKeyDictionary

from vag_core.checkpoint import unfilled
from vag_core.config import GeneratorConfig, PretrainedConfig
from vag_core.generator import Generator
from vag_core.sampling import velocities

ATTENTION = "scaled_dot_product_attention"
Formulas = Mapping[Any, Callable[..., int]]

BLOCK = 512  # bytes: PyTorch's allocator hands out multiples of it
# What autocast does on a GPU: torch's include/ATen/autocast_mode.h.
LOWER = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "prelu"),
    *(
        "addmm",
        "addmv",
        "addr",
        "addbmm",
        "baddbmm",
        "matmul",
        "__matmul__",
        "__rmatmul__",
        "einsum",
        "mm",
        "mv",
        "bmm",
    ),
    ATTENTION,
}
FLOAT32 = {
    *("exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "pow", "__pow__", "__rpow__", "softplus"),
    *("layer_norm", "group_norm", "cosine_similarity", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss"),
    *("binary_cross_entropy_with_logits", "dist", "cdist", "logsumexp", "prod", "softmax", "log_softmax", "cumprod"),
    *("cumsum", "norm", "sum", "interpolate"),
}


@dataclass(frozen=True)
class PassCost:
    """Of one forward and backward pass: FLOP, and bytes beside weights, their gradients and the batch.

    kept: alive when the backward pass begins; forward, backward: at the largest moment of each, blocks that are
    computed again included.
    """

    kept: int
    forward: int
    backward: int
    flop: int

    @property
    def peak(self) -> int:
        return max(self.forward, self.backward)

    @property
    def working(self) -> int:
        """At the largest moment, beside what is kept."""
        return self.peak - self.kept

    def further(self, larger: PassCost) -> int:
        """What a larger pass takes beyond this one, where both grow by the clip."""
        return max(larger.forward - self.forward, larger.backward - self.backward, 1)


@dataclass(frozen=True)
class WeightBytes:
    """Of a generator, in bytes. average: of the moving average, which holds buffers too; tokenizer: where frozen."""

    frozen: int
    trained: int
    tokenizer: int
    average: int


def planned_generator(config: GeneratorConfig, model: Any = None) -> Generator:
    """The generator on the `meta` device, in training. model: a `backbones.planned.PlannedModel` for one on a
    pretrained video model. Its tokenizer is frozen, as while the streams are trained. Raises ValueError as
    `Generator`."""
    with unfilled():
        generator = Generator(config, attach=False)
        if model is not None:
            generator.attach(model)
    if generator.tokenizer is not None:
        generator.tokenizer.requires_grad_(False)
    return generator.train()


def weight_bytes(generator: Generator) -> WeightBytes:
    """Bytes of the weights by what happens to them."""
    tokenizer = [] if generator.tokenizer is None else list(generator.tokenizer.parameters())
    own = {id(weight) for weight in tokenizer}
    weights = list(generator.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    buffers = [value for name, value in generator.state_dict(keep_vars=True).items() if not _is_weight(value)]
    return WeightBytes(
        frozen=_bytes([weight for weight in weights if not weight.requires_grad and id(weight) not in own]),
        trained=_bytes(trained),
        tokenizer=_bytes([weight for weight in tokenizer if not weight.requires_grad]),
        average=_bytes([*trained, *buffers]),
    )


def _is_weight(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def batch_bytes(batch: dict[str, Any]) -> int:
    """Of the tensors in a batch."""
    return _bytes([value for value in batch.values() if isinstance(value, Tensor)])


def planned_batch(
    config: GeneratorConfig,
    size: int,
    parts: int = 1,
    latents: bool = True,
    frames: bool = False,
    text: int = 0,
    tasks: int = 1,
) -> dict[str, Any]:
    """The first of `parts` parts of a training batch of `size` clips, as `objective.training_loss` takes it.

    latents: encoded beforehand; frames: with the pictures of the clips, which are there without latents. text: tokens
    of an instruction, where it is tokens; tasks: how many instructions there are, of which each is read once.
    """
    rows, steps = range(0, size, parts), config.action_horizon
    own, height, width = len(rows), *config.image_size

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    batch: dict[str, Any] = {
        "states": empty(own, steps + 1, config.state_dim),
        "actions": empty(own, steps, config.action_dim),
        "is_pad": empty(own, steps, dtype=torch.bool),
        "instruction": _instruction(config, own, text, tasks, empty),
    }
    if latents and config.action.makes_video:
        batch["latents"] = empty(own, *config.latent_shape)
    if frames or not latents:
        batch["frames"] = empty(own, config.num_frames, height, width, 3, dtype=torch.uint8)
    else:
        batch["image"] = empty(own, height, width, 3, dtype=torch.uint8)
    return batch if parts == 1 else {**batch, "whole": {"rows": rows, "size": size}}


def _instruction(config: GeneratorConfig, size: int, text: int, tasks: int, empty: Callable[..., Tensor]) -> Any:
    kind, width = config.instruction.kind, config.instruction.embedding_width
    if kind == "bytes":
        return [str(row % tasks) for row in range(size)]
    return empty(size, width) if kind == "embedding" else empty(size, text, width)


def measure_pass(generator: Generator, batch: dict[str, Any], half: bool, formulas: Formulas) -> PassCost:
    """Loss and gradient of a batch of `planned_batch`. half: bfloat16 by autocast, as on a GPU.

    Gradients are there from an earlier pass, to which this one's are added. formulas: see `Meter`.
    """
    trained = [weight for weight in generator.parameters() if weight.requires_grad]
    for weight in trained:
        weight.grad = torch.empty_like(weight)
    gradients = [weight.grad for weight in trained if weight.grad is not None]
    known = [*generator.parameters(), *generator.buffers(), *gradients]
    if has_checkpointing(generator.config):
        generator.video.network.transformer.enable_gradient_checkpointing(partial(_checkpoint, half))
    meter = Meter(formulas, [*known, *(value for value in batch.values() if isinstance(value, Tensor))])
    with meter:
        with GpuKernels(half, cached=True):
            loss, _ = generator.loss(batch)
        kept, forward = meter.now, meter.peak
        meter.peak = kept
        loss.float().backward()
    for weight in trained:
        weight.grad = None
    return PassCost(kept, forward, meter.peak, meter.flop)


@torch.no_grad()
def sampling_flop(generator: Generator, text: int, formulas: Formulas) -> tuple[int, int]:
    """Of one evaluation in the sampling of one pair in its default order, and of what is done once: conditions and the
    plan. text: tokens of an instruction, where it is tokens."""
    config = generator.config
    batch = planned_batch(config, 1, text=text)
    latents = torch.empty(1, *config.latent_shape, device="meta")
    picture = torch.empty(1, 3, *config.image_size, device="meta")
    trajectory = torch.empty(1, config.action_horizon, config.action_dim + config.state_dim, device="meta")
    state, told = batch["states"][:, 0], batch["instruction"]
    planned = generator.order == "actions_first"
    with GpuKernels(half=False, cached=False):
        with (before := Meter(formulas)):
            conditions = generator.encode_conditions(picture, latents[:, :, :1], state, told)
            if planned:
                generator.plan(conditions.action)
        with (once := Meter(formulas)):
            velocities(generator, (latents[:, :, 1:], trajectory), (0.5, 0.0 if planned else 0.5), conditions)
    return once.flop, before.flop


@torch.no_grad()
def decoding_flop(generator: Generator, formulas: Formulas) -> int:
    """Of the pictures of one pair."""
    if generator.tokenizer is None:
        return 0
    with GpuKernels(half=False, cached=False), Meter(formulas) as meter:
        generator.tokenizer.decode(torch.empty(1, *generator.config.latent_shape, device="meta"))
    return meter.flop


def evaluations(generator: Generator, steps: int) -> int:
    """How often the network is evaluated for one pair, in `steps` steps."""
    if generator.video is None:
        return 0 if generator.order == "actions_first" else steps
    clock = generator.video.clock(steps)
    return steps if clock is None else len(clock.times) - 1


class Meter(TorchDispatchMode):
    """Inside, counts FLOP and the bytes of all tensors that are alive, but for those that are `known`.

    now, peak: in bytes. formulas: of FLOP, by operation, as a `FlopCounterMode` has them; that mode itself keeps blocks
    alive that are computed again.
    """

    def __init__(self, formulas: Formulas, known: list[Tensor] | None = None) -> None:
        super().__init__()
        self.flop = self.now = self.peak = 0
        self.formulas, self._seen = formulas, WeakIdKeyDictionary()
        for tensor in known or ():
            self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (formula := self.formulas.get(func._overloadpacket)) is not None:
            self.flop += formula(*args, **kwargs, out_val=result)
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._seen:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._seen[storage] = True
        self.now += size
        self.peak = max(self.peak, self.now)
        finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


class GpuKernels(TorchFunctionMode):
    """Inside, attention is fused, as on any real device, where the `meta` device multiplies the whole matrix out; and
    with `half` operations have the precision that autocast to bfloat16 gives them on a GPU, of which the `meta` device
    knows nothing. cached: weights are cast once and kept, as autocast does in a forward pass."""

    def __init__(self, half: bool, cached: bool) -> None:
        super().__init__()
        self.half = half
        self._kept = dict[int, Tensor]() if cached else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if self.half and name in LOWER:
            args, kwargs = tree_map(self._lowered, (args, kwargs))
        elif self.half and name in FLOAT32 and kwargs.get("dtype") is None:
            args, kwargs = tree_map(_raised, (args, kwargs))
        return _attention(*args, **kwargs) if name == ATTENTION else func(*args, **kwargs)

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)
        if self._kept is not None:
            self._kept.clear()

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if self._kept is None or not (value.is_leaf and value.requires_grad):
            return value.to(torch.bfloat16)
        if id(value) not in self._kept:
            self._kept[id(value)] = value.to(torch.bfloat16)
        return self._kept[id(value)]


def _raised(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def _checkpoint(half: bool, block: Any, *inputs: Any) -> Any:
    """Run a block, and again in the backward pass, in which `GpuKernels` would not be seen otherwise."""
    again = GpuKernels(half, cached=False)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), again))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def has_checkpointing(config: GeneratorConfig) -> bool:
    """Whether blocks are computed again in the backward pass."""
    video = config.video
    return isinstance(video, PretrainedConfig) and video.gradient_checkpointing and config.action.makes_video
