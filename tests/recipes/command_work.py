"""A command in a child of the fork server, which must be able to import what it runs."""

import os
from pathlib import Path

from recipes import cli
from recipes.lanes import Lane, run_lanes


def run_command(words: list[str], complaints: Path | None) -> None:
    """Exit with the command's code, in a session of its own, as from a terminal of its own."""
    os.setsid()
    if complaints is not None:
        os.dup2(os.open(complaints, os.O_WRONLY | os.O_CREAT), 2)
    raise SystemExit(cli.main(words))


def collect_in_lanes(root: Path, complaints: Path) -> None:
    """Two recordings side by side, each of which would take hours, as a command made of others runs them."""
    os.setsid()
    os.dup2(os.open(complaints, os.O_WRONLY | os.O_CREAT), 2)
    words = ["tasks=[plate-slide]", "episodes_per_task=10000", "num_steps=60", "workers=2"]
    lanes: dict[str, Lane] = {name: [(name, "collect", words)] for name in ("a", "b")}

    def work() -> int:
        run_lanes(root, lanes)
        return 0

    with cli.terminable():
        code = cli.guarded(work)
    raise SystemExit(code)
