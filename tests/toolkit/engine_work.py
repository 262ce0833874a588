"""What the tests of the pool let its workers do. Workers import it by name, which a test module cannot offer."""

import os
import sys
import time
from pathlib import Path

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
