"""Damaged HDF5 and Parquet files: one line each, no traceback, no crash, nothing left behind.

A short version runs with the tests; `python tests/test_fuzz.py 2000` runs the long one and prints a JSON line.
"""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

STEPS = 5
SIZE = 16
SECONDS = 120  # a file that takes longer counts as a hang

# ------------------------------------------------------------------------------------------------- whole files


def write_sources(folder: Path) -> list[Path]:
    """One small file of every HDF5 layout, and a LeRobotDataset."""
    from toolkit.data.lerobot_io import EpisodeWriter
    from toolkit.data.schema import Episode

    rng = np.random.default_rng(0)

    def pictures() -> np.ndarray:
        return rng.integers(0, 256, (STEPS, SIZE, SIZE, 3), dtype=np.uint8)

    def vectors(width: int) -> np.ndarray:
        return rng.normal(size=(STEPS, width)).astype(np.float32)

    def demos(name: str, observations: dict[str, Any], language: dict[str, str], top: dict[str, str]) -> Path:
        path = folder / f"{name}.hdf5"
        with h5py.File(path, "w") as file:
            file.create_group("data").attrs.update(top)
            for k in range(2):
                demo = file.create_group(f"data/demo_{k}")
                demo.attrs.update({"num_samples": STEPS, **language})
                demo["actions"] = vectors(7)
                for key, make in observations.items():
                    demo.create_dataset(f"obs/{key}", data=make(), compression="gzip" if k else None)
        return path

    paths = [
        demos(
            "robomimic",
            {
                "agentview_image": pictures,
                "robot0_eef_pos": lambda: vectors(3),
                "robot0_eef_quat": lambda: vectors(4),
                "robot0_gripper_qpos": lambda: vectors(2),
            },
            {"language_instruction": "lift the cube"},
            {"env_args": json.dumps({"env_name": "Lift"})},
        ),
        demos(
            "libero",
            {
                "agentview_rgb": pictures,
                "eye_in_hand_rgb": pictures,
                "ee_states": lambda: vectors(6),
                "gripper_states": lambda: vectors(2),
            },
            {},
            {"problem_info": json.dumps({"language_instruction": "open the drawer"})},
        ),
        demos(
            "bridge",
            {"image_0": pictures, "state": lambda: vectors(7)},
            {"language_instruction": "put the cup into the sink", "episode_id": "3"},
            {},
        ),
    ]
    path = folder / "aloha.hdf5"
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = True
        file["action"], file["observations/qpos"] = vectors(14), vectors(14)
        file["observations/images/cam_high"] = pictures()
    paths.append(path)
    with EpisodeWriter(folder / "lerobot", 20, ["y", "x"], ["dy", "dx"]) as writer:
        for k in range(2):
            writer.add(Episode(pictures(), vectors(2), vectors(2), "move", {"seed": k, "task_name": "push"}))
    return [*paths, folder / "lerobot"]


# --------------------------------------------------------------------------------------------------- mutations


def flip_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    places = rng.integers(len(array), size=int(rng.integers(1, 20)))
    array[places] = rng.integers(0, 256, size=len(places))
    return array.tobytes()


