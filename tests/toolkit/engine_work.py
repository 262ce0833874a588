"""What the tests of the pool let its workers do. Workers import it by name, which a test module cannot offer."""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.base.engine import worker_number
from toolkit.base.errors import UserError


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


def number(item: int) -> int:
    time.sleep(0.05)
    return worker_number()


def die_once(path: Path) -> bool:
    """The first process that sees it dies."""
    if not path.exists():
        path.touch()
        os._exit(1)
    return True


def slow_mark(path: Path) -> Path:
    time.sleep(1)
    path.touch()
    return path


@dataclass(frozen=True)
class Step:
    """A node of a graph."""

    name: str
    needs: set[str] = field(default_factory=set)

    @property
    def names(self) -> set[str]:
        return {self.name}


@dataclass(frozen=True)
class Mark:
    """A step of a graph leaves a file of its name; `bad` fails."""

    folder: Path

    def __call__(self, step: Any, line: int) -> None:
        if step.name == "dies":
            os._exit(1)
        if step.name == "bad":
            print("bad is spoilt", file=sys.stderr)
            raise SystemExit(2)
        if step.name == "b":
            assert (self.folder / "a").exists()
        (self.folder / step.name).touch()


@dataclass(frozen=True)
class NoteGpus:
    """A step of a graph notes the GPUs that it sees."""

    folder: Path

    def __call__(self, step: Any, line: int) -> None:
        (self.folder / step.name).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
