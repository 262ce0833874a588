"""The same work on a Ray of two nodes: order, errors, a node that is lost, and what is refused before work begins."""

import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.clusters import Nodes, two_nodes
from toolkit.base import ray_engine
from toolkit.base.engine import EngineConfig, LocalEngine, Resources, open_engine
from toolkit.base.errors import UserError
from toolkit.base.ray_engine import RayEngine, gpu_number, sorted_by_needs

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with two_nodes(gpus=2) as nodes:
        yield nodes


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(HERE)
    return importlib.import_module("engine_work")


def opened(nodes: Nodes, shared: Path, **options: Any) -> RayEngine:
    engine = open_engine(EngineConfig(kind="ray", address=nodes.address, **options), shared)
    assert isinstance(engine, RayEngine)
    return engine


def test_a_map_gives_what_the_local_engine_gives(nodes: Nodes, work: ModuleType, tmp_path: Path) -> None:
    engine = opened(nodes, tmp_path)
    assert engine.workers == 2
    assert list(engine.map(work.slow_square, range(20), description="squares")) == [k**2 for k in range(20)]
    assert list(engine.map(work.slow_square, [], description="none")) == []
    assert {environment[0] for environment in engine.map(work.threads, range(4), description="threads")} == {"1"}
    results = engine.map(work.refuse, range(8), description="spoilt")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="item 3 is spoilt"):
        next(results)
    assert not list(tmp_path.iterdir())  # the token is gone


def test_the_feed_may_depend_on_results(nodes: Nodes, work: ModuleType, tmp_path: Path) -> None:
    missing = [3, 2, 1]
    seen = []
    for number, square in opened(nodes, tmp_path).feed(
        work.slow_square, lambda: missing.pop(0) if missing else None, description="even"
    ):
        seen.append((number, square))
        if square % 2:
            missing.append(number + 1)
    assert sorted(seen) == [(1, 1), (2, 4), (2, 4), (3, 9), (4, 16)]


def test_fractions_of_gpus(nodes: Nodes, work: ModuleType, tmp_path: Path) -> None:
    """Of two GPUs one each: workers are numbered by the GPU that is theirs."""
    engine = opened(nodes, tmp_path, gpus=1.0, cpus=0.5)
    assert engine.workers == 2
    assert set(engine.map(work.number, range(20), description="numbers")) == {0, 1}
    assert opened(nodes, tmp_path, gpus=0.5, cpus=0.25).workers == 4
    assert gpu_number([], None) == gpu_number(["3"], "2,3") - 1 == 0
    assert gpu_number(["GPU-b"], "GPU-a,GPU-b") == 1
    assert gpu_number([5], None) == 5


