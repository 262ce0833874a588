"""Ordered parallel work in processes that compute with one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from toolkit.errors import UserError
from toolkit.training.logging import progress

Item = TypeVar("Item")
Result = TypeVar("Result")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def parallel_map[Item, Result](
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, description: str
) -> Iterator[Result]:
    """Results of `function` over `items`, in order, as they become ready, with a progress bar.

    At most a few results per worker wait to be read, so memory stays flat. An exception of a worker is raised
    here; leaving the iteration early, or Ctrl-C, stops the workers. workers = 1 runs in this process.
    """
    bar = progress(description=description, total=len(items), unit="ep")
    if workers <= 1 or len(items) == 1:
        for item in items:
            yield function(item)
            bar.update()
        bar.close()
        return
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # spawned workers inherit it
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupt)
    waiting: deque = deque()
    queue = iter(items)
    try:
        for _ in range(4 * workers):
            if (item := next(queue, None)) is not None:
                waiting.append(pool.submit(function, item))
        while waiting:
            result = waiting.popleft().result()
            if (item := next(queue, None)) is not None:
                waiting.append(pool.submit(function, item))
            yield result
            bar.update()
    except BrokenProcessPool as error:
        raise UserError(f"{description}: a worker process died (out of memory?); try workers=1") from error
    finally:
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes if waiting else []:
            process.terminate()
        bar.close()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
