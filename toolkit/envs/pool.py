"""Ordered parallel work in processes that compute with one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

from toolkit.errors import UserError
from toolkit.training.logging import progress

Item = TypeVar("Item")
Result = TypeVar("Result")

# LP_NUM_THREADS is that of Mesa's software renderer; its 0 means no thread beside the caller.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


def parallel_map[Item, Result](
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, description: str
) -> Iterator[Result]:
    """Results of `function` over `items`, in order, as they become ready, with a progress bar.

    At most a few results per worker wait to be read, so memory stays flat. An exception of a worker is raised
    here; leaving the iteration early, or Ctrl-C, stops the workers, and so does the death of this process.
    workers = 1 runs in this process. Raises UserError if a worker dies.
    """
    bar = progress(description=description, total=len(items), unit="ep")
    if workers <= 1 or len(items) == 1:
        for item in items:
            yield function(item)
            bar.update()
        bar.close()
        return
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(THREADS)  # spawned workers inherit it
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    waiting: deque = deque()
    finished = False
    queue = iter(items)
    try:
        waiting.extend(pool.submit(function, item) for item in islice(queue, 4 * workers))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(queue, 1))
            yield result
            bar.update()
        finished = True
    except BrokenProcessPool as error:
        raise UserError(f"{description}: a worker process died (out of memory?); try workers=1") from error
    finally:
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in [] if finished else processes:
            process.terminate()
        bar.close()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A killed parent cannot stop its workers, and they would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
