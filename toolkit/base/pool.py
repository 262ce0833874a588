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
from contextlib import contextmanager
from typing import TypeVar

from toolkit.base.errors import UserError
from toolkit.base.progress import progress

AHEAD = 12  # enough to keep the workers busy while their parent imports LeRobot

Item = TypeVar("Item")
Result = TypeVar("Result")

# LP_NUM_THREADS is that of Mesa's software renderer; its 0 means no thread beside the caller.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


def parallel_map[Item, Result](
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, description: str
) -> Iterator[Result]:
    """Results of `function` over `items`, in order, as they become ready, with a progress bar; see `parallel_feed`."""
    queue = iter(items)
    bar = progress(description=description, total=len(items), unit="ep")
    try:
        for _, result in parallel_feed(
            function, lambda: next(queue, None), workers=min(workers, len(items)), description=description
        ):
            yield result
            bar.update()
    finally:
        bar.close()


def parallel_feed[Item, Result](
    function: Callable[[Item], Result], feed: Callable[[], Item | None], *, workers: int, description: str
) -> Iterator[tuple[Item, Result]]:
    """Pairs of item and result, in the order in which `feed` gave the items, until it has none and none is at work.

    `feed` is asked before each result is waited for, so what it gives may depend on the results so far. At most
    `AHEAD` results per worker wait to be read, so memory stays flat. An exception of a worker is raised here; leaving
    the iteration early, or Ctrl-C, stops the workers, and so does the death of this process.
    workers = 1 runs in this process. Raises UserError if a worker dies.
    """
    if workers <= 1:
        while (item := feed()) is not None:
            yield item, function(item)
        return
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(THREADS)  # spawned workers inherit it
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)
    waiting: deque = deque()
    finished = False
    try:
        while True:
            while len(waiting) < AHEAD * workers and (item := feed()) is not None:
                with _uninterrupted():  # a worker that starts now inherits it
                    waiting.append((item, pool.submit(function, item)))
            if not waiting:
                break
            item, future = waiting.popleft()
            yield item, future.result()
        finished = True
    except BrokenProcessPool as error:
        raise UserError(f"{description}: a worker process died (out of memory?); try workers=1") from error
    finally:
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in [] if finished else processes:
            process.terminate()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # handlers belong to the main thread
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    die_with_parent()


def die_with_parent() -> None:
    """End this spawned process when its parent dies: a killed parent cannot stop its children."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
