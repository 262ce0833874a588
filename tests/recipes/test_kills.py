"""SIGKILL at random instants, then resume=true: the artefact of an undisturbed run, and no file beside it.

$VAG_KILLS sets how often each command is killed: `VAG_KILLS=20 pytest tests/recipes/test_kills.py`.
"""

import json
import os
import random
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from toolkit.data.lerobot_io import dataset_id
from vag_core import Generator
from vag_core.config import GeneratorConfig

KILLS = int(os.environ.get("VAG_KILLS", "1"))
COMMANDS = {
    "collect": ("collect tasks=[plate-slide] episodes_per_task=4 num_steps=60 workers=1", "dataset"),
    "import": ("import {dataset} image_size=32", "dataset"),
    "synthesize": ("synthesize checkpoint={generator} scenes_from={dataset} batch_size=1", "dataset"),
    "pretrain": (
        "pretrain real=[{dataset}] image_size=32 optim.steps=12 optim.batch_size=2 optim.checkpoint_every=3 "
        "policy.options.width=32 runtime.device=cpu runtime.threads=1",
        "pretrained_model",
    ),
}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GeneratorConfig(image_size=32, num_frames=17, state_dim=2, action_dim=2)
    path = tmp_path_factory.mktemp("kills") / "generator"
    Generator(config).save_pretrained(path)
    return path


def status(out: Path) -> str:
    path = out / "run.json"
    return json.loads(path.read_text())["status"] if path.exists() else "none"


def identity(out: Path, artefact: str) -> object:
    """Content of the artefact, and the names of all files of the run."""
    files = {
        str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and "tensorboard" not in path.parts
    }
    if artefact == "dataset":
        return dataset_id(out / artefact), files
    return (out / artefact / "model.safetensors").read_bytes(), files


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_commands_resume_to_the_same_artefact(
    name: str, dataset: Path, generator: Path, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    template, artefact = COMMANDS[name]
    words = template.format(dataset=dataset, generator=generator).split()
    whole = tmp_path / "whole"
    for attempt in range(2 if KILLS > 1 else 1):  # the first fills caches too
        start([*words, f"out={whole}", *["overwrite=true"] * attempt]).join()
    assert status(whole) == "finished"
    seconds = json.loads((whole / "run.json").read_text())["wall_seconds"]  # without the start of the fork server
    wanted = identity(whole, artefact)
    rng = random.Random(0)
    kills, runs, out = 0, 0, tmp_path / "cut-0"
    while kills < KILLS or status(out) != "finished":
        process = start([*words, f"out={out}", "resume=true"])
        process.join(rng.uniform(0, seconds) if kills < KILLS else None)
        if process.is_alive():
            process.kill()
            process.join()
            kills += 1
        else:
            assert status(out) == "finished"
        if status(out) == "finished":
            assert identity(out, artefact) == wanted
            runs += kills < KILLS
            out = tmp_path / f"cut-{runs}"
    assert not list(tmp_path.glob("**/.*partial*"))