def test_secrets_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray writes what is passed on into its logs."""
    for name in ("HF_TOKEN", "HF_HOME", "VAG_API_KEY", "OTHER"):
        monkeypatch.setenv(name, "x")
    passed = ray_engine._passed()
    assert "HF_HOME" in passed
    assert not {"HF_TOKEN", "VAG_API_KEY", "OTHER"} & set(passed)


@pytest.mark.long
def test_a_dead_worker_is_tried_again_and_then_reported(nodes: Nodes, work: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"deadly: .* Tries: 1; see engine\.retries"):
        list(opened(nodes, tmp_path, retries=0).map(work.die, range(2), description="deadly"))
    paths = [tmp_path / str(k) for k in range(3)]
    assert all(opened(nodes, tmp_path, retries=1).map(work.die_once, paths, description="clumsy"))


@pytest.mark.parametrize("keep_going", [True, False])
def test_a_graph_is_that_of_the_local_engine(
    nodes: Nodes, work: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], keep_going: bool
) -> None:
    """In this order: b needs a, after_bad can never begin; what is done counts."""
    steps = [
        work.Step("b", {"a", "before"}),
        work.Step("a"),
        work.Step("bad"),
        work.Step("after_bad", {"bad"}),
        work.Step("lost", {"nowhere"}),
    ]
    found = {}
    for name, engine in (("ray", opened(nodes, tmp_path)), ("local", LocalEngine(2))):
        folder = tmp_path / name
        folder.mkdir()
        failed, left = engine.graph(work.Mark(folder), steps, {"before"}, keep_going)
        found[name] = ([step.name for step in failed], sorted(step.name for step in left))
        if keep_going:
            assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
        assert found[name][0] == ["bad"]
    if keep_going:
        assert found["ray"] == found["local"] == (["bad"], ["after_bad", "lost"])
    assert "bad is spoilt" in capfd.readouterr().err


def test_what_needs_a_lost_node_never_begins(nodes: Nodes, work: ModuleType, tmp_path: Path) -> None:
    """Where it is given up, that is a failure, and the others go on."""
    steps = [work.Step("dies"), work.Step("after", {"dies"}), work.Step("last", {"after"}), work.Step("a")]
    failed, left = opened(nodes, tmp_path, retries=0).graph(work.Mark(tmp_path), steps, set(), True)
    assert [step.name for step in failed] == ["dies"]
    assert sorted(step.name for step in left) == ["after", "last"]
    assert (tmp_path / "a").exists()


def test_signals_stay_ours(nodes: Nodes, tmp_path: Path) -> None:
    """Ray puts a handler of its own in place of that by which commands clean up."""
    import ray

    ray.shutdown()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        opened(nodes, tmp_path)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_each_node_of_a_graph_has_what_it_asks_for(nodes: Nodes, work: ModuleType, tmp_path: Path) -> None:
    asked = {"one": Resources(1.0, 1.0), "none": Resources(0.5, 0.0)}
    engine = open_engine(
        EngineConfig(kind="ray", address=nodes.address), tmp_path, resources=lambda step: asked[step.name]
    )
    assert engine.graph(work.NoteGpus(tmp_path), [work.Step("one"), work.Step("none")], set(), False) == ([], [])
    assert (tmp_path / "one").read_text() in ("0", "1")
    assert (tmp_path / "none").read_text() == ""
    asked["one"] = Resources(1.0, 3.0)
    with pytest.raises(UserError, match=r"engine\.gpus=3: the largest node of this cluster has 2 GPUs"):
        engine.graph(work.NoteGpus(tmp_path), [work.Step("one")], set(), False)


def test_refused_before_work_begins(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"gpus": 5.0}, r"engine\.gpus=5: the largest node of this cluster has 2 GPUs; ask for less"),
        ({"cpus": 8.0}, r"engine\.cpus=8: the largest node of this cluster has 1 CPUs"),
    ):
        with pytest.raises(UserError, match=message):
            opened(nodes, tmp_path, **options)
    monkeypatch.setattr(ray_engine, "_look", lambda path, folder: (None, True, "0"))
    with pytest.raises(UserError, match=r"engine\.address=.*: node .* does not see .*disk that all nodes share"):
        opened(nodes, tmp_path)
    monkeypatch.setattr(ray_engine, "_look", lambda path, folder: (Path(path).read_text(), False, "0"))
    with pytest.raises(UserError, match="has no directory"):
        opened(nodes, tmp_path)
    monkeypatch.setattr(ray_engine, "_look", lambda path, folder: (Path(path).read_text(), True, "another"))
    with pytest.raises(UserError, match="runs commit another, this machine"):
        opened(nodes, tmp_path)
    with pytest.raises(UserError, match=r"engine\.address=127.0.0.1:9: this process is connected to the cluster at"):
        open_engine(EngineConfig(kind="ray", address="127.0.0.1:9"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_address_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds: Ray itself waits for minutes."""
    pytest.importorskip("ray")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    began = time.monotonic()
    for address, message in (
        ("127.0.0.1:9", r"engine\.address=127\.0\.0\.1:9: no Ray cluster answers"),
        ("127.0.0.1:99999", "no Ray cluster answers"),
        ("nowhere", "expected host:port"),
        ("ray://127.0.0.1:10001", "expected host:port"),
    ):
        with pytest.raises(UserError, match=message):
            open_engine(EngineConfig(kind="ray", address=address), tmp_path)
    assert time.monotonic() - began < 20


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        UserError, match=r"the package ray is not installed; pip install 'lerobot_policy_vag\[cluster\]'"
    ):
        open_engine(EngineConfig(kind="ray"), tmp_path)


def test_order_of_needs(work: ModuleType) -> None:
    steps = [
        work.Step("c", {"b"}),
        work.Step("b", {"a", "done"}),
        work.Step("a"),
        work.Step("x", {"y"}),
        work.Step("y", {"x"}),
    ]
    found = sorted_by_needs(steps, [Resources()] * 5, {"done"})
    assert [step.name for step, _ in found] == ["a", "b", "c"]


def test_a_lost_node_loses_nothing(work: ModuleType, tmp_path: Path) -> None:
    with two_nodes() as nodes:
        engine = opened(nodes, tmp_path)
        paths = [tmp_path / f"{k:02d}" for k in range(12)]
        found = []
        for path in engine.map(work.slow_mark, paths, description="lossy"):
            found.append(path)
            if len(found) == 4:
                nodes.kill_one()
        assert found == paths
        assert list(opened(nodes, tmp_path).map(work.slow_square, [3], description="at once")) == [9]
        assert all(path.exists() for path in paths)
        ended = time.monotonic() + 60
        while engine.workers > 1:  # the head has not heard of it yet
            assert time.monotonic() < ended
            time.sleep(0.2)
        with pytest.raises(UserError, match="no node is left with 1 CPUs and 2 GPUs"):
            engine._check_left([Resources(1.0, 2.0)], "map")
    assert os.environ.get("RAY_ADDRESS") is None
