"""A command that is asked to end: its record says so, and no process of it is left."""

import importlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from recipes import stages, terminal


def status(out: Path) -> str:
    path = out / "run.json"
    return json.loads(path.read_text())["status"] if path.exists() else "none"


def below(pid: int) -> set[int]:
    """All processes that a process has started, and those that these have."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found |= {child} | below(child)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(what: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def end_and_check(process: BaseProcess, number: int, complaints: Path) -> str:
    """Send a signal to the process alone, and see that all that it started is gone. Returns what it said last."""
    assert process.pid is not None
    family = below(process.pid)
    assert len(family) >= 2
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    wait_for(lambda: not any(map(alive, family)), 20)
    lines = complaints.read_text(errors="replace").splitlines()
    assert not any("Traceback" in line for line in lines)
    return next(line for line in reversed(lines) if "vag: error: " in line)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_and_its_workers(
    number: int, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    out, complaints = tmp_path / "run", tmp_path / "complaints"
    words = ["collect", "tasks=[plate-slide]", "episodes_per_task=10000", "num_steps=60", "workers=2", f"out={out}"]
    process = start(words, complaints)
    wait_for(lambda: status(out) == "running" and any((out / ".spool.vag-partial").glob("*.npz")))
    said = end_and_check(process, number, complaints)
    assert f"to go on: the same command with out={out} resume=true" in said
    assert status(out) == "interrupted"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_ends_all_stages_of_a_command_made_of_others(
    tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    sys.path.append(str(Path(__file__).parent))
    work = importlib.import_module("command_work").collect_side_by_side
    complaints = tmp_path / "complaints"
    process = multiprocessing.get_context("forkserver").Process(target=work, args=(tmp_path, complaints))
    process.start()
    wait_for(lambda: all(any((tmp_path / name / ".spool.vag-partial").glob("*.npz")) for name in "ab"))
    assert "ended by SIGTERM" in end_and_check(process, signal.SIGTERM, complaints)
    assert [status(tmp_path / name) for name in "ab"] == ["interrupted", "interrupted"]


def test_each_process_of_a_command_keeps_libraries_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torchcodec finds no FFmpeg, LeRobot logs five tracebacks; they hid the line that says what happened."""
    levels = []
    monkeypatch.setattr(stages, "_run_all", lambda *_: levels.append(logging.getLogger("lerobot").level) or 0)
    with pytest.raises(SystemExit):
        stages._run_chain(tmp_path, 1, stages.Chain([], set()), 0)
    assert levels == [logging.ERROR]


def test_a_second_signal_does_not_break_into_the_cleaning_up() -> None:
    before = signal.getsignal(signal.SIGTERM)
    cleaned = []

    def work() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)
        return 0

    with terminal.terminable():
        assert terminal.guarded(work) == 143
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    """As behind `head -1`: nothing is said, and nothing is left to be written at the end."""
    for words in (["--help"], ["train-generator", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [sys.executable, "-m", "recipes.cli", *words], stdout=writer, stderr=subprocess.PIPE, check=False
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, b"")


def test_a_reader_that_goes_away_in_the_middle_ends_the_command_quietly() -> None:
    code = "import sys; from recipes import terminal; sys.exit(terminal.guarded(lambda: print('x' * 1_000_000) or 0))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


def test_outputs_that_are_closed_or_that_nobody_reads(tmp_path: Path) -> None:
    """No traceback, and no file of the user's takes the place of an output."""
    program = (
        "import os, sys; from pathlib import Path; from recipes import cli, terminal\n"
        "def work(words):\n"
        "    with open('data', 'wb') as file:\n"
        "        os.write(2, b'a library prints this'); file.write(b'data')\n"
        "        for _ in range(3): print('x' * 100_000, file=sys.stderr, flush=True); terminal.say('done')\n"
        "    return 0\n"
        "cli.run_command = work; Path('code').write_text(str(cli.main([])))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for name, words, code in (
        ("closed", ">&- 2>&- <&-", "0"),
        ("no output", ">&-", "0"),
        ("no complaints", "2>&-", "0"),
        ("nobody", "2>&1 | head -c 1", "141"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "work.py").write_text(program)
        done = subprocess.run(
            ["sh", "-c", f'"{sys.executable}" work.py {words}'],
            cwd=tmp_path / name,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr + done.stdout
        assert (tmp_path / name / "data").read_text() == "data"
        assert (tmp_path / name / "code").read_text() == code


def test_an_interruption_that_a_library_loses_is_raised_by_the_next_bar(tmp_path: Path) -> None:
    """Python drops what a signal handler raises inside of a destructor."""
    program = (
        "import os, signal, sys, time; from recipes import terminal; from toolkit.base.progress import progress\n"
        "class Lost:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), int(sys.argv[1]))\n"
        "        for _ in range(100): pass\n"
        "def work():\n"
        "    lost = Lost()\n"
        "    del lost\n"
        "    for _ in progress(range(400), description='work'): time.sleep(0.01)\n"
        "    return 0\n"
        "with terminal.terminable(), terminal.quiet_libraries(): code = terminal.guarded(work)\n"
        "sys.exit(code)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    for number, said in ((signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")):
        command = [sys.executable, "-c", program, str(int(number))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.splitlines()[-1]) == (128 + number, f"vag: error: {said}"), done.stderr