def flip_metadata(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes of the headers only: the first 4 kB in HDF5, the footer in Parquet."""
    cut = min(4096, len(data))
    if data[:4] == b"PAR1":
        return data[:-cut] + flip_bytes(data[-cut:], rng)
    return flip_bytes(data[:cut], rng) + data[cut:]


def truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(len(data)))]


def overwrite_block(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 2048))
    filler = bytes(length) if rng.random() < 0.5 else rng.bytes(length)
    return data[:start] + filler + data[start + length :]


def repeat_block(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 2048))
    return data[: start + length] + data[start:]


BYTES: list[Callable[[bytes, np.random.Generator], bytes]] = [
    *(flip_bytes, flip_metadata, flip_metadata, truncate, overwrite_block, repeat_block),
]


def mutate_tree(path: Path, rng: np.random.Generator) -> None:
    """Change one thing in an HDF5 file that stays valid: a key, a shape, a type, a value, an attribute."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = names[int(rng.integers(len(names)))]
        choice = int(rng.integers(7))
        if choice == 0:
            del file[name]
        elif choice == 1 and file[name].attrs:
            key = sorted(file[name].attrs)[0]
            file[name].attrs[key] = [b"\xff\xfe", -1, np.nan, "", np.zeros(3)][int(rng.integers(5))]
        elif choice == 2:
            file[name].attrs["compress"] = True
        else:
            value: Any = [
                np.zeros((0, 7), np.float32),
                np.full((STEPS, 7), np.nan, np.float32),
                np.zeros((STEPS + 1, 7), np.float32),
                np.zeros((STEPS, 7), np.complex64),
                np.array([b"text"] * STEPS),
                np.float32(1),
                np.zeros((STEPS, SIZE, SIZE), np.uint8),
                np.zeros((STEPS, SIZE, SIZE, 3), np.float32),
                np.zeros((STEPS, 40), np.uint8),
            ][int(rng.integers(9))]
            del file[name]
            file[name] = value


def mutate_table(path: Path, rng: np.random.Generator) -> None:
    """Change one thing in a Parquet file that stays valid: a column, a type, a value, the number of rows."""
    table = pd.read_parquet(path)
    column = table.columns[int(rng.integers(len(table.columns)))]
    row = int(rng.integers(len(table)))
    choice = int(rng.integers(7))
    if choice == 0:
        table = table.drop(columns=column)
    elif choice == 1:
        table = table.iloc[:row]
    elif choice == 2:
        table[column] = [["text", None, float("nan"), -1, 10**12][int(rng.integers(5))]] * len(table)
    elif choice == 3:
        table[column] = table[column].astype(object)
        table.at[table.index[row], column] = None
    elif choice == 4 and isinstance(table[column].iloc[0], np.ndarray):
        cells = list(table[column])
        cells[row] = cells[row][: len(cells[row]) // 2]
        table[column] = cells
    elif choice == 5:
        table = pd.concat([table, table.iloc[row:]])
    else:
        table = table.rename(columns={column: "renamed"})
    table.to_parquet(path)


def mutate(source: Path, target: Path, rng: np.random.Generator) -> str:
    """Copy a source and damage one of its files; returns what was done."""
    if source.is_dir():
        shutil.copytree(source, target)
        files = sorted(target.rglob("*.parquet"))
        victim = files[int(rng.integers(len(files)))]
    else:
        shutil.copy(source, target)
        victim = target
    structural = mutate_table if source.is_dir() else mutate_tree
    if rng.random() < 0.4:
        with contextlib.suppress(Exception):  # not every change can be written; then the file stays as it is
            structural(victim, rng)
        return f"{victim.name}: {structural.__name__}"
    function = BYTES[int(rng.integers(len(BYTES)))]
    victim.write_bytes(function(victim.read_bytes(), rng))
    return f"{victim.name}: {function.__name__}"


# ------------------------------------------------------------------------------------------------------ running


def run_one(index: int, seed: int, sources: list[Path], folder: Path) -> dict[str, Any]:
    """Damage one file, import it, and for a dataset inspect it; what happened, and what lies around afterwards."""
    from recipes import cli

    rng = np.random.default_rng((seed, index))
    source = sources[index % len(sources)]
    place = folder / "work"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    damage = mutate(source, place / source.name, rng)
    outcome = {"index": index, "damage": damage, "result": "refused"}
    given = [path.name for path in place.iterdir()]
    commands = [["import", str(place / source.name), "task=move", f"out={place / 'out'}"]]
    if source.is_dir():
        commands.append(["inspect", str(place / source.name), f"out={place / 'inspected'}"])
    for words in commands:
        screen = io.StringIO()
        try:
            with contextlib.redirect_stderr(screen), contextlib.redirect_stdout(screen):
                code = cli.main(words)
        except BaseException:
            return {**outcome, "result": "traceback", "text": traceback.format_exc()[-1500:]}
        if "Traceback" in screen.getvalue():
            return {**outcome, "result": "traceback", "text": screen.getvalue()[-1500:]}
        if code == 0 and words[0] == "import":
            outcome["result"] = "imported"
        elif words[0] == "import" and "vag: error:" not in screen.getvalue():
            return {**outcome, "result": "silent", "text": screen.getvalue()[-500:]}
    if outcome["result"] == "refused":
        left = sorted(str(p.relative_to(place)) for p in (place / "out").rglob("*") if p.name != "run.json")
        left += sorted(path.name for path in place.iterdir() if path.name not in (*given, "out", "inspected"))
    else:
        left = [str(path) for path in place.rglob(".*partial*")]
    left += [str(path) for path in Path(os.environ["VAG_CACHE"]).rglob(".*partial*")]
    return {**outcome, "result": "leftovers", "text": str(left)} if left else outcome


def worker(first: int, count: int, seed: int, folder: Path) -> None:
    """Files first, first + 1, ... up to count; one JSON line before and after each."""
    import signal

    sources = sorted((folder / "sources").iterdir())
    for index in range(first, count):
        print(json.dumps({"begin": index}), flush=True)
        signal.alarm(SECONDS)
        print(json.dumps(run_one(index, seed, sources, folder)), flush=True)


def fuzz(count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Counts of outcomes over `count` damaged files, and the first of those that went wrong."""
    (folder / "sources").mkdir(parents=True)
    write_sources(folder / "sources")
    results: list[dict[str, Any]] = []
    environment = {**os.environ, "VAG_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "temporary")}
    (folder / "temporary").mkdir()
    while len(results) < count:
        command = [sys.executable, __file__, "worker", str(len(results)), str(count), str(seed), str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        results += [line for line in lines if "result" in line]
        if len(results) < count:  # it died: of the file it had begun, or before the first
            assert lines, done.stderr[-2000:]
            results.append({"index": lines[-1]["begin"], "result": f"died ({done.returncode})"})
    bad = [r for r in results if r["result"] not in ("refused", "imported")]
    left = [str(path) for path in (folder / "temporary").iterdir()]
    return {"files": count, "outcomes": Counter(r["result"] for r in results), "bad": bad[:20], "temporary_files": left}


@pytest.mark.slow
def test_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    found = fuzz(24, seed=1, folder=tmp_path / "fuzz")
    assert found["bad"] == []
    assert found["temporary_files"] == []
    assert found["outcomes"]["refused"] > 5


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        worker(int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(fuzz(int(sys.argv[1]), int((sys.argv[2:] or [0])[0]), Path(scratch) / "fuzz")))
