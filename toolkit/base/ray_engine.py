"""The same work on a Ray cluster, which decides where each item runs, and runs it again if its node is lost.

All nodes have the project installed at the same commit, and write to one directory that they share. The working
directory of this process must be there too, since paths of users may begin in it.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import sys
import threading
import traceback
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from toolkit.base import engine
from toolkit.base.engine import AHEAD, THREADS, Engine, Node, Resources
from toolkit.base.errors import UserError, first_line, one_line, warn
from toolkit.base.files import discard, write_text
from toolkit.base.progress import progress
from toolkit.base.provenance import git_sha

EXTRA = "pip install 'lerobot_policy_vag[cluster]'"
ANSWER = 5.0  # seconds that a cluster has to take a connection
CHECK_EVERY = 10.0  # seconds of waiting, after which is asked if there still is a node that can do it
# Settings of this process that its workers have too.
PASSED = ("RAY_ACCEL_", "HF_", "MUJOCO_", "PYOPENGL_", "VAG_", "PYTHONPATH", "TOKENIZERS_")
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
SECRETS = ("TOKEN", "KEY", "SECRET", "PASSWORD")  # which Ray would write into its logs; a machine has its own
PROBE = 180.0  # seconds that a node has to say what it sees
KEEP_GPUS = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"  # a worker takes a GPU by its number

_asked: list[str] = []  # the address that this process is connected by, as the user wrote it


class NeverBegunError(UserError):
    """A node of a graph that could not begin, since one that it needs was lost."""


class RayEngine(Engine):
    """See `Engine`. own: of each process; retries: times that an item is run again that was lost with its process."""

    remote = True

    def __init__(
        self,
        address: str | None,
        own: Resources,
        retries: int,
        shared: Path,
        resources: Callable[[Any], Resources] | None = None,
    ) -> None:
        self._ray, self._retries, self._resources = connected(address, retries), retries, resources
        self._where = f"engine.address={address}" if address else "engine.kind=ray"
        self._own = self._checked(own)
        self._check_nodes(shared)

    @property
    def workers(self) -> int:
        return max(1, sum(self._room(node, self._own) for node in self._nodes()))

    @property
    def threads(self) -> int:
        return max(1, int(self._own.cpus))

    def feed[Item, Result](
        self, function: Callable[[Item], Result], feed: Callable[[], Item | None], *, description: str
    ) -> Iterator[tuple[Item, Result]]:
        environment = {**_passed(), **THREADS, **({KEEP_GPUS: "1"} if self._own.gpus else {})}
        run = self._task(_call, self._own, environment, max_calls=0)
        send = self._ray.cloudpickle.dumps
        waiting: deque = deque()
        limit = AHEAD * self.workers
        try:
            while True:
                while len(waiting) < limit and (item := feed()) is not None:
                    waiting.append((item, run.remote(_process_state(), send((function, item)))))
                if not waiting:
                    break
                yield waiting[0][0], self._result(waiting[0][1], self._own, description)
                waiting.popleft()
        finally:
            self._stop([reference for _, reference in waiting])

    def graph[N: Node](
        self, work: Callable[[N, int], None], nodes: Sequence[N], done: set[str], keep_going: bool
    ) -> tuple[list[N], list[N]]:
        asked = [self._checked(self._resources(node) if self._resources else self._own) for node in nodes]
        send = self._ray.cloudpickle.dumps
        made: dict[str, Any] = {}
        references: list[Any] = []
        # In an order in which each comes after those that it needs, which Ray waits for.
        for node, own in sorted_by_needs(nodes, asked, done):
            run = self._task(_run, own, _passed(), max_calls=1)
            before = [made[name] for name in sorted(node.needs - done)]
            reference = run.remote(_process_state(), send((work, node)), *before)
            made |= dict.fromkeys(node.names, reference)
            references.append((node, own, reference))
        failed, left = list[N](), [node for node in nodes if node.names.isdisjoint(made)]
        waiting = {reference: (node, own) for node, own, reference in references}
        with progress(description="stages", total=len(references), unit="process") as bar:
            try:
                while waiting:
                    ready, _ = self._ray.wait(list(waiting), timeout=CHECK_EVERY)
                    if not ready:
                        self._check_left([own for _, own in waiting.values()], "stages")
                    for reference in ready:
                        node, own = waiting.pop(reference)
                        code = self._shown(reference, own, min(node.names))
                        bar.update()
                        if code != 0:
                            (left if code is None else failed).append(node)
                    if failed and not keep_going:
                        break
            finally:
                self._stop(list(waiting))
        return failed, left + [node for node, _ in waiting.values()]

    # --- what Ray is asked for ---

    def _task(self, function: Callable[..., Any], own: Resources, environment: dict[str, str], max_calls: int) -> Any:
        return self._ray.remote(
            num_cpus=own.cpus,
            num_gpus=own.gpus,
            max_calls=max_calls,
            max_retries=self._retries,
            runtime_env={"env_vars": environment},
        )(function)

    def _result(self, reference: Any, own: Resources, description: str) -> Any:
        """What an item gave; its exception as it was. Raises UserError if it was lost too often."""
        from ray import exceptions

        while not self._ray.wait([reference], timeout=CHECK_EVERY)[0]:
            self._check_left([own], description)
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, exceptions.RayError):  # of an item that this one needs
                raise NeverBegunError(f"{description}: what it needs was lost") from error
            raise error.cause from None
        except exceptions.RayError as error:
            raise UserError(
                f"{description}: {first_line(error)} Tries: {self._retries + 1}; see engine.retries"
            ) from error

    def _shown(self, reference: Any, own: Resources, name: str) -> int | None:
        """Print what a node of a graph said; its exit code, None if it did not begin."""
        try:
            code, said = self._result(reference, own, name)
        except NeverBegunError:
            code, said = None, ""
        except Exception as error:
            code, said = 1, f"vag: error: {one_line(str(error))}"
        if said:
            print(said, file=sys.stderr if code else sys.stdout, flush=True)
        return code

    def _stop(self, references: Sequence[Any]) -> None:
        for reference in references:
            self._ray.cancel(reference, force=True)

    # --- what the cluster has ---

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _room(self, node: dict[str, Any], own: Resources) -> int:
        """Processes for which a node has room."""
        has = node["Resources"]
        return int(min(has.get("CPU", 0) / own.cpus, has.get("GPU", 0) / own.gpus if own.gpus else float("inf")))

    def _checked(self, own: Resources) -> Resources:
        """With a number of GPUs. Raises UserError for more than any node has."""
        most = {
            key: max((node["Resources"].get(key, 0) for node in self._nodes()), default=0) for key in ("CPU", "GPU")
        }
        if own.gpus is None:
            own = Resources(own.cpus, float(most["GPU"] > 0))
        for name, key, asked in (("cpus", "CPU", own.cpus), ("gpus", "GPU", own.gpus)):
            if asked is not None and asked > most[key]:
                raise UserError(
                    f"engine.{name}={asked:g}: the largest node of this cluster has {most[key]:g} {key}s; ask for "
                    "less, or add a node that has them"
                )
        return own

    def _check_left(self, asked: Sequence[Resources], description: str) -> None:
        """Raise UserError where no node is left that could do what waits."""
        nodes = self._nodes()
        for own in asked:
            if not any(self._room(node, own) for node in nodes):
                raise UserError(
                    f"{description}: no node is left with {own.cpus:g} CPUs and {own.gpus:g} GPUs; add one, and "
                    "resume=true goes on"
                )

    def _check_nodes(self, shared: Path) -> None:
        """Raise UserError unless all nodes see a file that this one writes, and run the same commit."""
        from ray import exceptions
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        token = uuid.uuid4().hex
        path = shared.absolute() / f".vag-token-{token}"
        write_text(path, token)
        try:
            look = self._ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": _passed()})(_look)
            asked = [
                (node, look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)))
                for node in self._nodes()
            ]
            for node, reference in [(node, one.remote(str(path), os.getcwd())) for node, one in asked]:
                name = f"{self._where}: node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                try:
                    found, folder, commit = self._ray.get(reference, timeout=PROBE)
                except (exceptions.TaskUnschedulableError, exceptions.NodeDiedError, exceptions.WorkerCrashedError):
                    warn(f"{name} was lost; the others do the work")  # the cluster has only now heard of it
                    continue
                except Exception as error:
                    raise UserError(
                        f"{name} cannot run this project: {first_line(error)}; install it there as here"
                    ) from error
                if found != token:
                    raise UserError(f"{name} does not see {shared}; give an out= on a disk that all nodes share")
                if not folder:
                    raise UserError(f"{name} has no directory {os.getcwd()}; start the command in one that all share")
                if commit != (own := _commit()):
                    raise UserError(f"{name} runs commit {commit}, this machine {own}; bring both to the same")
        finally:
            discard(path)


def connected(address: str | None, retries: int) -> Any:
    """The module ray, connected. Raises UserError where it is not installed, or no cluster answers."""
    for name, value in {**QUIET, "RAY_task_oom_retries": str(retries)}.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError(f"engine.kind=ray: the package ray is not installed; {EXTRA}") from None
    if ray.is_initialized():  # by a map before, or by who calls this as a library
        if address not in (None, "auto", *_asked, here := ray.get_runtime_context().gcs_address):
            raise UserError(f"engine.address={address}: this process is connected to the cluster at {here}")
        return ray
    _check_answers(address)
    _say_less()
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise UserError(f"engine.address={address}: {one_line(str(error))[:300]}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # Ray has put its own in its place
    _asked[:] = [address] if address else []
    return ray


def _say_less() -> None:
    """What Ray says of lost processes and nodes: once, in a line on stderr, and not as the ends of its logs on stdout,
    where a record is printed."""
    from ray._private import worker

    said = set[str]()

    def first_sentences(data: Any, ignore_prefix: bool) -> None:
        for text in data["lines"]:
            sentence = text.strip().partition(". ")[0]
            if sentence not in said:
                said.add(sentence)
                warn(f"Ray: {sentence}")

    if hasattr(worker, "print_to_stdstream"):  # no public door leads there
        worker.print_to_stdstream = first_sentences


def _check_answers(address: str | None) -> None:
    """Raise UserError, at once and not after minutes, where nothing listens at host:port."""
    where = os.environ.get("RAY_ADDRESS") if address == "auto" else address
    if where in (None, "auto", "local"):
        return
    host, _, port = where.rpartition(":")
    if "://" in where or not host or not port.isdecimal():
        raise UserError(
            f"engine.address={where}: expected host:port of a Ray cluster that this machine is a node of, or auto"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"engine.address={where}: no Ray cluster answers ({first_line(error)}); start one with 'ray start --head', "
            "or leave the address out for one on this machine"
        ) from None


def sorted_by_needs[N: Node](
    nodes: Sequence[N], paired: Sequence[Resources], done: set[str]
) -> list[tuple[N, Resources]]:
    """Those that can be made, each after all that it needs."""
    waiting, made, found = list(zip(nodes, paired, strict=True)), set(done), list[tuple[N, Resources]]()
    while ready := [pair for pair in waiting if pair[0].needs <= made]:
        found += ready
        made = made.union(*(node.names for node, _ in ready))
        waiting = [pair for pair in waiting if pair not in ready]
    return found


def _passed() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(PASSED) and not any(word in name for word in SECRETS)
    }


def _process_state() -> tuple[str, list[str]]:
    return os.getcwd(), [path for path in sys.path if path]


# -------------------------------------------------------------------------------------------------- in a process of Ray


def _enter(state: tuple[str, list[str]]) -> None:
    """Be where the process is that asks, and import from where it does."""
    folder, paths = state
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"{socket.gethostname()}: no directory {folder}; start the command in one that all share"
        ) from error
    sys.path.extend(path for path in paths if path not in sys.path)


def _call(state: tuple[str, list[str]], sent: bytes) -> Any:
    """One item of a map, in a process that serves many."""
    import ray
    from ray import cloudpickle

    _enter(state)
    engine.set_worker_number(gpu_number(ray.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")))
    function, item = cloudpickle.loads(sent)
    return function(item)


def gpu_number(given: Sequence[Any], visible: str | None) -> int:
    """Of the first GPU that Ray gave, among those that this process sees; 0 without one."""
    if not given:
        return 0
    seen = [name.strip() for name in visible.split(",")] if visible else []
    name = str(given[0])
    return seen.index(name) if name in seen else int(float(name))


def _run(state: tuple[str, list[str]], sent: bytes, *before: tuple[int | None, str]) -> tuple[int | None, str]:
    """One node of a graph, in a process that ends with it: exit code, and what it printed, without bars.

    before: what those that it needs came to; if one failed it does not begin, and its code is None.
    """
    from ray import cloudpickle

    if any(code != 0 for code, _ in before):
        return None, ""
    code: Any = 0
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        try:
            _enter(state)
            work, node = cloudpickle.loads(sent)
            work(node, 0)
        except SystemExit as exit:
            code = exit.code
        except Exception:
            traceback.print_exc()
            code = 1
    lines = [line.rsplit("\r", 1)[-1] for line in said.getvalue().splitlines()]
    return int(code or 0) if isinstance(code, int | None) else 1, "\n".join(line for line in lines if line.strip())


def _look(path: str, folder: str) -> tuple[str | None, bool, str]:
    """What a token file holds here, whether a directory is here, and the commit of the project."""
    token = Path(path)
    return token.read_text() if token.is_file() else None, Path(folder).is_dir(), _commit()


def _commit() -> str:
    """Of the project; edits on a disk that all share come while others look, so they do not count."""
    return git_sha().removesuffix("-dirty")
