"""Damaged input: one line each, no traceback, no crash, nothing started, fetched, changed or left behind.

Recordings, datasets, clip files, checkpoints of policies and generators, and records of runs are damaged, in their
bytes and in what they say, and given to the commands that read them; see `tests/fuzz`. A short version runs with the
tests, 5,000 damages where $VAG_LONG is set; `python tests/test_fuzz.py 2000 [SEED]` prints a JSON line.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

LONG = "VAG_LONG" in os.environ
COUNT = 5000 if LONG else 100
MOST_MEGABYTES = 2048
WORKER = Path(__file__).parent / "fuzz/worker.py"
ENVIRONMENT = {
    "PYTHONPATH": str(WORKER.parents[2]),
    "HF_HUB_OFFLINE": "1",
    "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl"),
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def fuzz(count: int, seed: int, folder: Path, first: int = 0) -> dict[str, Any]:
    """Outcomes of `count` damages in one process, and those that went wrong; if it dies, another one goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **ENVIRONMENT}
    results: list[dict[str, Any]] = []
    done, peak = first, 0
    while done < first + count:
        command = [sys.executable, str(WORKER), str(done), str(first + count), str(seed), str(folder)]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
        begun = [line["begin"] for line in lines if "begin" in line]
        assert begun, (folder / "stderr").read_text(errors="replace")[-3000:] + ended.stderr[-3000:]
        results += [line["result"] for line in lines if "result" in line]
        peak = max([peak, *(line["megabytes"] for line in lines if "megabytes" in line)])
        done = begun[-1] + 1
        if ended.returncode != 0:
            hang = folder / "hang"
            where = hang.read_text(errors="replace")[-3000:] if hang.exists() else ""
            results.append({"index": begun[-1], "faults": [f"died ({ended.returncode}): {where}"], "code": None})
    bad = [result for result in results if result["faults"]]
    codes = Counter(str(result["code"]) for result in results)
    return {"damages": len(results), "codes": codes, "megabytes": peak, "bad": len(bad), "first": bad[:20]}


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600 if LONG else 900)
def test_damaged_input_is_refused_in_one_line_and_nothing_else_happens(tmp_path: Path) -> None:
    found = fuzz(COUNT, seed=1, folder=tmp_path / "fuzz")
    assert found["first"] == []
    assert found["damages"] == COUNT
    assert found["megabytes"] < MOST_MEGABYTES
    assert found["codes"]["2"] > COUNT / 4
    assert found["codes"]["0"] > COUNT / 10


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        number, chosen = int(sys.argv[1]), int((sys.argv[2:] or ["0"])[0])
        print(json.dumps(fuzz(number, chosen, Path(scratch) / "fuzz")))
