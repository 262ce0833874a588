"""Work in several processes: maps, whose results come in order, and graphs of what needs what.

Two engines do it: the processes of this machine (here), and a Ray cluster (`ray_engine`). Workers of a map compute with
one thread each and serve many items; a node of a graph has a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, fields
from multiprocessing import connection
from pathlib import Path
from typing import Any, Protocol, TypeVar

from toolkit.base.errors import Terminated, UserError
from toolkit.base.options import option
from toolkit.base.progress import progress

KINDS = ("local", "ray")
MOST_CPUS, MOST_GPUS = 1024, 64
PATIENCE = 20  # seconds that the processes of a graph have to clean up
AHEAD = 12  # items of each worker in work or ready: enough to keep it busy while its parent imports LeRobot

_number = 0  # of this worker

Item = TypeVar("Item")
Result = TypeVar("Result")

# LP_NUM_THREADS is that of Mesa's software renderer; its 0 means no thread beside the caller.
THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}


# ------------------------------------------------------------------------------------------------------- the interface


@dataclass
class EngineConfig:
    """Which engine a command uses; see docs/scale.md."""

    kind: str = option(
        "local", "local = processes of this machine; ray = a Ray cluster (extra `cluster`)", choices=KINDS
    )
    address: str | None = option(
        None, "of the Ray cluster, host:port, or auto for the one that this machine is in; null = one started here"
    )
    cpus: float = option(1.0, "CPU cores that Ray sets aside for each process", above=0, most=MOST_CPUS)
    gpus: float | None = option(
        None,
        "GPUs that Ray sets aside for each process, such as 0.5; null = one where it computes",
        least=0,
        most=MOST_GPUS,
    )
    retries: int = option(3, "times that Ray runs an item again whose process or node was lost", least=0, most=1000)


@dataclass(frozen=True)
class Resources:
    """CPU cores and GPUs of one process; gpus None: one if there are any."""

    cpus: float = 1.0
    gpus: float | None = 0.0


class Node(Protocol):
    """What one process makes, by name, and what must have been made before it begins."""

    @property
    def names(self) -> set[str]: ...

    @property
    def needs(self) -> set[str]: ...


class Engine(ABC):
    """Runs functions in other processes. What they return must be picklable, and they be importable by name."""

    remote = False  # whether its processes may be on other machines, and may be lost one by one

    @property
    @abstractmethod
    def workers(self) -> int:
        """How many items are in work side by side."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """How many a worker has to itself that is not content with one."""

    @abstractmethod
    def feed[Item, Result](
        self, function: Callable[[Item], Result], feed: Callable[[], Item | None], *, description: str
    ) -> Iterator[tuple[Item, Result]]:
        """Pairs of item and result, in the order in which `feed` gave the items, until it has none and none is at work.

        `feed` is asked before each result is waited for, so what it gives may depend on the results so far. At most
        `AHEAD` results per worker wait to be read, so memory stays flat. An exception of a worker is raised here;
        leaving the iteration early, or Ctrl-C, stops the workers, and so does the death of this process.
        Raises UserError if a worker dies, as often as the engine tries.
        """

    @abstractmethod
    def graph[N: Node](
        self, work: Callable[[N, int], None], nodes: Sequence[N], done: set[str], keep_going: bool
    ) -> tuple[list[N], list[N]]:
        """Run `work(node, line)` for all nodes in processes of their own; those that failed, those that never began.

        A node begins once all that it needs is `done` or was made by others; it fails by an exception, or by
        SystemExit with another code than 0. line: where its progress is shown; of what runs at the same time on this
        machine no two have the same. After a failure nothing more begins and what runs is ended, unless it is to
        `keep_going`. Ctrl-C, SIGTERM and the death of this process end all of them.
        """

    def map[Item, Result](
        self, function: Callable[[Item], Result], items: Sequence[Item], *, description: str
    ) -> Iterator[Result]:
        """Results of `function` over `items`, in order, as they become ready, with a progress bar; see `feed`."""
        queue = iter(items)
        with progress(description=description, total=len(items), unit="ep") as bar:
            for _, result in self.feed(function, lambda: next(queue, None), description=description):
                yield result
                bar.update()


def open_engine(
    config: EngineConfig,
    shared: Path,
    workers: int = 1,
    gpus: float | None = 0.0,
    resources: Callable[[Any], Resources] | None = None,
) -> Engine:
    """The engine that a config asks for.

    shared: directory that all processes write to. workers: of this machine; on a cluster its cores decide. gpus: of
    each process on a cluster if the config does not say, None = one where there are any. resources: of each node of a
    graph on a cluster; None = those of the config.
    Raises UserError for a cluster that does not answer, lacks what is asked for, or does not share the directory.
    """
    check_local(config)
    if config.kind == "local":
        return LocalEngine(workers)
    from toolkit.base.ray_engine import RayEngine

    own = Resources(config.cpus, gpus if config.gpus is None else config.gpus)
    return RayEngine(config.address, own, config.retries, shared, resources)


def check_local(config: EngineConfig) -> None:
    """Raise UserError for an option that the processes of this machine would not heed."""
    default = type(config)()
    for field in fields(config) if config.kind == "local" else ():
        if getattr(config, field.name) != getattr(default, field.name):
            raise UserError(f"engine.{field.name}: is for a cluster; give engine.kind=ray too, or leave it out")


def worker_number() -> int:
    """Of this process among the workers of its map, from 0 on, by which it takes its GPU; 0 in one that is none."""
    return _number


def set_worker_number(number: int) -> None:
    global _number
    _number = number


# ---------------------------------------------------------------------------------------- the processes of this machine


class LocalEngine(Engine):
    """Processes of this machine. workers: 1 = this process itself for maps; a graph runs so many nodes side by side."""

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers

    @property
    def workers(self) -> int:
        return self._workers

    @property
    def threads(self) -> int:
        return max(1, len(os.sched_getaffinity(0)) // self.workers)

    def map[Item, Result](
        self, function: Callable[[Item], Result], items: Sequence[Item], *, description: str
    ) -> Iterator[Result]:
        few = LocalEngine(min(self.workers, len(items)))
        return Engine.map(few, function, items, description=description)

    def feed[Item, Result](
        self, function: Callable[[Item], Result], feed: Callable[[], Item | None], *, description: str
    ) -> Iterator[tuple[Item, Result]]:
        if self.workers <= 1:
            while (item := feed()) is not None:
                yield item, function(item)
            return
        before = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(THREADS)  # spawned workers inherit it
        context = multiprocessing.get_context("spawn")
        numbers = context.Value("i", 0)
        pool = ProcessPoolExecutor(self.workers, context, initializer=_start_worker, initargs=(numbers,))
        waiting: deque = deque()
        finished = False
        try:
            while True:
                while len(waiting) < AHEAD * self.workers and (item := feed()) is not None:
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

    def graph[N: Node](
        self, work: Callable[[N, int], None], nodes: Sequence[N], done: set[str], keep_going: bool
    ) -> tuple[list[N], list[N]]:
        context, waiting = multiprocessing.get_context("spawn"), list(nodes)
        begun: list[tuple[N, Any, int]] = []
        try:
            while True:
                running = [(process.sentinel, line) for _, process, line in begun if process.is_alive()]
                if any(process.exitcode for _, process, _ in begun) and not keep_going:
                    break  # no need to wait for the others
                made = done.union(*(node.names for node, process, _ in begun if process.exitcode == 0))
                ready = [node for node in waiting if node.needs <= made]
                for node in ready[: self.workers - len(running)]:
                    line = min(set(range(self.workers)) - {line for _, line in running})
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


def _start_worker(numbers: Any) -> None:
    global _number
    with numbers.get_lock():
        _number, numbers.value = numbers.value, numbers.value + 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    die_with_parent()


def _run_node[N: Node](work: Callable[[N, int], None], node: N, line: int) -> None:
    die_with_parent()
    work(node, line)


def _wait(processes: Iterable[Any]) -> None:
    end = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))


@contextmanager
def one_process(description: str, prepare: Callable[[], Any] | None = None) -> Iterator[Callable[..., Any]]:
    """A function that calls others in a process of its own, one after the other; it ends with the block, also in the
    middle of a call.

    prepare: called there first. The function raises UserError if the process dies.
    """
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context, initializer=_start_alone, initargs=(prepare,))

    def call[**P, T](function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        try:
            return pool.submit(function, *arguments, **options).result()
        except BrokenProcessPool as error:
            raise UserError(f"{description}: a worker process died (out of memory?)") from error

    try:
        yield call
    finally:
        processes = list((getattr(pool, "_processes", None) or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


def _start_alone(prepare: Callable[[], Any] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops it
    die_with_parent()
    if prepare is not None:
        prepare()


# ------------------------------------------------------------------------------------------- processes and their parent


def die_with_parent() -> None:
    """End this spawned process when its parent dies: a killed parent cannot stop its children."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
