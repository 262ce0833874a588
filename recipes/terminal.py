"""What a command line owes its user: one line for an error, the exit code, signals, streams that close."""

from __future__ import annotations

import errno
import logging
import os
import re
import select
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from toolkit.base.errors import Paused, Terminated, UserError, one_line
from toolkit.base.processes import processes

MOST_MESSAGE = 4000  # characters
PATIENCE = 10.0  # seconds after a signal in which another one is not heard
ENDED_BY = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Inside, warnings and faults of objects that are given up are not shown, unless Python is asked for them (-W).

    They are for programmers; what a user must know has a line of our own. A video that is given up on a full disk, for
    one, prints a traceback after that line; LeRobot prints five where torchcodec finds no FFmpeg. Each process of a
    command asks for this.
    """
    if sys.warnoptions:
        yield
        return
    lerobot = logging.getLogger("lerobot")
    level = lerobot.level
    lerobot.setLevel(logging.ERROR)
    hooks = sys.unraisablehook, sys.excepthook  # Cython's destructors call both
    sys.unraisablehook, sys.excepthook = lambda _: None, lambda *_: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook, sys.excepthook = hooks
        lerobot.setLevel(level)


@contextmanager
def terminable() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise `Terminated`; in the main thread, where signals arrive.

    Those that follow within seconds do not: they would break into the cleaning up. What is raised, by Ctrl-C too, is
    raised again by the next progress bar that goes on all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (*ENDED_BY, signal.SIGINT)}

    last = float("-inf")

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal last
        interrupted = number == signal.SIGINT
        if interrupted or time.monotonic() - last >= PATIENCE:
            last = time.monotonic()
            error = KeyboardInterrupt() if interrupted else Terminated(number)
            if bars := sys.modules.get("toolkit.base.progress"):
                bars.remember(error)
            raise error

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def guarded(function: Callable[[], int]) -> int:
    """Call `function`; an error that the user can mend, or an interruption, becomes one line and an exit code."""
    try:
        return mendable(function)
    except KeyboardInterrupt as error:
        if bars := sys.modules.get("toolkit.base.progress"):
            bars.forget()
        if isinstance(error, Paused):
            say(f"paused{_how_to_go_on(error)}")
            return 0
        number = error.number if isinstance(error, Terminated) else signal.SIGINT
        said = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        return complain(said + _how_to_go_on(error), 128 + number)


def mendable(function: Callable[[], int]) -> int:
    """Call `function`; an error that the user can mend becomes one line and an exit code. Interruptions pass."""
    try:
        return function()
    except UserError as error:
        return complain(str(error), 2)
    except Exception as error:
        if (told := processes().failure()) is not None:  # who loses a connection is not the one who failed
            return told.code
        name = getattr(error, "filename", None)
        if isinstance(error, BrokenPipeError) and nobody_reads():
            return 128 + signal.SIGPIPE
        if _is_disk_full(error):
            return complain(f"disk full while writing {name or 'the output'}; free space{_how_to_go_on(error)}", 2)
        if _is_out_of_memory(error):
            advice = f"make batch_size, sizes or workers smaller{_how_to_go_on(error)}"
            return complain(f"out of memory ({_start(str(error))}); {advice}", 2)
        if isinstance(error, ModuleNotFoundError):
            return complain(f"no module '{error.name}': pip install 'lerobot_policy_vag[robot]'", 2)
        if isinstance(error, OSError) and name:
            return complain(f"{os.fsdecode(name)}: {error.strerror}", 2)
        processes().fail(1, str(error))
        raise


def end_together() -> None:
    """Leave the other processes of the command, if there are any.

    The first one that ends makes torchrun end the others, each of which is about to do so with the same exit code.
    """
    with suppress(UserError):  # which `guarded` has told
        if processes().size > 1:
            for number in ENDED_BY:
                signal.signal(number, signal.SIG_IGN)
            processes().leave()


def open_streams() -> None:
    """Give a process that was started with closed input or outputs some that lead nowhere.

    Else the next files that are opened take their numbers, and what a library prints ends up in these files.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def nobody_reads() -> bool:
    """True if the reader of an output has gone, as `head` does; what is still to be written is then dropped."""
    gone = [stream for stream in (sys.stdout, sys.stderr) if _is_broken(stream)]
    for stream in gone:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(gone)


def _is_broken(stream: TextIO) -> bool:
    try:
        stream.flush()
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # stderr keeps nothing that a flush would fail with
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        return True
    except (OSError, ValueError):  # a full disk, or closed: not what is asked here
        return False


def say(text: str) -> None:
    """Print, once; it is no fault if nobody reads it, and no letter that the terminal lacks stops it."""
    if not processes().is_main:
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    with suppress(BrokenPipeError):
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    nobody_reads()


def _is_out_of_memory(error: BaseException) -> bool:
    """True for a MemoryError, and for what torch raises in its place on a CPU or a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(re.search("allocate memory|out of memory", str(error)))


def _start(text: str) -> str:
    """The first line, if it is short."""
    line = (text.splitlines() or ["no more to be had"])[0]
    return line if len(line) <= 200 else f"{line[:200]} ..."


def _how_to_go_on(error: BaseException) -> str:
    notes = getattr(error, "__notes__", [])
    return f"; to go on: the same command with {notes[-1]}" if notes else ""


def _is_disk_full(error: BaseException | None) -> bool:
    """True if the error, or one that led to it, is a full disk; libraries wrap the system's error in their own."""
    seen, full = 0, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    while error is not None and seen < 20:
        if getattr(error, "errno", None) in full or any(os.strerror(code) in str(error) for code in full):
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


def complain(message: str, code: int) -> int:
    """Print an error in one line and return the exit code; those of the process that failed first count for all."""
    if loaded := sys.modules.get("toolkit.base.progress"):  # a command that has no bar yet need not wait for it
        loaded.close_progress()
    line = one_line(message)
    if len(line) > MOST_MESSAGE:
        line = f"{line[: MOST_MESSAGE - 600]} ... {line[-500:]}"
    with suppress(UserError):  # the environment names half a group of processes, which is the error to tell
        told = processes().fail(code, line)
        if told.rank != processes().rank:
            return told.code
    with suppress(BrokenPipeError):
        print(f"vag: error: {line}", file=sys.stderr, flush=True)
    return code
