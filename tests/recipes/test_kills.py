"""SIGKILL at random instants and in the windows of final renames, then resume=true: the artefact of an undisturbed
run, and no file beside it.

`make test-all` sets $VAG_LONG: then each command is killed 40 times at random, and in each of its last ten windows;
so are those that are made of others, which are left out else.
"""

import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recipes import cli
from toolkit.base import manifest
from toolkit.data.episode_notes import FILE
from toolkit.data.formats.lerobot_read import dataset_id
from vag_core import Generator
from vag_core.config import GeneratorConfig

LONG = "VAG_LONG" in os.environ
KILLS, WINDOWS = (40, 10) if LONG else (2, 2)
LATEST = 15  # seconds after which a long command is killed; it goes on from there
TRAINING = "runtime.device=cpu runtime.threads=1 optim.batch_size=2 optim.checkpoint_every=3 optim.log_every=4"
POLICY = f"real=[{{dataset}}] image_size=32 optim.steps=10 {TRAINING}"
NETWORK = (
    "image_size=32 generator.num_frames=17 generator.video.width=32 generator.video.depth=1 "
    "generator.action.width=32 generator.action.depth=1"
)
BENCHMARKED = (
    "['generator.tokenizer.width=32','generator.tokenizer.depth=1','generator.scene.width=16','generator.scene.depth=1',"
    "'generator.video.width=48','generator.video.depth=1',"
    "'tokenizer_optim.steps=2','tokenizer_optim.batch_size=2','optim.steps=2','optim.batch_size=2']"
)
ACTION = "['generator.action.width=48','generator.action.depth=1']"
# Command and the file or folder that it is for.
COMMANDS = {
    "collect": ("collect tasks=[plate-slide] episodes_per_task=4 num_steps=60 workers=1", "dataset"),
    "import": ("import {dataset} image_size=32", "dataset"),
    "export": ("export {dataset}", "dataset.hdf5"),
    "inspect": ("inspect {dataset} fix=true", "dataset"),
    "train-generator": (
        f"train-generator dataset=[{{dataset}},{{dataset}}] {NETWORK} "
        "tokenizer_optim.steps=7 tokenizer_optim.batch_size=2 "
        f"tokenizer_optim.checkpoint_every=3 optim.steps=7 {TRAINING}",
        "generator",
    ),
    "synthesize": ("synthesize checkpoint={generator} scenes_from={dataset} batch_size=1", "dataset"),
    "evaluate-generator": (
        "evaluate-generator checkpoint={generator} dataset={dataset} batch_size=1 replay=false keep_samples=true",
        "samples.npz",
    ),
    "score": ("score dataset={dataset} real=[{dataset}] checkpoint={generator} batch_size=1 image_size=32", FILE),
    "mix": ("mix real=[{dataset}] episodes_per_task=3 v21=true", "dataset"),
    "push": ("push {dataset} repo_id=me/dataset dry_run=true", "upload/README.md"),
    "generator-policy": ("generator-policy checkpoint={generator}", "pretrained_model"),
    "pretrain": (f"pretrain policy.options.width=32 {POLICY}", "pretrained_model"),
    "finetune": (f"finetune checkpoint={{policy}} {POLICY}", "pretrained_model"),
    "evaluate": ("evaluate checkpoint={policy} dataset={dataset} image_size=32", "run.json"),
    "replay": ("replay dataset={recorded} max_steps=5 workers=1", FILE),
    "report": ("report {finished}", "report.html"),
}
if LONG:
    TASK = "tasks=[plate-slide] episodes_per_task=2"
    COMMANDS |= {
        "rollout": (f"evaluate checkpoint={{actor}} {TASK} max_steps=5 image_size=32", "run.json"),
        "demo": ("demo experiment=smoke", "summary.json"),
        "ablate": ("ablate experiment=ablate_smoke", "record.json"),
        "benchmark-generators": (
            f"benchmark generators {TASK} scenes_per_task=4 suites=[coarse] seeds=[0] encoder_steps=2 "
            f"systems=[vag,two_stage_temporal,action_only] train={BENCHMARKED} "
            f"system_train={{{{vag:{ACTION},two_stage_temporal:{ACTION},action_only:{ACTION}}}}} "
            "evaluate=['sampler.num_inference_steps=2']",
            "record.json",
        ),
        "benchmark-policies": (
            f"benchmark policies checkpoints={{{{a:{{actor}},b:{{critic}}}}}} {TASK} suites=[unseen,visual] "
            "evaluate=['max_steps=5','image_size=32']",
            "record.json",
        ),
        "benchmark-data": (
            "benchmark data dataset={dataset} num_frames=8 image_size=32 repeats=1 large_gigabytes=1",
            "record.md",
        ),
    }
