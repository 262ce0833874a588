"""What the processes of one training exchange: first weights, gradients, metrics. With one process nothing happens.

Not DistributedDataParallel: what a step learns is normalised by the counts of its whole batch, parts of it may leave
weights without a gradient, and several of them may be accumulated; one sum at the end of the step is right for all.
Weights that are divided among the processes are exchanged by FSDP, see `fsdp`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from toolkit.training.fsdp import is_sharded
from toolkit.training.optim import undivided_state

MOST_VALUES = 1 << 24  # that are sent at once


def mixed_seed(text: str) -> int:
    """A seed for everything that `text` names, with no relation to the seeds of other texts."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def several_processes() -> bool:
    """True where there is anything to exchange."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def share_weights(module: nn.Module) -> None:
    """Give all processes the trained weights and the buffers that the main one has; frozen ones all have."""
    if several_processes():
        for tensor in undivided_state(module).values():
            sent = tensor.detach().to(_device(), copy=True).contiguous()
            distributed.broadcast(sent, 0)
            tensor.copy_(sent)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; None counts as 0, unless it is None everywhere.

    FSDP has done so with those of what is divided.
    """
    if not several_processes():
        return
    parameters = [parameter for parameter in parameters if not is_sharded(parameter)]
    reached = torch.tensor([float(p.grad is not None) for p in parameters], device=_device())
    distributed.all_reduce(reached)
    used = [parameter for parameter, count in zip(parameters, reached.tolist(), strict=True) if count]
    for bucket in _buckets(used):
        sent = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        distributed.all_reduce(sent)
        sent /= distributed.get_world_size()
        for parameter, gradient in zip(bucket, sent.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = gradient.view_as(parameter)


def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Shorten the gradient of all parameters to the norm `most`; returns what its norm was, the same in all processes.

    Each process knows the norm of its own parts of what is divided; the squares of all are added up.
    """
    parameters = list(parameters)
    divided = [parameter for parameter in parameters if is_sharded(parameter)]
    if not divided:
        return nn.utils.clip_grad_norm_(parameters, most)
    whole = [parameter for parameter in parameters if not is_sharded(parameter)]
    parts: list[Any] = [
        nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in (whole, divided)
    ]
    device = parameters[0].device  # the norm of no gradients is a number on the CPU
    norms = [(part.full_tensor() if is_sharded(part) else part).to(device) for part in parts]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    for kind in (whole, divided):
        nn.utils.clip_grads_with_norm_(kind, most, norm)
    return norm


def mean_over_processes(values: dict[str, Tensor | float], device: torch.device) -> dict[str, float]:
    """Numbers of the same names in all processes, averaged."""
    sent = torch.stack([torch.as_tensor(value, dtype=torch.float64).to(device) for value in values.values()])
    if several_processes():
        distributed.all_reduce(sent)
        sent /= distributed.get_world_size()
    return dict(zip(values, sent.tolist(), strict=True))


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters in order, in groups of one kind that are sent together."""
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        full = sum(p.numel() for p in bucket) + parameter.numel() > MOST_VALUES
        if bucket and (full or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _device() -> torch.device:
    """Where what is exchanged must lie."""
    if distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
