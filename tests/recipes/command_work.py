"""A command in a child of the fork server, which must be able to import what it runs."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes import cli, terminal
from recipes.stages import make_stage, run_stages
from toolkit.base import files
from toolkit.base.engine import die_with_parent


def run_command(
    words: list[str],
    complaints: Path | None,
    stop: tuple[Path, int] | None = None,
    environment: dict[str, str] | None = None,
) -> None:
    """Exit with the command's code, in a session of its own, as from a terminal of its own.

    stop: a file that gets a byte for every name that this process changes, and before which of them it is killed.
    """
    os.setsid()
    os.environ.update(environment or {})
    die_with_parent()  # should the tests be killed
    if complaints is not None:
        os.dup2(os.open(complaints, os.O_WRONLY | os.O_CREAT), 2)
    if stop is not None:
        for name in ("rename", "exchange", "_remove", "remove_files"):
            setattr(files, name, counted(getattr(files, name), *stop))
    raise SystemExit(cli.main(words))


def counted(real: Callable[..., Any], counter: Path, last: int) -> Callable[..., Any]:
    def change(*arguments: Any, **options: Any) -> Any:
        with counter.open("ab", buffering=0) as file:
            file.write(b".")
        if counter.stat().st_size == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    return change


def collect_side_by_side(root: Path, complaints: Path) -> None:
    """Two recordings side by side, each of which would take hours, as a command made of others runs them."""
    os.setsid()
    die_with_parent()  # should the tests be killed
    os.dup2(os.open(complaints, os.O_WRONLY | os.O_CREAT), 2)
    words = ["tasks=[plate-slide]", "episodes_per_task=10000", "num_steps=60", "workers=2"]
    stages = [make_stage(name, "collect", {}, words) for name in ("a", "b")]

    def work() -> int:
        run_stages(root, stages)
        return 0

    with terminal.terminable():
        code = terminal.guarded(work)
    raise SystemExit(code)
