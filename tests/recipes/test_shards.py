"""Synthesis and scoring in shards: the same episodes however many there are, and what is finished is kept."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from recipes import cli, sharding
from recipes.schema import ScoreConfig
from tests.shard_checks import found, same_dataset, small_generator, vag
from toolkit.base import manifest
from toolkit.base.errors import UserError
from toolkit.base.processes import processes
from toolkit.data.episode_notes import FILE
from toolkit.data.formats.lerobot_read import read_table
from vag_core import Generator

PAGE = Path(__file__).parents[2] / "docs/scale.md"


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_generator(tmp_path_factory.mktemp("shards") / "generator")


@pytest.mark.parametrize(
    "words",
    [
        "samples_per_scene=6",
        "samples_per_scene=6 sampler.order=synchronised",
        "instructions=['push_it','pull_it'] samples_per_scene=3 clips=2",
    ],
)
def test_the_episodes_do_not_depend_on_the_shards(
    words: str, generator: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the shipped batch size: one writer for all, as it was before there were shards, two shards, and three of
    which one is empty."""
    command = ["synthesize", f"checkpoint={generator}", f"scenes_from={dataset}", *words.split()]
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "PIECES", 1)
        whole = vag(*command, out=tmp_path / "whole")
    assert whole["result"]["episodes"] == 24
    two = vag(*command, out=tmp_path / "two")
    for number in (3, 1, 2):
        three = vag(*command, f"shard={number}/3", out=tmp_path / "three")
        assert three["status"] == ("finished" if number == 2 else "running")
    for name, record in (("two", two), ("three", three)):
        assert found(record) == found(whole)
        same_dataset(tmp_path / "whole/dataset", tmp_path / name / "dataset")
        assert (tmp_path / name / "media/generated.mp4").stat().st_size > 0
        assert not list((tmp_path / name).glob(".*partial"))


def test_scores_do_not_depend_on_the_shards(
    generator: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["score", f"dataset={dataset}", f"checkpoint={generator}", f"real=[{dataset}]", "image_size=32"]
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "PIECES", 1)
        records = [vag(*command, out=tmp_path / "whole")]
    records.append(vag(*command, out=tmp_path / "three"))
    for number in (2, 1):
        vag(*command, f"shard={number}/2", out=tmp_path / "two")
    records.append(vag(*command, "resume=true", out=tmp_path / "two", code=2))  # is finished
    tables = [pd.read_parquet(tmp_path / name / FILE) for name in ("whole", "three", "two")]
    assert all(table.equals(tables[0]) for table in tables)
    assert all(found(record) == found(records[0]) for record in records)
    assert set(tables[0]) >= {"score_cycle_error", "score_limit_excess", "score_nearest", "trusted"}


