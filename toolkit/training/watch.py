"""Looks at the averaged weights while they are trained; the training is bit for bit what it is without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Protocol

import torch
from torch import nn

from toolkit.base.processes import processes
from toolkit.base.randomness import isolated_randomness
from toolkit.training.logging import ScalarLog
from toolkit.training.optim import ExponentialMovingAverage, trained_state


class Watch(Protocol):
    """What wants to see the averaged weights now and then. A checkpoint of the same step is always on the disk first,
    so that nothing is seen of a step that training might fall behind again."""

    def due(self, step: int) -> bool:
        """If it wants to after this step, 1 or more: the same in all processes."""

    def resume(self, step: int) -> bool:
        """Forget what was seen after this step, from which training goes on; True if it is itself still to be seen."""

    def look(self, log: ScalarLog, step: int) -> None:
        """See the objective, which holds the averaged weights and is in evaluation mode.

        In the main process alone, unless weights are divided among processes: then in all, which must run the same.
        """


def let_look(
    watch: Watch | None,
    log: ScalarLog,
    objective: nn.Module,
    average: ExponentialMovingAverage,
    step: int,
    resumed: bool = False,
    everywhere: bool = False,
) -> float:
    """Show the averaged weights of a step where they are asked for; the other processes wait, however long it takes.

    resumed: training goes on from here, and they may have been seen before. everywhere: all processes look. Returns the
    seconds that it took.
    """
    started = time.perf_counter()
    if watch is None:
        return 0.0
    missing = watch.resume(step) if resumed else True
    if step == 0 or not watch.due(step):
        return 0.0
    if missing and (everywhere or log.accelerator.is_main_process):
        # Blocks that are divided are put together in the precision of training.
        precision = log.accelerator.autocast() if everywhere else nullcontext()
        with averaged(objective, average), isolated_randomness(), precision:
            watch.look(log, step)
    processes().wait()
    return time.perf_counter() - started


@contextmanager
def averaged(objective: nn.Module, average: ExponentialMovingAverage) -> Iterator[None]:
    """Inside, a module holds its averaged weights and evaluates; after it, what it had before, bit for bit.

    The two change places, one tensor at a time, so it takes no memory.
    """
    modes = [(module, module.training) for module in objective.modules()]
    _exchange(objective, average, list(average.shadow))
    objective.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        _exchange(objective, average, list(average.shadow)[::-1])  # some names may stand for the same tensor


@torch.no_grad()
def _exchange(objective: nn.Module, average: ExponentialMovingAverage, names: list[str]) -> None:
    weights = trained_state(objective)
    for name in names:
        kept = weights[name].clone()
        weights[name].copy_(average.shadow[name])
        average.shadow[name].copy_(kept)
