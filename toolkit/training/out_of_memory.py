"""A GPU whose memory was too small: one line, with a batch that should fit by what was measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from toolkit.base.errors import UserError
from toolkit.training.fsdp import local

SPARE = 0.95  # of what is free: gaps between blocks of memory take the rest
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
ELSE = (
    "runtime.mixed_precision=bf16, fewer frames, smaller pictures, a larger GPU; for a pretrained video model "
    "generator.video.gradient_checkpointing=true and generator.video.train=lora"
)


@dataclass(frozen=True)
class Memory:
    """Of a GPU, in bytes, when it was full. total: of the card; foreign: of other processes and the driver; before: in
    use before the pass; reached: in it, with what was asked for in vain; pending: what the first step adds for good."""

    total: int
    before: int
    reached: int
    foreign: int = 0
    pending: int = 0

    def most(self, clips: int) -> int:
        """Clips of a pass that should fit where `clips` did not: what was measured allows them, and they are at most
        half, since the pass was not at its largest when it failed. 0 for none."""
        room = SPARE * (self.total - self.foreign) - self.before - self.pending
        return max(0, min(clips // 2, int(room * clips // max(1, self.reached - self.before))))


def divided(clips: int, most: int) -> tuple[int, int]:
    """Batch size and accumulation with the product `clips`, the largest batch of at most `most` that divides it."""
    batch = next(size for size in range(max(1, min(most, clips)), 0, -1) if clips % size == 0)
    return batch, clips // batch


def training_advice(memory: Memory, batch_size: int, accumulation: int, group: str = "optim", helps: str = ELSE) -> str:
    """The line of a step, or of a measurement in training, that did not fit; group: of its options; helps: what else
    does."""
    asked = f"{group}.batch_size={batch_size} {group}.gradient_accumulation={accumulation}"
    if not (most := memory.most(batch_size)):
        return f"{full(memory, asked)}, which one clip does not fit into; what helps: {helps}"
    batch, parts = divided(batch_size * accumulation, most)
    fits = f"{group}.batch_size={batch} {group}.gradient_accumulation={parts}"
    return f"{full(memory, asked)}; {fits} should fit, and learns the same. What else helps: {helps}"


def sampling_advice(memory: Memory, size: int) -> str:
    """The line of `batch_size` samples that did not fit together."""
    if not (most := memory.most(size)):
        return f"{full(memory, f'batch_size={size}')}, which one sample does not fit into: take a larger GPU"
    return f"{full(memory, f'batch_size={size}')}; batch_size={most} should fit"


def full(memory: Memory, asked: str) -> str:
    """What was asked for, and what there is."""
    total, before, reached = (f"{number / 2**30:.1f}" for number in (memory.total, memory.before, memory.reached))
    return f"{asked}: out of memory, {reached} GiB with {before} before the pass began, of the GPU's {total}"


@contextmanager
def one_line_if_full(
    device: torch.device | str,
    advice: Callable[[Memory], str],
    optimizer: torch.optim.Optimizer | None = None,
    after: Callable[[], str] = str,
) -> Iterator[None]:
    """Inside, a GPU that is full raises UserError with the line of `advice`, and that of `after` at its end."""
    device = torch.device(device)
    before = begin(device)
    pending = 0 if optimizer is None else pending_bytes(optimizer)
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(advice(measured(device, before, pending, str(error))) + after()) from error


def begin(device: torch.device) -> int:
    """Bytes in use as a pass begins, whose peak is measured from now on; 0 without a GPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def measured(device: torch.device, before: int, pending: int, error: str) -> Memory:
    """The memory of a GPU after an error that says what was asked for in vain."""
    free, total = torch.cuda.mem_get_info(device)
    found = re.search(r"Tried to allocate ([\d.]+) ([KMG]iB)", error)
    wanted = int(float(found[1]) * UNITS[found[2]]) if found else 0
    reached = torch.cuda.max_memory_allocated(device) + wanted
    return Memory(total, before, reached, max(0, total - free - torch.cuda.memory_reserved(device)), pending)


def pending_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of gradients, and of the moments of AdamW before its first step."""
    weights = [local(weight) for group in optimizer.param_groups for weight in group["params"]]
    return sum(weight.numel() * weight.element_size() for weight in weights) * (1 if optimizer.state else 3)
