"""Commands on a Ray of two nodes: what the processes of this machine make, also where a node is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recipes.cli import main
from tests.clusters import STORE, Nodes, two_nodes
from tests.shard_checks import found, same_dataset, small_generator, vag
from toolkit.base.ray_engine import QUIET
from toolkit.data.formats.lerobot_read import read_table

LONG = pytest.mark.long
PAGE = Path(__file__).parents[2] / "docs/scale.md"


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_generator(tmp_path_factory.mktemp("cluster") / "generator")


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture
def doomed() -> Iterator[Nodes]:
    with two_nodes() as nodes:
        yield nodes


@contextmanager
def killed(nodes: Nodes, when: Callable[[], bool]) -> Iterator[None]:
    """Inside, the second node is lost as soon as `when` holds; it must come to that."""
    ended = threading.Event()
    lost = list[bool]()

    def watch() -> None:
        while not ended.wait(0.05):
            if when():
                nodes.kill_one()
                lost.append(True)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert lost, "it ended before a node could be lost"


def on(nodes: Nodes) -> list[str]:
    return ["engine.kind=ray", f"engine.address={nodes.address}", "engine.retries=5"]


def pieces(out: Path) -> list[Path]:
    return sorted(out.glob(".shards.vag-partial/*-of-*/[0-9]*"))


def test_demonstrations_and_replays(nodes: Nodes, tmp_path: Path) -> None:
    words = ["collect", "tasks=[plate-slide]", "episodes_per_task=3", "image_size=32", "num_steps=60"]
    vag(*words, out=tmp_path / "local")
    vag(*words, *on(nodes), out=tmp_path / "ray")
    tables = [read_table(tmp_path / name / "dataset") for name in ("local", "ray")]
    assert (tables[0].actions == tables[1].actions).all()
    replays = [
        vag("replay", f"dataset={tmp_path / 'ray/dataset'}", *engine, out=tmp_path / f"replay_{len(engine)}")
        for engine in ([], on(nodes))
    ]
    assert replays[0]["result"] == replays[1]["result"]


def test_mistakes_are_one_line(nodes: Nodes, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replay = ["replay", f"dataset={dataset}", f"out={tmp_path / 'out'}"]
    for words, message in (
        ([*replay, *on(nodes), "engine.gpus=2"], "engine.gpus=2: the largest node of this cluster has 0 GPUs"),
        ([*replay, "engine.kind=dask"], "engine.kind=dask: expected one of local, ray"),
        ([*replay, "engine.cpus=0"], "engine.cpus=0"),
        (
            ["synthesize", "checkpoint=x", "shard=1/2", "engine.kind=ray", f"out={tmp_path / 'out'}"],
            "shard=1/2: one shard is made by this process alone; leave out shard=",
        ),
        (
            ["evaluate", "checkpoint=x", "dataset=x", "engine.kind=ray", f"out={tmp_path / 'out'}"],
            "engine.kind=ray: errors on dataset= are measured by this process",
        ),
        (
            ["ablate", "experiment=ablate_smoke", *on(nodes), "engine.stage_gpus={train:1}", f"out={tmp_path / 'out'}"],
            "engine.stage_gpus: 'train' is no command. Did you mean 'pretrain'?",
        ),
    ):
        assert main(words) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vag: ")]
        assert len(said) == 1
        assert message in said[0]
        assert not (tmp_path / "out").exists()


@LONG
def test_a_policy_is_rolled_out_in_parts(nodes: Nodes, tmp_path: Path) -> None:
    """By two processes of this machine and by the cluster the same; every scene once, in order."""
    words = ["tasks=[plate-slide]", "episodes_per_task=2", "image_size=64", "num_steps=60"]
    vag("collect", *words, out=tmp_path / "real")
    train = [f"real=[{tmp_path / 'real/dataset'}]", "policy=pi05_compact", "optim.steps=2", "optim.batch_size=4"]
    vag("pretrain", *train, out=tmp_path / "policy")
    evaluate = ["evaluate", f"checkpoint={tmp_path / 'policy/pretrained_model'}", "tasks=[plate-slide,button-press]"]
    evaluate += ["episodes_per_task=3", "max_steps=24", "suites=[unseen,language]", "runtime.threads=1"]
    results = {
        name: vag(*evaluate, *engine, out=tmp_path / name)["result"]
        for name, engine in (("one", []), ("two", ["workers=2"]), ("ray", on(nodes)))
    }
    assert results["two"] == results["ray"]
    for name, result in results.items():
        assert list(result["suites"]) == ["unseen", "language"], name
        assert {suite: rates["n"] for suite, rates in result["suites"].items()} == {"unseen": 6, "language": 6}
        assert (tmp_path / name / "media/unseen.mp4").stat().st_size > 0
        scenes = [(one[0], one[1]) for one in result["suites"]["unseen"]["outcomes"]]
        assert scenes == [(one[0], one[1]) for one in results["one"]["suites"]["unseen"]["outcomes"]]


def test_two_hundred_episodes_and_a_lost_node(generator: Path, dataset: Path, doomed: Nodes, tmp_path: Path) -> None:
    """The dataset of the local engine, episode for episode; each piece is made once. Its scores too."""
    scenes = len(read_table(dataset).lengths)
    command = ["synthesize", f"checkpoint={generator}", f"scenes_from={dataset}", f"samples_per_scene={200 // scenes}"]
    command += ["batch_size=10", "runtime.threads=1", "sampler.order=synchronised"]  # no two are alike
    local = vag(*command, out=tmp_path / "local")
    assert local["result"]["episodes"] == 200
    times = dict[Path, int]()

    def several() -> bool:
        for path in pieces(tmp_path / "ray"):
            times.setdefault(path, path.stat().st_mtime_ns)
        return len(times) >= 3

    with killed(doomed, several):
        lossy = vag(*command, *on(doomed), out=tmp_path / "ray")
    assert found(lossy) == found(local)
    same_dataset(tmp_path / "local/dataset", tmp_path / "ray/dataset")
    assert len(set(read_table(tmp_path / "ray/dataset").ids)) == 200
    assert not list((tmp_path / "ray").glob(".*partial"))
    score = ["score", f"dataset={tmp_path / 'local/dataset'}", f"checkpoint={generator}", f"real=[{dataset}]"]
    score += ["image_size=32", "runtime.threads=1"]
    one, other = vag(*score, out=tmp_path / "score"), vag(*score, *on(doomed), out=tmp_path / "ray_score")
    assert one["result"] == other["result"]


@LONG
@pytest.mark.timeout(1500)
def test_a_study_and_a_lost_node(doomed: Nodes, tmp_path: Path) -> None:
    """Every cell and every rollout is that of the local engine."""
    command = ["ablate", "experiment=ablate_smoke"]
    vag(*command, out=tmp_path / "local")

    def several() -> bool:
        return len(list((tmp_path / "ray").glob("*/**/run.json"))) >= 12

    with killed(doomed, several):
        record = vag(*command, *on(doomed), out=tmp_path / "ray")
    assert record["result"]["failed"] == []
    for table in ("cells", "rollouts"):
        one, other = (pd.read_parquet(tmp_path / name / f"{table}.parquet") for name in ("local", "ray"))
        pd.testing.assert_frame_equal(one, other)
    rows = [_comparable(json.loads((tmp_path / name / "record.json").read_text())) for name in ("local", "ray")]
    assert rows[0] == rows[1]
    made = sorted(path.relative_to(tmp_path / "local") for path in (tmp_path / "local").glob("synthetic_*/dataset"))
    assert len(made) == 3
    for dataset in made:
        same_dataset(tmp_path / "local" / dataset, tmp_path / "ray" / dataset, seen=None)


def _comparable(record: dict[str, Any]) -> Any:
    return record["rows"], record["comparisons"]


@LONG
@pytest.mark.timeout(600)
def test_the_job_of_the_page_holds_a_cluster(tmp_path: Path) -> None:
    """By stand-ins for srun and scontrol, on this machine alone, with another command in place of the study."""
    pytest.importorskip("ray")
    vag("collect", "tasks=[plate-slide]", "episodes_per_task=2", "image_size=32", out=tmp_path / "real")
    scripts = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", PAGE.read_text(), re.DOTALL)
    (script,) = (script for script in scripts if "ray start" in script)
    with socket.create_server(("127.0.0.1", 0)) as free:
        script = script.replace("6379", str(free.getsockname()[1]))
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    stand_ins = {
        "scontrol": "echo 127.0.0.1; echo other",
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "ray": f'exec "{Path(sys.executable).with_name("ray")}" "$@" --num-cpus=1 --object-store-memory={STORE}',
        "vag": f'exec "{sys.executable}" -m recipes.cli replay "dataset={tmp_path}/real/dataset" "$3" "$4" "$5"',
    }
    for name, line in stand_ins.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{line}\n")
        (bin_ / name).chmod(0o755)
    environment = {**os.environ, **QUIET, "PATH": f"{bin_}:{os.environ['PATH']}", "SLURM_NNODES": "2"}
    environment |= {"SLURM_JOB_NODELIST": "two", "PYTHONPATH": str(PAGE.parents[1]), "HOME": str(tmp_path)}
    ray = [str(Path(sys.executable).with_name("ray")), "get-auth-token", "--generate"]
    subprocess.run(ray, env={**environment, "RAY_AUTH_MODE": "token"}, check=True, capture_output=True)
    job = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment, start_new_session=True)
    try:
        assert job.wait(500) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGTERM)  # as Slurm ends what a job leaves
    record = json.loads((tmp_path / "outputs/study/run.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["engine"]["kind"] == "ray"
