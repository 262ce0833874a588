"""What the tests of several commands share."""

import importlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from omegaconf import OmegaConf

from recipes.compose import compose_config
from recipes.study_schema import AblateConfig
from toolkit.base.files import write_json
from toolkit.base.typed_json import to_json

PRELOAD = [
    *("recipes.collect", "recipes.synthesize", "recipes.pretrain", "recipes.finetune", "recipes.import_data"),
    *("recipes.train_generator", "recipes.evaluate_generator", "recipes.evaluate", "recipes.inspect", "recipes.export"),
    *("recipes.score", "recipes.report", "recipes.mix", "recipes.push", "policies.factory"),
]


@pytest.fixture(scope="session")
def start() -> Callable[..., BaseProcess]:
    """start(words, complaints=None, stop=None, environment=None) -> the running process; `complaints` is the file that
    its errors go to.

    Commands run in processes of their own, of a fork server that has imported everything: starting Python and importing
    torch and LeRobot takes longer than most of these commands work.
    """
    sys.path.append(str(Path(__file__).parent))  # children import what they run by name
    run_command = importlib.import_module("command_work").run_command
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)

    def start_command(
        words: list[str],
        complaints: Path | None = None,
        stop: tuple[Path, int] | None = None,
        environment: dict[str, str] | None = None,
    ) -> BaseProcess:
        process = context.Process(target=run_command, args=(words, complaints, stop, environment))
        process.start()
        return process

    return start_command


@pytest.fixture(scope="session")
def together(start: Callable[..., BaseProcess]) -> Callable[..., list[str]]:
    """together(words, folder, size=2, **environment): a command in some processes without torchrun; the complaints of
    each. Their exit codes must agree."""

    def run_together(words: str, folder: Path, size: int = 2, **environment: str) -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **environment}
        files = [folder / f"complaints_{rank}" for rank in range(size)]
        running = [
            start(words.split(), file, None, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank, file in enumerate(files)
        ]
        for process in running:
            process.join(200)
        complaints = [file.read_text() for file in files]
        assert [process.exitcode for process in running] == [running[0].exitcode] * size, complaints
        return complaints

    return run_together


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., subprocess.Popen[str]]:
    """torchrun(words, **environment): a command in two processes, as a user starts it; no GPU is shown."""

    def run_torchrun(words: str, **environment: str) -> subprocess.Popen[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        root = str(Path(__file__).parents[2])
        return subprocess.Popen(
            [*launcher, "-m", "recipes.cli", *words.split()],
            env={**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": "", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run_torchrun


@pytest.fixture(scope="session")
def killed() -> Callable[[subprocess.Popen[str], Path], str]:
    """killed(process of torchrun, checkpoints): all its processes end at the first checkpoint; what it said."""

    def kill(started: subprocess.Popen[str], checkpoints: Path) -> str:
        while not any(checkpoints.glob("step_*")) and started.poll() is None:
            time.sleep(0.02)
        group = [*psutil.Process(started.pid).children(recursive=True), psutil.Process(started.pid)]
        for process in group:
            process.send_signal(signal.SIGKILL)
        assert len(group) > 2
        return started.communicate()[0]

    return kill


@pytest.fixture(scope="session")
def write_stage() -> Callable[..., None]:
    """write_stage(directory, command, result, config=None): the record of a stage that has finished."""

    def write(directory: Path, command: str, result: Any, config: Any = None) -> None:
        made = {} if config is None else {**asdict(config), "out": str(directory)}
        directory.mkdir(parents=True, exist_ok=True)
        record = {"command": command, "status": "finished", "config": made, "result": to_json(result)}
        record["git_sha"] = "beef"
        write_json(directory / "run.json", record)

    return write


@pytest.fixture(scope="session")
def config() -> Callable[..., AblateConfig]:
    """config(*overrides) -> that of a study of one cell, if the overrides name no others."""

    def compose(*overrides: str) -> AblateConfig:
        composed = compose_config("ablate", ["grid=['arm=real_few']", "steps=10", "out=x", *overrides])
        made: Any = OmegaConf.to_object(composed)
        return made

    return compose
