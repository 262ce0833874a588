"""An audit hook: what a process does outside the folders that it was given."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTS = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto", "os.kill"),
    *("ctypes.dlopen", "marshal.loads", "pickle.find_class", "webbrowser.open", "ftplib.connect", "urllib.Request"),
)
CHANGES = (
    *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"),
    *("os.chown", "os.utime", "os.setxattr", "shutil.rmtree", "shutil.move"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Modules that a good file too may lead to, which no target needs as it is warmed up.
MAY_IMPORT: tuple[str, ...] = ("torchcodec",)  # tried anew, since it does not load without FFmpeg


class Watch:
    """Records events between `begin` and `end`."""

    def __init__(self) -> None:
        self.found: list[str] | None = None
        self.allowed: tuple[str, ...] = ()
        sys.addaudithook(self._listen)

    @contextmanager
    def watching(self, *allowed: Path) -> Iterator[list[str]]:
        """Inside, events other than changes below the `allowed` folders; each as a line."""
        self.allowed = tuple(os.path.realpath(path) for path in allowed)
        found: list[str] = []
        self.found = found
        try:
            yield found
        finally:
            self.found = None

    def _listen(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.found is None:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and not self._allows(path):
                self._add(f"open for writing {path}")
        elif event == "import":
            name = arguments[0]
            if name.partition(".")[0] not in MAY_IMPORT and name not in MAY_IMPORT:
                self._add(f"import {name}")
        elif event in STARTS and not is_of_an_import(event, arguments):
            self._add(f"{event} {str(arguments)[:150]}")
        elif event in CHANGES:
            for path in paths_of(event, arguments):
                if not self._allows(path):
                    self._add(f"{event} {path}")

    def _allows(self, path: Any) -> bool:
        if isinstance(path, int):
            return True  # a file that is open
        try:
            text = os.path.abspath(os.fsdecode(path))
            real = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
        except (ValueError, TypeError):
            return True  # no name that a file can have
        return text == os.devnull or any(real == root or real.startswith(root + "/") for root in self.allowed)

    def _add(self, line: str) -> None:
        if self.found is not None and len(self.found) < 20:
            self.found.append(line)


def paths_of(event: str, arguments: tuple[Any, ...]) -> list[Any]:
    """The names that a change is about; those that are relative to an open folder, which comes last, with it."""
    place = arguments[-1] if event in ("os.remove", "os.rmdir", "os.mkdir", "os.rename") else -1
    names = arguments[: 2 if event in ("os.rename", "os.link", "shutil.move") else 1]
    if not isinstance(place, int) or place < 0:
        return list(names)
    folder = os.readlink(f"/proc/self/fd/{place}")
    return [os.path.join(folder, os.fsdecode(name)) for name in names]


def is_of_an_import(event: str, arguments: tuple[Any, ...]) -> bool:
    """If an installed library is loaded, or Python reads a module that it compiled before (its import is an event)."""
    if event == "marshal.loads":
        return sys._getframe(2).f_code.co_filename == "<frozen importlib._bootstrap_external>"
    return event == "ctypes.dlopen" and is_installed(arguments[0])


def is_installed(library: Any) -> bool:
    """If a library is the program's own, one that the system finds by its name, or one of an installed package."""
    text = str(library)
    return library is None or "/" not in text or text.startswith((sys.prefix, sys.base_prefix))
