"""A command in a child of the fork server, which must be able to import what it runs."""

import os
from pathlib import Path

from recipes import cli


def run_command(words: list[str], complaints: Path | None) -> None:
    """Exit with the command's code, in a session of its own, as from a terminal of its own."""
    os.setsid()
    if complaints is not None:
        os.dup2(os.open(complaints, os.O_WRONLY | os.O_CREAT), 2)
    raise SystemExit(cli.main(words))