SHARDED = ("synthesize", "score")
SLOWEST = ("collect",)  # which test_signals ends too
SHARD_KILLS = 20 if LONG else 2
SOME_WINDOWS = ("export", "pretrain")  # of which a few are tried in CI
WITHOUT_WINDOWS = ("evaluate", "rollout")  # they write their record alone


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> Iterator[dict[str, Path]]:
    """What the commands read. Nobody may write into the datasets, and no command has in the end."""
    folder = tmp_path_factory.mktemp("kills")
    dataset = Path(shutil.copytree(dataset, folder / "given/dataset"))
    config = GeneratorConfig(image_size=[32, 32], num_frames=17, state_dim=2, action_dim=2)
    Generator(config).save_pretrained(folder / "generator")
    words = ["pretrain", *f"policy.options.width=32 {POLICY}".format(dataset=dataset).split()]
    assert cli.main([*words, "optim.steps=1", f"out={folder / 'finished'}"]) == 0
    recorded = folder / "recorded/dataset"
    words = ["collect", "tasks=[plate-slide]", "episodes_per_task=2", "num_steps=60", "workers=1"]
    assert cli.main([*words, f"out={recorded.parent}"]) == 0
    for name, seed in (("actor", 0), ("critic", 1)) if LONG else ():
        words = ["pretrain", *f"policy.options.width=32 {POLICY}".format(dataset=recorded).split()]
        assert cli.main([*words, "optim.steps=1", f"seed={seed}", f"out={folder / name}"]) == 0
    policies = {name: folder / name / "pretrained_model" for name in ("actor", "critic")}
    policies["policy"] = folder / "finished/pretrained_model"
    made = {name: folder / name for name in ("generator", "finished")}
    before = {path: content(path) for path in (dataset, recorded)}
    for path in (dataset, recorded):
        for inside in (path, *path.rglob("*")):
            inside.chmod(0o555 if inside.is_dir() else 0o444)
    yield {"dataset": dataset, "recorded": recorded, **policies, **made}
    for path, wanted in before.items():
        assert content(path) == wanted, path
        for inside in (path, *path.rglob("*")):
            inside.chmod(0o755)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def status(out: Path) -> str:
    path = out / "run.json"
    return json.loads(path.read_text())["status"] if path.exists() else "none"


def identity(out: Path, artefact: str) -> tuple[Any, set[str]]:
    """Content of the artefact, and the names of all files of the run."""
    found = {
        str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and "tensorboard" not in path.parts
    }
    found -= {manifest.LOCK}  # of a process that was killed after it had finished
    path = out / artefact
    if path.name == "dataset":
        return dataset_id(path), found
    if (path / "model.safetensors").exists():
        folders = [path, *out.glob("best")]  # of a generator, by its held-out loss
        return [
            (folder / name).read_bytes() for folder in folders for name in ("config.json", "model.safetensors")
        ], found
    if path.name == FILE:
        return pd.read_parquet(path).to_json(), found
    if path.name == "run.json":
        return json.loads(path.read_text())["result"], found
    if path.name in ("summary.json", "record.json"):
        return outcomes(json.loads(path.read_text())), found
    if path.suffix in (".html", ".md"):
        return len(path.read_bytes()) > 0, found
    return path.read_bytes() if path.suffix == ".npz" else path.exists(), found


def outcomes(record: dict[str, Any]) -> list[Any]:
    """What a command that is made of others measured, but how long it took."""
    rows = [row for row in record.get("rows", []) if not re.search("second|minute|flop|share", row["metric"])]
    return [*rows, record.get("comparisons"), record.get("generator"), record.get("policies")]


