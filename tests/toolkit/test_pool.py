"""Parallel work: order, flat memory, errors with their message, no process left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit.envs.pool import parallel_map
from toolkit.errors import UserError


def slow_square(number: int) -> int:
    time.sleep(0.05 if number % 2 else 0)
    return number**2


def refuse(number: int) -> int:
    if number == 3:
        raise UserError("item 3 is spoilt")
    return number


def threads(_: int) -> tuple[str | None, bool]:
    return os.environ.get("OMP_NUM_THREADS"), "torch" in sys.modules


def die(_: int) -> None:
    os._exit(1)


def mark(path: Path) -> int:
    path.touch()
    return os.getpid()


def note_and_sleep(path: Path) -> None:
    (path.parent / f"{path.name}.{os.getpid()}").touch()
    time.sleep(60)


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order(workers: int) -> None:
    results = parallel_map(slow_square, range(20), workers=workers, description="squares")
    assert list(results) == [number**2 for number in range(20)]
    assert list(parallel_map(slow_square, [], workers=workers, description="none")) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_reaches_the_caller_as_it_was(workers: int) -> None:
    results = parallel_map(refuse, range(8), workers=workers, description="spoilt")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="item 3 is spoilt"):
        next(results)


def test_workers_use_one_thread_and_the_parent_keeps_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert {count for count, _ in parallel_map(threads, range(4), workers=2, description="threads")} == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_dead_worker_is_reported() -> None:
    with pytest.raises(UserError, match="a worker process died"):
        list(parallel_map(die, range(4), workers=2, description="deadly"))


def test_unread_results_stop_the_work(tmp_path: Path) -> None:
    paths = [tmp_path / str(k) for k in range(60)]
    results = parallel_map(mark, paths, workers=2, description="unread")
    next(results)
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) <= 9  # four a worker ahead, and the one that was read
    results.close()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, stop: signal.Signals) -> None:
    script = tmp_path / "work.py"
    script.write_text(
        "from pathlib import Path\n"
        "from tests.toolkit.test_pool import note_and_sleep\n"
        "from toolkit.envs.pool import parallel_map\n"
        "if __name__ == '__main__':\n"
        f"    paths = [Path({str(tmp_path)!r}) / name for name in 'ab']\n"
        "    list(parallel_map(note_and_sleep, paths, workers=2, description=''))\n"
    )
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while len(started := [path for path in tmp_path.iterdir() if path.name[:2] in ("a.", "b.")]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.send_signal(stop)
    _, stderr = parent.communicate(timeout=10)
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
