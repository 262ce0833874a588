"""`vag benchmark engine`: the same commands by the processes of this machine, by Ray, and by an earlier commit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from omegaconf import OmegaConf

from recipes.compose import command_words, compose_config
from recipes.side_by_side import measured, quartiles
from recipes.study_schema import BenchmarkEngineConfig
from toolkit.base.errors import UserError
from toolkit.base.files import scratch_folder
from toolkit.base.progress import progress
from toolkit.base.reading import read_json
from toolkit.base.run import Run
from toolkit.base.typed_json import to_json
from toolkit.reporting.benchmark_record import write_record
from toolkit.reporting.benchmark_results import BenchmarkEngineResult, Ratio, Row
from vag_core import Generator, GeneratorConfig

LOCAL, RAY, BEFORE = "local", "ray", "before"
COMMANDS = ("collect", "replay", "synthesize")
HERE = Path(__file__).parents[1]
POLL = 0.2  # seconds between two looks at the memory of the processes
MEBIBYTE = 2**20
NOTES = {
    "turns": "each system in a process of its own, one after the other, in turn; episodes per minute of wall time from "
    "the first line of the run record to the last: without starting Python, with starting Ray and its workers",
    "start_up_seconds": "of Ray on this machine: from importing it to the first result of each of its workers",
    "intervals": "quartiles of the turns",
    "peak_mib": "largest sum of the resident memory of the command and its children, of looks "
    f"{POLL} s apart; in the first quarter of the time, and ever. Each episode ends on the disk",
}


def run(config: BenchmarkEngineConfig, run: Run) -> BenchmarkEngineResult:
    """Write `record.json` and `record.md`; print the record as one line."""
    before = None if config.before is None else Path(config.before).absolute()
    if before is not None and not (before / "recipes/cli.py").is_file():
        raise UserError(f"before={config.before}: expected a checkout of this project, such as of git worktree add")
    with scratch_folder(run.directory / "scratch") as scratch:
        rows, comparisons = Turns(config, scratch.absolute(), before).all()
    command = " ".join(["vag benchmark engine", *command_words("benchmark engine", run.record["config"])])
    record = write_record(run.directory, "engine", command, rows, comparisons, NOTES)
    print(json.dumps(to_json(record)), flush=True)
    return BenchmarkEngineResult(rows=rows, comparisons=comparisons)


class Turns:
    """All turns, in folders below `scratch`."""

    def __init__(self, config: BenchmarkEngineConfig, scratch: Path, before: Path | None) -> None:
        self.config, self.scratch, self.count = config, scratch, 0
        self.systems = {LOCAL: HERE, RAY: HERE} | ({} if before is None else {BEFORE: before})

    def all(self) -> tuple[list[Row], list[Ratio]]:
        config = self.config
        turns = config.repeats * (len(COMMANDS) * len(self.systems) + 1) + 2
        with progress(description="benchmark engine", total=turns, unit="turn") as self.bar:
            generator = Path(config.checkpoint).absolute() if config.checkpoint else self._generator()
            real, _ = self._vag(LOCAL, "collect", self._collect_words())
            speeds: dict[str, dict[str, list[float]]] = {c: {s: [] for s in self.systems} for c in COMMANDS}
            start_up = list[float]()
            for _ in range(config.repeats):
                for command in COMMANDS:
                    for system in self.systems:
                        words = self._words(command, generator, real / "dataset")
                        speeds[command][system].append(self._vag(system, command, words)[1])
                start_up.append(self._start_up())
            rows, comparisons = list[Row](), list[Ratio]()
            for command, by_system in speeds.items():
                for system, values in by_system.items():
                    rows.append(_row(system, command, "episodes_per_minute", values))
                for other in (name for name in self.systems if name != LOCAL):
                    ratios = quartiles(np.divide(by_system[LOCAL], by_system[other]))
                    comparisons.append(
                        Ratio(a=LOCAL, b=other, suite=command, metric="speed_ratio", paired=True, **ratios)
                    )
            rows.append(_row(RAY, "start", "start_up_seconds", start_up))
            rows += self._memory(generator)
        return rows, comparisons

    # --- turns ---

    def _collect_words(self) -> list[str]:
        return [f"tasks=[{self.config.task}]", f"episodes_per_task={self.config.episodes}", f"seed={self.config.seed}"]

    def _words(self, command: str, generator: Path, dataset: Path) -> list[str]:
        if command == "collect":
            return [*self._collect_words(), f"workers={self.config.workers}"]
        if command == "replay":
            return [f"dataset={dataset}", f"workers={self.config.workers}"]
        return [*self._synthesize_words(generator, self.config.episodes), f"shard_workers={self.config.workers}"]

    def _synthesize_words(self, generator: Path, episodes: int) -> list[str]:
        words = [f"checkpoint={generator}", f"tasks=[{self.config.task}]", f"episodes_per_task={episodes}"]
        return [*words, "allow_seen=true", "runtime.threads=1", f"seed={self.config.seed}"]

    def _vag(self, system: str, command: str, words: Sequence[str]) -> tuple[Path, float]:
        """One command in a process of its own: its run directory, and episodes per minute."""
        self.count += 1
        out = self.scratch / f"{self.count:03d}_{command}_{system}"
        engine = ["engine.kind=ray"] if system == RAY else []
        self._run(self.systems[system], [command, *words, *engine, f"out={out}"])
        self.bar.update()
        return out, 60 * self.config.episodes / float(read_json(out / "run.json")["wall_seconds"])

    def _run(self, root: Path, words: Sequence[str]) -> list[int]:
        """Run a command of a checkout to its end; the memory [byte] that it took, at each look.

        Raises UserError with its last line if it fails.
        """
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "policies/plugin")])}
        command = [sys.executable, "-m", "recipes.cli", *words]
        said, sizes = self.scratch / "said.txt", list[int]()
        with (
            said.open("wb") as file,
            subprocess.Popen(
                command, cwd=self.scratch, env=environment, stdout=file, stderr=subprocess.STDOUT
            ) as process,
        ):
            try:
                while process.poll() is None:
                    sizes.append(tree_memory(process.pid))
                    time.sleep(POLL)
            finally:
                process.terminate()
        if process.returncode:
            last = (said.read_text(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
            raise UserError(f"benchmark engine: vag {words[0]} of {root} failed: {last[-300:]}")
        return sizes

    def _start_up(self) -> float:
        """Seconds until Ray gives the first results, in a process of its own."""
        out = self.scratch / f"start_{self.count}"
        out.mkdir()
        script = (
            "import time, pathlib; began = time.perf_counter()\n"
            "from toolkit.base.engine import EngineConfig, open_engine\n"
            f"engine = open_engine(EngineConfig(kind='ray'), pathlib.Path({str(out)!r}))\n"
            "list(engine.map(str, range(2 * engine.workers), description='start'))\n"
            "print(time.perf_counter() - began)\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        said = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        if said.returncode:
            raise UserError(f"benchmark engine: Ray did not start: {(said.stderr.strip().splitlines() or ['?'])[-1]}")
        self.bar.update()
        return float(said.stdout.strip().splitlines()[-1])

    def _generator(self) -> Path:
        """One of the shipped size with random weights: what it makes is nothing, and takes as long."""
        path = self.scratch / "generator"
        whole: Any = compose_config("train-generator", ["dataset=none"])
        plain: Any = OmegaConf.to_container(whole.generator)
        Generator(GeneratorConfig.from_dict(plain)).save_pretrained(path)
        return path

    def _memory(self, generator: Path) -> list[Row]:
        """Of many episodes in shards, how memory grows."""
        count = self.config.memory_episodes
        out = self.scratch / "many"
        words = [*self._synthesize_words(generator, count), f"shard_workers={self.config.workers}", f"out={out}"]
        sizes = self._run(HERE, ["synthesize", *words])
        self.bar.update()
        first, most = max(sizes[: len(sizes) // 4 + 1]), max(sizes)
        made = int(read_json(out / "run.json")["result"]["episodes"])
        return measured(LOCAL, "synthesize", made, peak_mib_of_first_quarter=first / MEBIBYTE, peak_mib=most / MEBIBYTE)


def _row(system: str, suite: str, metric: str, values: Sequence[float]) -> Row:
    return Row(system=system, suite=suite, metric=metric, n=len(values), **quartiles(values))


def tree_memory(process: int) -> int:
    """Resident memory [byte] of a process and all that it started."""
    total = 0
    with suppress(psutil.Error):  # one that has ended
        parent = psutil.Process(process)
        for one in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.Error):
                total += one.memory_info().rss
    return total


def summary(result: BenchmarkEngineResult) -> str:
    return ", ".join(f"{c.suite}: local {c.value:.3g} x {c.b}" for c in result.comparisons)
