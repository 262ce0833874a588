"""Work in several processes of this machine: maps, whose results come in order, and graphs of what needs what.

Workers of a map compute with one thread each and serve many items; a node of a graph has a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, Protocol, TypeVar

from toolkit.base.errors import Terminated, UserError
from toolkit.base.progress import progress

PATIENCE = 20  # seconds that the processes of a graph have to clean up
AHEAD = 12  # enough to keep the workers busy while their parent imports LeRobot

_number = 0  # of this worker

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
    context = multiprocessing.get_context("spawn")
    numbers = context.Value("i", 0)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(numbers,))
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


def worker_number() -> int:
    """Of this process among the workers of its map, from 0 on; 0 in a process that is none."""
    return _number


def _start_worker(numbers: Any) -> None:
    global _number
    with numbers.get_lock():
        _number, numbers.value = numbers.value, numbers.value + 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    die_with_parent()


# -------------------------------------------------------------------------------------------------------------- graphs


class Node(Protocol):
    """What one process makes, by name, and what must have been made before it begins."""

    @property
    def names(self) -> set[str]: ...

    @property
    def needs(self) -> set[str]: ...


def run_graph[N: Node](
    work: Callable[[N, int], None], nodes: Sequence[N], done: set[str], limit: int, keep_going: bool
) -> tuple[list[N], list[N]]:
    """Run `work(node, line)` in processes, `limit` at a time; those that failed, and those that never began.

    A node begins once all that it needs is `done` or was made by others. line: from 0 to limit - 1, of what runs at the
    same time no two have the same. After a failure nothing more begins and what runs is ended, unless it is to
    `keep_going`. Ctrl-C, SIGTERM and the death of this process end all of them.
    """
    context, waiting = multiprocessing.get_context("spawn"), list(nodes)
    begun: list[tuple[N, Any, int]] = []
    try:
        while True:
            running = [(process.sentinel, line) for _, process, line in begun if process.is_alive()]
            if any(process.exitcode for _, process, _ in begun) and not keep_going:
                break  # no need to wait for the others
            made = done.union(*(node.names for node, process, _ in begun if process.exitcode == 0))
            ready = [node for node in waiting if node.needs <= made]
            for node in ready[: limit - len(running)]:
                line = min(set(range(limit)) - {line for _, line in running})
                process: Any = context.Process(target=_run_node, args=(work, node, line), name=min(node.names))
                process.start()
                begun.append((node, process, line))
                waiting.remove(node)
                running.append((process.sentinel, line))
            if not running:
                break
            connection.wait([sentinel for sentinel, _ in running])
        failed = [node for node, process, _ in begun if process.exitcode]
    except Terminated:
        raise  # this process alone was told
    except KeyboardInterrupt:
        _wait(process for _, process, _ in begun)  # they were interrupted too and clean up
        raise
    finally:
        for _, process, _ in begun:
            process.terminate()
        _wait(process for _, process, _ in begun)
        for _, process, _ in begun:
            process.kill()
            process.join()
    return failed, waiting


def _run_node[N: Node](work: Callable[[N, int], None], node: N, line: int) -> None:
    die_with_parent()
    work(node, line)


def _wait(processes: Iterable[Any]) -> None:
    end = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))


# ------------------------------------------------------------------------------------------- processes and their parent


def die_with_parent() -> None:
    """End this spawned process when its parent dies: a killed parent cannot stop its children."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
