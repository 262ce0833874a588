"""What the tests of several commands share."""

import importlib
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

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