def made(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the finished pieces."""
    folders = (out / ".shards.vag-partial").glob("*-of-*/[0-9]*")
    return {f"{path.parent.name}/{path.name}": (path.stat().st_ino, path.stat().st_mtime_ns) for path in folders}


def test_an_interrupted_run_goes_on_with_the_next_shard(
    generator: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["synthesize", f"checkpoint={generator}", f"scenes_from={dataset}", "batch_size=1"]
    vag(*command, out=tmp_path / "whole")
    out, real, sampled = tmp_path / "cut", Generator.sample, list[int]()

    def cut(self: Generator, *arguments: Any, **options: Any) -> Any:
        if len(sampled) == 2:
            raise KeyboardInterrupt
        sampled.append(1)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Generator, "sample", cut)
    vag(*command, out=out, code=130)
    kept = made(out)
    assert set(kept) == {"1-of-4/1", "2-of-4/1"}
    vag(*command, "resume=true", out=out, code=130)
    assert made(out) == kept
    sampled.clear()
    capsys.readouterr()
    vag(*command, "shard=4/4", "shard_workers=1", out=out)  # a part of a run that was begun as a whole
    assert "shard 4/4 is made, 1 of 4 are missing" in capsys.readouterr().out
    assert {name: made(out)[name] for name in kept} == kept
    vag(*command, "resume=true", out=out)
    assert len(sampled) == 2
    assert "4/4" in capsys.readouterr().err  # of all episodes
    same_dataset(tmp_path / "whole/dataset", out / "dataset")


def test_a_job_that_is_killed_goes_on_within_its_shard(
    generator: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["synthesize", f"checkpoint={generator}", f"scenes_from={dataset}", "batch_size=1", "shard=2/2"]
    out, real, sampled = tmp_path / "cut", Generator.sample, list[int]()

    def cut(self: Generator, *arguments: Any, **options: Any) -> Any:
        if len(sampled) == 1:
            raise KeyboardInterrupt
        sampled.append(1)
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Generator, "sample", cut)
        vag(*command, out=out, code=130)
    kept = made(out)
    assert set(kept) == {"2-of-2/1"}
    vag(*command, out=out)
    assert set(made(out)) == {"2-of-2/1", "2-of-2/2"}
    assert kept.items() <= made(out).items()


def test_shards_that_do_not_fit_are_refused_and_nothing_is_lost(
    generator: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(generator, tmp_path / "other")
    copy = shutil.copytree(generator, tmp_path / "copy")
    command = ["synthesize", f"checkpoint={copy}", f"scenes_from={dataset}", "batch_size=2"]
    out = tmp_path / "run"
    for shard in ("9/8", "a", "0/8", "1/0", "-1/8", "3/8/2", "1.5/2"):
        assert cli.main([*command, f"shard={shard}", f"out={out}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"shard={shard}: expected number/count, such as 3/8, with numbers from 1" in line
    assert not out.exists()
    assert cli.main([*command, "shard=1/2"]) == 2
    assert "shard=1/2: give out=DIR, the same for all shards" in capsys.readouterr().err
    vag(*command, "shard=1/2", out=out)
    kept = made(out)
    for words, message in (
        (["shard=1/3"], "holds shards of 2, not of 3; go on with shard=1/2 to 2/2, or choose another out="),
        (["shard=2/2", "seed=1"], "was begun with seed=0, not 1"),
        (["shard=2/2", f"checkpoint={tmp_path / 'other'}"], f"was begun with checkpoint={copy}, not"),
        (["shard=2/2", "overwrite=true"], "overwrite=true begins all shards anew; give it without shard="),
        ([], "holds an unfinished run; use resume=true"),
        (["resume=true", "sampler.num_inference_steps=3"], "was begun with sampler.num_inference_steps=10, not 3"),
    ):
        capsys.readouterr()
        assert cli.main([*command, *words, f"out={out}"]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if "vag: error" in line]
        assert len(errors) == 1
        assert message in errors[0]
        assert made(out) == kept
    held = out / ".shards.vag-partial/2-of-2"
    held.mkdir(exist_ok=True)
    with manifest.locked(held):  # by a job that goes on
        for words in (["shard=2/2"], ["resume=true"]):
            assert cli.main([*command, *words, f"out={out}"]) == 2
            assert "2-of-2: in use by process" in capsys.readouterr().err
    torch.manual_seed(1)
    weights = Generator.from_pretrained(copy)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter.data)
    weights.save_pretrained(copy)
    assert cli.main([*command, "shard=2/2", f"out={out}"]) == 2
    assert f"{copy}: has changed since" in capsys.readouterr().err
    assert made(out) == kept
    shutil.copytree(tmp_path / "other", copy, dirs_exist_ok=True)
    assert vag(*command, "shard=2/2", out=out)["status"] == "finished"
    assert cli.main([*command, "shard=2/2", f"out={out}"]) == 2
    assert "holds a finished run" in capsys.readouterr().err


def test_each_rank_of_torchrun_makes_a_shard(
    generator: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    for rank in ("1", "0"):
        for name, value in (("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "nowhere"), ("MASTER_PORT", "1")):
            monkeypatch.setenv(name, value)
        processes.cache_clear()
        record = vag("synthesize", f"checkpoint={generator}", f"scenes_from={dataset}", "batch_size=2", out=out)
        assert record["status"] == ("finished" if rank == "0" else "running")
        assert processes().size == 1
    assert len(read_table(out / "dataset").lengths) == 4


@pytest.mark.slow
def test_shards_in_two_processes(generator: Path, dataset: Path, tmp_path: Path) -> None:
    command = ["synthesize", f"checkpoint={generator}", f"scenes_from={dataset}", "batch_size=1", "runtime.threads=1"]
    one = vag(*command, out=tmp_path / "one")
    two = vag(*command, "shard_workers=2", out=tmp_path / "two")
    assert found(one) == found(two)
    same_dataset(tmp_path / "one/dataset", tmp_path / "two/dataset")


def page_script() -> str:
    """The array job of the page, as it stands there."""
    scripts = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", PAGE.read_text(), re.DOTALL)
    (script,) = (script for script in scripts if "--array" in script)
    return str(script)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_job_of_the_page_runs_as_an_array(generator: Path, dataset: Path, tmp_path: Path) -> None:
    """By a stand-in for sbatch, which runs the job once for each number of its array, two at a time."""
    count = int(re.findall(r"#SBATCH --array=1-(\d+)", page_script())[0])
    (tmp_path / "bin").mkdir()
    words = f"scenes_from={dataset} batch_size=1 sampler.num_inference_steps=2 runtime.threads=1"
    shim = tmp_path / "bin/vag"
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m recipes.cli "$@" {words}\n')
    shim.chmod(0o755)
    (tmp_path / "job.sh").write_text(page_script())
    shutil.copytree(generator, tmp_path / "outputs/generator/generator")
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = str(PAGE.parents[1])
    for first in range(1, count + 1, 2):
        running = [
            subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env={**environment, "SLURM_ARRAY_TASK_ID": str(number)})
            for number in range(first, min(first + 2, count + 1))
        ]
        assert [process.wait() for process in running] == [0] * len(running)
    assert json.loads((tmp_path / "outputs/synthetic/run.json").read_text())["status"] == "finished"
    assert len(read_table(tmp_path / "outputs/synthetic/dataset").lengths) == 4


def test_the_commands_of_the_page_fit_together(
    generator: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The array's command for each of its numbers, at a small size, then that for whatever is missing."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(generator, tmp_path / "outputs/generator/generator")
    small = [f"scenes_from={dataset}", "batch_size=1", "sampler.num_inference_steps=2"]
    count = int(re.findall(r"#SBATCH --array=1-(\d+)", page_script())[0])
    joined = re.sub(r"\\\n\s*", " ", page_script())
    (job,) = [line for line in joined.splitlines() if line.startswith("vag synthesize")]
    for number in range(1, count):  # the last one is lost
        words = shlex.split(job.replace("$SLURM_ARRAY_TASK_ID", str(number)))
        assert cli.main([*words[1:], *small]) == 0
    assert not Path("outputs/synthetic/dataset").exists()
    (whole,) = re.findall(r"^    (vag synthesize .*resume=true.*)$", PAGE.read_text(), re.MULTILINE)
    assert cli.main([*shlex.split(whole)[1:], *small]) == 0
    assert len(read_table(Path("outputs/synthetic/dataset")).lengths) == 4


def test_a_command_that_has_made_no_shard_leaves_nothing(
    generator: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise UserError("out of memory")

    command = ["synthesize", f"checkpoint={generator}", f"scenes_from={dataset}"]
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "sample", full)
        vag(*command, out=tmp_path / "out", code=2)
    assert not list((tmp_path / "out").iterdir())
    vag(*command, out=tmp_path / "out")


def test_one_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ScoreConfig()
    for gpus, device, asked, expected in (
        *((0, "auto", None, 1), (1, "auto", None, 1), (8, "auto", None, 8)),
        *((8, "cpu", None, 1), (8, "cuda", 2, 2), (1, "auto", 2, 2)),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        config.runtime.device, config.shard_workers = device, asked
        assert sharding.process_count(config.shard_workers, config.runtime) == expected


def test_shards_are_whole_batches_in_order() -> None:
    for batches in (1, 2, 7, 100, 5000):
        for count in (1, 2, 3, 8, 100):
            shards = sharding.shards_of(batches, count)
            assert [shard.number for shard in shards] == [*range(1, count + 1)]
            assert [batch for shard in shards for batch in shard.batches] == [*range(batches)]
            sizes = [len(shard.batches) for shard in shards]
            assert max(sizes) - min(sizes) <= 1
            pieces = [part for shard in shards for part in shard.pieces(Path()).values()]
            assert [batch for part in pieces for batch in part] == [*range(batches)]
            assert all(pieces)
            assert max(map(len, pieces)) <= 1 + batches // 100  # what a lost job loses
