"""A user's folder survives every command with every combination of `out`, `overwrite` and `resume`.

A sample of the combinations runs in CI; `make test-all` sets $VAG_LONG and runs them all.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from recipes import cli
from toolkit.base import files, manifest
from toolkit.base.run import Run
from vag_core import Generator
from vag_core.config import GeneratorConfig

LONG = "VAG_LONG" in os.environ
SAMPLE = 1  # of each command
OPTIONS = ([], ["overwrite=true"], ["resume=true"], ["overwrite=true", "resume=true"])
# Small: what does not fail at once is done within a second or two.
COMMANDS = {
    "collect": "tasks=[plate-slide] episodes_per_task=1 num_steps=2 image_size=32 workers=1",
    "import": "source={dataset}",
    "export": "dataset={dataset}",
    "inspect": "dataset={dataset} fix=true",
    "train-generator": "dataset={dataset} image_size=32 generator.num_frames=18",
    "synthesize": "checkpoint={generator} scenes_from={dataset} sampler.num_inference_steps=1",
    "evaluate-generator": "checkpoint={generator} dataset={dataset} replay=false sampler.num_inference_steps=1",
    "score": "dataset={dataset} real=[{dataset}] image_size=32",
    "gate": "dataset={dataset} real=[{dataset}] held_out={dataset} policy=no-such-policy",
    "replay": "dataset={dataset}",
    "mix": "real=[{dataset}] v21=true",
    "pretrain": "real=[{dataset}] synthetic_fraction=0.5",
    "finetune": "checkpoint={generator} real=[{dataset}]",
    "evaluate": "checkpoint={generator} dataset={dataset}",
    "push": "source={dataset} repo_id=me/x dry_run=true",
    "generator-policy": "checkpoint={generator}",
    "trial": "policies={{a:{generator},b:{generator}}} task=x robot.type=no_such_robot",
    "report": "runs=[{run}]",
    "benchmark data": "dataset={generator}",
    "benchmark lerobot": "policies=[]",
    "benchmark engine": "before={generator}",
    "benchmark generators": "systems=[vag] tasks=[no-such-task]",
    "benchmark policies": "checkpoints={{a:{generator}}} tasks=[no-such-task]",
    "ablate": "steps=1 tasks=[no-such-task]",
    "demo": "tasks=[no-such-task]",
}
# Relative to the user's folder: itself, what is in it, beside it, and by other names.
PLACES = ("", "data", "data/dataset", "new", "deep/new", "notes.md", "foreign", "other", "link", "../user/data", "..")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, dataset: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("precious")
    shutil.copytree(dataset, folder / "dataset")
    Generator(GeneratorConfig(image_size=[32, 32], num_frames=17, state_dim=2, action_dim=2)).save_pretrained(
        folder / "g"
    )
    with Run("collect", folder / "run", {}, overwrite=False, resume=False) as run:
        files.write_text(run.directory / "a", "made")
    return {"dataset": folder / "dataset", "generator": folder / "g", "run": folder / "run"}


def lay_out(user: Path, inputs: dict[str, Path]) -> None:
    """A folder as people have them: their own files, a dataset, a record of another tool, runs of vag with notes."""
    (user / "data").mkdir(parents=True)
    shutil.copytree(inputs["dataset"], user / "data/dataset")
    for name in ("notes.md", ".hidden", "data/labels.csv", "data/dataset/README.md"):
        (user / name).write_text(f"precious {name}")
    (user / "foreign").mkdir()
    (user / "foreign/run.json").write_text(json.dumps({"runner": "airflow", "status": "finished"}))
    (user / "foreign/model.bin").write_text("precious model")
    for name in ("other", "collect"):
        with Run(name, user / name, {}, overwrite=False, resume=False) as run:
            files.write_text(run.directory / "made", "made")
        (user / name / "my notes.txt").write_text("precious notes")
    (user / "link").symlink_to(user / "data")


def precious(folder: Path) -> dict[str, bytes]:
    """All files that vag did not write."""
    made = {"other/made", "other/run.json", f"other/{manifest.MANIFEST}"}
    made |= {"collect/made", "collect/run.json", f"collect/{manifest.MANIFEST}"}
    names = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if name not in made}


def cases() -> Iterator[tuple[str, str, str, list[str]]]:
    """Command, where the inputs are, out, options."""
    every = list(product(("outside", "inside"), (*PLACES, "collect"), OPTIONS))
    for command in COMMANDS:
        for case in every if LONG else random.Random(command).sample(every, SAMPLE):
            yield command, *case


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_users_folder_survives_every_command(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    user = tmp_path / "home/user"
    lay_out(user, inputs)
    monkeypatch.chdir(user)
    wanted, listed = precious(user), sorted(path.name for path in (tmp_path / "home").iterdir())
    codes = []
    for command, where, place, options in cases():
        given = inputs if where == "outside" else {**inputs, "dataset": user / "data/dataset", "run": user / "collect"}
        words = [*command.split(), *COMMANDS[command].format(**given).split(), f"out={user / place}", *options]
        codes.append(cli.main(words))
        shown = capsys.readouterr().err
        assert codes[-1] in (0, 1, 2), (words, shown)
        assert "Traceback" not in shown, (words, shown)
        found = precious(user)
        for name in wanted:
            assert name in found, (words, name)
            assert found[name] == wanted[name], (words, name)
        for new in ("new", "deep"):
            shutil.rmtree(user / new, ignore_errors=True)
        assert sorted(path.name for path in (tmp_path / "home").iterdir()) == listed, words
    assert codes.count(0) > len(codes) / 30
    assert codes.count(2) > len(codes) / 2