def undisturbed(words: list[str], out: Path, start: Callable[..., BaseProcess]) -> float:
    """Run a command to its end; the seconds that it took, without the start of the fork server."""
    start([*words, f"out={out}"]).join()
    assert status(out) == "finished"
    return json.loads((out / "run.json").read_text())["wall_seconds"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in SLOWEST else name for name in COMMANDS]
)
def test_killed_commands_resume_to_the_same_artefact(
    name: str, inputs: dict[str, Path], tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    template, artefact = (text.format(**inputs) for text in COMMANDS[name])
    words = template.split()
    seconds = undisturbed(words, tmp_path / "whole", start)
    wanted = identity(tmp_path / "whole", artefact)
    rng = random.Random(0)
    kills, runs, out = 0, 0, tmp_path / "cut-0"
    while kills < KILLS or status(out) != "finished":
        process = start([*words, f"out={out}", "resume=true"])
        process.join(rng.uniform(0, min(seconds + 0.1, LATEST)) if kills < KILLS else None)
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
    assert not list(tmp_path.glob(f"**/*{manifest.PARTIAL}*"))
    assert not list(tmp_path.glob(f"**/*{manifest.REMOVED}*"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SHARDED)
def test_finished_shards_are_never_made_again(
    name: str, inputs: dict[str, Path], tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    """Killed while they are made: under each name there is one folder ever, of one time."""
    template, artefact = (text.format(**inputs) for text in COMMANDS[name])
    words = [*template.split(), *(["samples_per_scene=4"] if name == "synthesize" else [])]
    seconds = undisturbed(words, tmp_path / "whole", start)
    wanted, rng = identity(tmp_path / "whole", artefact), random.Random(1)
    kills, kept, runs = 0, 0, 0
    while kills < SHARD_KILLS:
        out, seen = tmp_path / f"cut-{runs}", dict[Path, tuple[int, int]]()
        while status(out) != "finished":
            before = len(seen)
            until = time.monotonic() + rng.uniform(0, min(seconds, LATEST)) if kills < SHARD_KILLS else float("inf")
            process = start([*words, f"out={out}", "resume=true"])
            while process.is_alive() and time.monotonic() < until:
                note_shards(out, seen)
                process.join(0.02)
            if process.is_alive():
                process.kill()
                process.join()
                kills, kept = kills + 1, kept + (before > 0)
            note_shards(out, seen)
        assert len(seen) >= 4
        assert identity(out, artefact) == wanted
        runs += 1
    assert kept or not LONG  # some were killed when there was something to keep
    assert not list(tmp_path.glob(f"**/*{manifest.PARTIAL}*"))


def note_shards(out: Path, seen: dict[Path, tuple[int, int]]) -> None:
    """Inode and time of the finished shards; fails if one is another than before."""
    for path in (out / ".shards.vag-partial").glob("*-of-*/[0-9]*"):
        with suppress(FileNotFoundError):  # the run has just finished
            now = path.stat()
            assert seen.setdefault(path, (now.st_ino, now.st_mtime_ns)) == (now.st_ino, now.st_mtime_ns), path


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "name",
    [
        name if name in SOME_WINDOWS else pytest.param(name, marks=pytest.mark.long)
        for name in COMMANDS
        if name not in WITHOUT_WINDOWS
    ],
)
def test_commands_killed_between_two_changes_of_names_resume_to_the_same_artefact(
    name: str, inputs: dict[str, Path], tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    """Before each of the last renames and removals; where a run had finished all the same, it is whole."""
    template, artefact = (text.format(**inputs) for text in COMMANDS[name])
    words = template.split()
    undisturbed(words, tmp_path / "first", start)  # fills caches
    start([*words, f"out={tmp_path / 'whole'}"], None, (tmp_path / "changes", -1)).join()
    wanted, changes = identity(tmp_path / "whole", artefact), (tmp_path / "changes").stat().st_size
    assert changes >= 3
    windows = range(changes - min(10, changes) + 1, changes + 1)
    for last in windows if LONG else random.Random(name).sample(windows, WINDOWS):
        out = tmp_path / f"cut-{last}"
        process = start([*words, f"out={out}"], None, (tmp_path / f"changes-{last}", last))
        process.join()
        assert process.exitcode == -9
        if status(out) != "finished":
            start([*words, f"out={out}", "resume=true"]).join()
        assert status(out) == "finished"
        assert identity(out, artefact) == wanted
    assert not list(tmp_path.glob(f"**/*{manifest.PARTIAL}*"))
    assert not list(tmp_path.glob(f"**/*{manifest.REMOVED}*"))
