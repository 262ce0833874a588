"""The operator's keys, from the terminal and from the page: what is asked, what is answered, and the stop."""

from __future__ import annotations

import os
import queue
import select
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from recipes.terminal import say

WAIT = 0.1  # seconds from one look at the live picture to the next, while an answer is awaited
MOST_REASON = 200  # letters
Idle = Callable[[], None]


class Operator:
    """Keys arrive by `press`, from any thread. Context manager: inside, the terminal gives them one by one.

    While `stoppable`, any key stops; while something is asked, only the keys that are offered count.
    """

    def __init__(self) -> None:
        self.prompt, self.keys, self.typing = "", dict[str, str](), False  # what the page shows
        self._queue: queue.Queue[str] = queue.Queue()
        self._pressed = threading.Event()
        self._closed = threading.Event()

    # -------------------------------------------------------------------------------------------------- terminal

    @property
    def has_terminal(self) -> bool:
        with suppress(OSError, ValueError):
            return os.isatty(sys.stdin.fileno())
        return False

    def __enter__(self) -> Operator:
        self._thread: threading.Thread | None = None
        if self.has_terminal:
            self._descriptor = sys.stdin.fileno()
            self._before = termios.tcgetattr(self._descriptor)
            tty.setcbreak(self._descriptor)  # Ctrl-C stays what it is
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join(1)
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def _read(self) -> None:
        while not self._closed.is_set():
            if select.select([self._descriptor], [], [], WAIT)[0]:
                letters = os.read(self._descriptor, 64)
                if not letters:  # the terminal has gone
                    return
                for letter in letters.decode(errors="replace"):
                    self.press(letter)

    def press(self, key: str) -> None:
        """A key was pressed, or clicked on the page."""
        self._queue.put(key)
        self._pressed.set()

    # -------------------------------------------------------------------------------------------------- questions

    def ask(self, text: str, keys: Mapping[str, str], idle: Idle) -> str:
        """Wait for one of the keys, {key: what it means}, and return it; `idle` is called again and again meanwhile."""
        say(f"{text}  [{', '.join(f'{_named(key)} = {meaning}' for key, meaning in keys.items())}]")
        self._begin(text, dict(keys))
        while (key := self._next(idle).lower()) not in keys:
            pass
        self._begin("", {})
        return key

    def line(self, text: str, idle: Idle) -> str:
        """A typed line, of at least one letter."""
        say(f"{text}  [end with Enter]")
        self._begin(text, {}, typing=True)
        letters = ""
        while not ((key := self._next(idle)) in "\r\n" and letters.strip()):
            if key in "\x7f\b":
                letters = letters[:-1]
            elif key.isprintable() and len(letters) < MOST_REASON:
                letters += key
        self._begin("", {})
        return letters.strip()

    @contextmanager
    def stoppable(self, text: str) -> Iterator[threading.Event]:
        """Inside, any key sets the event."""
        self._begin(text, {"x": "stop (so does any key)"})
        try:
            yield self._pressed
        finally:
            self._begin("", {})

    def _begin(self, text: str, keys: dict[str, str], typing: bool = False) -> None:
        """Ask anew: keys that were pressed before are no answer."""
        while not self._queue.empty():
            with suppress(queue.Empty):
                self._queue.get_nowait()
        self._pressed.clear()
        self.prompt, self.keys, self.typing = text, keys, typing

    def _next(self, idle: Idle) -> str:
        while True:
            idle()
            with suppress(queue.Empty):
                return self._queue.get(timeout=WAIT)


def _named(key: str) -> str:
    return {" ": "space", "\n": "Enter"}.get(key, key)
