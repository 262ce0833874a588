"""Device, dtype, threads and seed, through accelerate."""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from torch import nn
from torch.utils.benchmark import Timer

from toolkit.base.errors import UserError
from toolkit.base.processes import processes
from toolkit.training.config import DEVICES, MOST_THREADS, PRECISIONS, TRACKERS
from toolkit.training.config import RuntimeConfig as RuntimeConfig

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def check_runtime(config: RuntimeConfig) -> None:
    """Raise UserError for a device that is not there, a precision it cannot have, or an impossible thread count."""
    if config.device not in DEVICES:
        raise UserError(f"runtime.device = '{config.device}': expected auto, cpu or cuda")
    if config.mixed_precision not in PRECISIONS:
        raise UserError(f"runtime.mixed_precision = '{config.mixed_precision}': expected no, bf16 or auto")
    if not 0 <= config.threads <= MOST_THREADS:
        raise UserError(f"runtime.threads = {config.threads}: expected at least 0 and at most {MOST_THREADS}")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.device = cuda: no CUDA device here; use runtime.device=cpu")
    if config.tracker not in TRACKERS:
        raise UserError(f"runtime.tracker = '{config.tracker}': expected one of {', '.join(TRACKERS)}")
    if config.tracker != "tensorboard" and config.tracker not in map(str, get_available_trackers()):
        raise UserError(
            f"runtime.tracker = {config.tracker}: its package is not installed; install it, or leave it out"
        )


def make_accelerator(config: RuntimeConfig, directory: Path | None = None) -> Accelerator:
    """An Accelerator on the device asked for, whose tracker writes into `directory`. Raises UserError."""
    check_runtime(config)
    set_threads(config)
    accelerator = Accelerator(
        # Without this word it takes no part in a group of processes on a machine without a GPU.
        cpu=config.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision=precision(config),
        log_with=config.tracker if directory else None,
        project_dir=directory,
    )
    if accelerator.num_processes != processes().size:
        raise UserError(
            f"WORLD_SIZE={processes().size}, but accelerate sees {accelerator.num_processes} processes; start them "
            "with torchrun or accelerate launch"
        )
    return accelerator


def take_gpus(number: int, sharers: int) -> None:
    """Let this process, which has used no GPU yet, see its share alone of those that it sees now.

    number: from 0 on, among the processes that share them; where there are fewer GPUs, one each, in turn.
    """
    if count := torch.cuda.device_count():
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        names = visible if len(visible) == count else list(map(str, range(count)))
        own = names[number % sharers :: sharers] if sharers < count else [names[number % count]]
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)


def name_gpu(number: int) -> None:
    """The GPU that this process, a worker without a group, computes on from now on; all stay visible."""
    if torch.cuda.is_available():
        os.environ["LOCAL_RANK"] = str(number % torch.cuda.device_count())


def precision(config: RuntimeConfig) -> str:
    """no or bf16."""
    if config.mixed_precision == "auto":
        return "bf16" if config.device != "cpu" and torch.cuda.is_available() else "no"
    return config.mixed_precision


def bf16_peak(device: torch.device | str, side: int = 8192) -> float:
    """FLOP/s of square bf16 matrix products on a device, measured: what a training step can hope for."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    timer = Timer("a @ b", globals={"a": a, "b": b}, num_threads=torch.get_num_threads())
    return 2 * side**3 / timer.blocked_autorange(min_run_time=0.2).median


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """Layers that follow each other in one list, alike in class and in the shapes of their weights.

    They take most of the time, and compiled code of one serves all of them.
    """

    def kind(layer: nn.Module) -> tuple[Any, ...]:
        return type(layer), *(weight.shape for weight in layer.parameters())

    found: list[nn.Module] = []
    for part in module.modules():  # from the outermost inwards
        inner = any(part is one for block in found for one in block.modules())
        if isinstance(part, (nn.ModuleList, nn.Sequential)) and not inner:
            layers = [layer for layer in part if next(layer.children(), None) is not None]  # not single operations
            found += [layer for layer in layers if sum(kind(layer) == kind(other) for other in layers) > 1]
    return list(dict.fromkeys(found))  # one that is used twice, once


@contextmanager
def forwards(instead: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Inside, each of these layers has another forward pass."""
    for layer, forward in instead:
        layer.forward = forward
    try:
        yield
    finally:
        for layer, _ in instead:
            del layer.forward


def set_threads(config: RuntimeConfig) -> None:
    """CPU threads, and memory: what tensors free is kept for the next ones."""
    if config.threads:
        torch.set_num_threads(config.threads)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back to the system, which must clear each page before it lends it again.

    A training step frees and takes the same hundreds of megabytes: up to a third of its time went there.
    """
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
