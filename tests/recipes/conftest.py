"""Commands in processes of their own, started by a fork server that has imported everything.

Starting Python and importing torch and LeRobot takes longer than most of these commands work.
"""

import importlib
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

PRELOAD = ["recipes.collect", "recipes.synthesize", "recipes.pretrain", "recipes.import_data", "policies.factory"]


@pytest.fixture(scope="session")
def start() -> Callable[..., BaseProcess]:
    """start(words, complaints=None) -> the running process; `complaints` is the file that its errors go to."""
    sys.path.append(str(Path(__file__).parent))  # children import what they run by name
    run_command = importlib.import_module("command_work").run_command
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)

    def start_command(words: list[str], complaints: Path | None = None) -> BaseProcess:
        process = context.Process(target=run_command, args=(words, complaints))
        process.start()
        return process

    return start_command
