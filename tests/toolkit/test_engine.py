"""Parallel work: order, flat memory, errors with their message, no process left behind."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from toolkit.base.engine import AHEAD, LocalEngine, worker_number
from toolkit.base.errors import UserError

HERE = Path(__file__).parent


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HERE)
    return importlib.import_module("engine_work")


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(work: ModuleType, workers: int) -> None:
    results = LocalEngine(workers).map(work.slow_square, range(20), description="squares")
    assert list(results) == [number**2 for number in range(20)]
    assert list(LocalEngine(workers).map(work.slow_square, [], description="none")) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_the_feed_may_depend_on_results(work: ModuleType, workers: int) -> None:
    missing = [3, 2, 1]  # try each number until its square is even: 3 and 1 go on with the next one

    def feed() -> int | None:
        return missing.pop(0) if missing else None

    seen = []
    for number, square in LocalEngine(workers).feed(work.slow_square, feed, description="even"):
        seen.append((number, square))
        if square % 2:
            missing.append(number + 1)
    assert sorted(seen) == [(1, 1), (2, 4), (2, 4), (3, 9), (4, 16)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_reaches_the_caller_as_it_was(work: ModuleType, workers: int) -> None:
    results = LocalEngine(workers).map(work.refuse, range(8), description="spoilt")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="item 3 is spoilt"):
        next(results)


def test_workers_use_one_thread_and_the_parent_keeps_its_setting(
    work: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert set(LocalEngine(2).map(work.threads, range(4), description="threads")) == {("1", False)}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_each_worker_has_a_number_of_its_own(work: ModuleType) -> None:
    """By which it takes a GPU of its own."""
    assert set(LocalEngine(2).map(work.number, range(40), description="numbers")) == {0, 1}
    assert worker_number() == 0


def test_a_dead_worker_is_reported(work: ModuleType) -> None:
    with pytest.raises(UserError, match="a worker process died"):
        list(LocalEngine(2).map(work.die, range(4), description="deadly"))


def test_unread_results_stop_the_work(work: ModuleType, tmp_path: Path) -> None:
    paths = [tmp_path / str(k) for k in range(60)]
    results = LocalEngine(2).map(work.mark, paths, description="unread")
    next(results)
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) <= 2 * AHEAD + 1  # and the one that was read
    results.close()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, stop: signal.Signals) -> None:
    script = tmp_path / "work.py"
    script.write_text(
        "from pathlib import Path\n"
        "from engine_work import note_and_sleep\n"
        "from toolkit.base.engine import LocalEngine\n"
        "if __name__ == '__main__':\n"
        f"    paths = [Path({str(tmp_path)!r}) / name for name in 'ab']\n"
        "    list(LocalEngine(2).map(note_and_sleep, paths, description=''))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parents[1])))}
    parent = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(started := [path for path in tmp_path.iterdir() if path.name[:2] in ("a.", "b.")]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.send_signal(stop)
    _, stderr = parent.communicate(timeout=60)
    workers = [int(path.suffix[1:]) for path in started]
    while any(_alive(worker) for worker in workers):
        assert time.monotonic() < deadline + 10
        time.sleep(0.1)
    if stop == signal.SIGINT:
        assert stderr.decode().count("Traceback") == 1  # the caller's own KeyboardInterrupt


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
