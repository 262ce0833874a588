"""`vag benchmark engine` at a tiny size: every system takes its turns, and the record says what they made."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.benchmark_engine import tree_memory
from recipes.cli import main

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_engines_take_turns(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    words = ["episodes=1", "repeats=1", "memory_episodes=2", f"before={ROOT}", f"out={tmp_path / 'out'}"]
    assert main(["benchmark", "engine", *words]) == 0
    record = json.loads((tmp_path / "out/record.json").read_text())
    assert record == json.loads(capfd.readouterr().out.strip().splitlines()[-2])
    rows = {(row["suite"], row["system"], row["metric"]): row["value"] for row in record["rows"]}
    speeds = [
        (c, s, "episodes_per_minute") for c in ("collect", "replay", "synthesize") for s in ("local", "ray", "before")
    ]
    many = ("synthesize", "local")
    assert list(rows) == [
        *speeds,
        ("start", "ray", "start_up_seconds"),
        (*many, "peak_mib_of_first_quarter"),
        (*many, "peak_mib"),
    ]
    assert all(value > 0 for value in rows.values())
    assert rows[*many, "peak_mib"] >= rows[*many, "peak_mib_of_first_quarter"] > 200
    ratios = {(one["suite"], one["b"]): one["value"] for one in record["comparisons"]}
    for (command, other), ratio in ratios.items():
        expected = rows[command, "local", "episodes_per_minute"] / rows[command, other, "episodes_per_minute"]
        assert ratio == pytest.approx(expected, rel=1e-3)
    assert len(ratios) == 6
    assert "before=" in record["command"]
    assert not (tmp_path / "out/scratch").exists()


def test_what_is_no_checkout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "engine", f"before={tmp_path}", f"out={tmp_path / 'out'}"]) == 2
    assert "expected a checkout of this project" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_memory_counts_children() -> None:
    blob = "x = bytearray(100_000_000); import time; time.sleep(60)"
    child = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {blob!r}]); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    try:
        ended = time.monotonic() + 30
        while tree_memory(process.pid) < 100_000_000:
            assert time.monotonic() < ended
            time.sleep(0.1)
    finally:
        subprocess.run(["pkill", "-s", str(process.pid)], check=False)
        process.wait()
    assert tree_memory(process.pid) == 0
