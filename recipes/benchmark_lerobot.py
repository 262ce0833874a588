"""`vag benchmark lerobot`: our training and evaluation, side by side with LeRobot's own console scripts.

Both train the same policy on the same dataset, and roll the same checkpoint out on the same scenes. They take turns,
so that a slow moment of the machine meets each of them. Each has a process of its own, in which LeRobot's is what its
console scripts call; start-up is left out.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.stock import load_policy
from recipes.benchmark_data import write_image_mode
from recipes.common import pick_device
from recipes.side_by_side import quartiles
from recipes.study_schema import BenchmarkLerobotConfig
from toolkit.base.engine import one_process
from toolkit.base.errors import UserError, first_line
from toolkit.base.files import scratch_folder
from toolkit.base.progress import progress
from toolkit.base.reading import read_json
from toolkit.base.run import Run
from toolkit.base.typed_json import to_json
from toolkit.data.cache import open_clips
from toolkit.data.formats.lerobot_layout import camera_keys, picture_size, read_info
from toolkit.data.images import as_size
from toolkit.evaluation.rollout import rollout
from toolkit.reporting.benchmark_record import write_record
from toolkit.reporting.benchmark_results import BenchmarkLerobotResult, Ratio, Row
from toolkit.training.runtime import RuntimeConfig, set_threads

LINE = re.compile(r"updt_s:([\d.]+)\s+data_s:([\d.]+)")  # of LeRobot's log: mean seconds of a step, and of its batch
VIDEO, IMAGES, UPDATE = "lerobot_train_video", "lerobot_train_images", "lerobot_update_alone"
STEPS = re.compile(rb"(\d+)/500 \[")  # of the progress bar of `lerobot-eval` on its own Meta-World
SIDE = 64  # pixels of the pictures that `vag pretrain` trains on
OURS, OURS_EVALUATION = "vag_pretrain", "vag_evaluate"
FAST, STOCK = "lerobot_eval_vag_metaworld", "lerobot_eval_metaworld"
NOTES = {
    "low_and_high": "quartiles over the turns; ratios are of turns of the same round",
    "training": "alike: policy, its size, dataset, batch size, number of steps, optimiser, threads. Unlike: vag also "
    "keeps an average of the weights, and its diffusion reads the instruction, which LeRobot's is not given; LeRobot's "
    "time is updt_s + data_s of its log, which leaves out its logging. The first timed part of each turn is left out",
    IMAGES: "the same pictures as PNG in memory-mapped Arrow tables: the nearest to data in memory that LeRobot has",
    UPDATE: "updt_s alone, without workers, which take cores from it: LeRobot's step as if its data came "
    "for nothing. No LeRobot user can have it",
    "evaluation": "alike: checkpoint, scenes, most steps, scenes side by side in one process, no start-up. Unlike: "
    "vag draws a picture for a new chunk alone, LeRobot's tool one with every step, and it writes each to a video; "
    "their noise differs",
    FAST: "the same pictures as vag_evaluate",
    STOCK: "LeRobot's own Meta-World: pictures of 480x480 with shadows, drawn twice a step (for the policy and for the "
    "video), one scene; timed between updates of its progress bar for stock_steps, then stopped, since a failed "
    "episode has 500",
}


def run(config: BenchmarkLerobotConfig, run: Run) -> BenchmarkLerobotResult:
    """Write `record.json` and `record.md`; print the record as one line."""
    for key in ("policies", "workers"):
        if not getattr(config, key):
            raise UserError(f"benchmark lerobot: {key}=[] is empty; name at least one")
    if config.steps < 2 * config.log_every:
        raise UserError(f"steps={config.steps}: expected at least 2 * log_every={2 * config.log_every}")
    load = os.getloadavg()[1]
    with scratch_folder(run.directory / "scratch") as scratch:
        rows, comparisons = Turns(config, scratch).all()
    notes = {
        **NOTES,
        "load_before": f"{load:.1f} processes running on {os.cpu_count()} cores, mean of five minutes",
        "load_after": f"{os.getloadavg()[1]:.1f} processes",
    }
    default = vars(BenchmarkLerobotConfig())
    changed = {k: v for k, v in vars(config).items() if v != default[k] and k not in ("out", "overwrite", "resume")}
    words = [f"{k}=[{','.join(map(str, v))}]" if isinstance(v, list) else f"{k}={v}" for k, v in changed.items()]
    command = " ".join(["vag benchmark lerobot", *words])
    record = write_record(run.directory, "lerobot", command, rows, comparisons, notes)
    print(json.dumps(to_json(record)), flush=True)
    return BenchmarkLerobotResult(rows=rows, comparisons=comparisons)


class Turns:
    """All turns of the benchmark, in files below `scratch`."""

    def __init__(self, config: BenchmarkLerobotConfig, scratch: Path) -> None:
        self.config, self.scratch, self.count = config, scratch, 0
        self.rows: list[Row] = []
        self.comparisons: list[Ratio] = []

    def all(self) -> tuple[list[Row], list[Ratio]]:
        config = self.config
        turns = len(config.policies) * (1 + 2 * len(config.workers) * (len(config.workers) > 1) + 6 * config.repeats)
        turns += (config.dataset is None) + config.repeats * (config.stock_steps > 0)
        with (
            progress(description="benchmark lerobot", total=turns, unit="turn") as self.bar,
            one_process("benchmark lerobot", partial(torch.set_num_threads, config.threads)) as self.ours,
            one_process("benchmark lerobot", partial(torch.set_num_threads, config.threads)) as self.theirs,
        ):
            datasets = self._datasets()
            for number, policy in enumerate(config.policies):
                first = self._pretrain(policy, datasets[VIDEO], config.log_every + 1)[1]
                self._compare_training(policy, first, datasets)
                self._compare_evaluation(policy, first / "pretrained_model", config.stock_steps > 0 and number == 0)
        return self.rows, self.comparisons

    def _datasets(self) -> dict[str, Path]:
        """The dataset, and the same as pictures; both must have the size that policies get."""
        dataset = Path(self.config.dataset).absolute() if self.config.dataset else self._collect()
        camera = camera_keys(info := read_info(dataset))[0]
        height, width = picture_size(info, camera)
        if (height, width) != (SIDE, SIDE):
            raise UserError(f"{dataset}: pictures are {height}x{width}; LeRobot scales none, so give {SIDE}x{SIDE}")
        write_image_mode(self.scratch / "images", open_clips(dataset, SIDE, [camera], storage="raw"))
        return {VIDEO: dataset, IMAGES: self.scratch.absolute() / "images"}

    def _collect(self) -> Path:
        out = self._new("collect")
        words = [f"tasks=[{self.config.task}]", f"episodes_per_task={self.config.episodes}", f"out={out}"]
        self._do(self.ours, run_vag, "collect", words)
        return out / "dataset"

    def _compare_training(self, policy: str, first: Path, datasets: dict[str, Path]) -> None:
        """Find LeRobot's best number of workers for each dataset, then alternate."""
        config, best = self.config, dict[str, int]()
        for system, dataset in datasets.items():
            speeds = dict.fromkeys(config.workers, 0.0)
            for workers in config.workers if len(speeds) > 1 else ():
                speeds[workers], _ = self._lerobot_train(first, dataset, workers, 2 * config.log_every)
                self._row(policy, system, "search", f"samples_per_second_{workers}_workers", [speeds[workers]])
            best[system] = max(speeds, key=lambda workers: speeds[workers])
        values: dict[str, list[float]] = {OURS: [], VIDEO: [], IMAGES: [], UPDATE: []}
        for _ in range(config.repeats):
            values[OURS].append(self._pretrain(policy, datasets[VIDEO], config.steps)[0])
            for system, dataset in datasets.items():
                values[system].append(self._lerobot_train(first, dataset, best[system], config.steps)[0])
            values[UPDATE].append(self._lerobot_train(first, datasets[IMAGES], 0, config.steps)[1])
        for system, speeds_of in values.items():
            more = {"workers": best[system]} if system in best else {}
            self._row(policy, system, "training", "samples_per_second", speeds_of, **more)
        self._ratios(policy, "training", values, OURS)

    def _compare_evaluation(self, policy: str, checkpoint: Path, stock: bool) -> None:
        values: dict[str, list[float]] = {OURS_EVALUATION: [], FAST: []}
        if stock:
            values[STOCK] = []
        solved = {OURS_EVALUATION: 0, FAST: 0}
        for _ in range(self.config.repeats):
            for system, evaluate in ((OURS_EVALUATION, self._vag_evaluate), (FAST, self._lerobot_eval)):
                seconds, steps, count = evaluate(checkpoint)
                values[system].append(steps / seconds)
                solved[system] += count
            if stock:
                values[STOCK].append(self._lerobot_eval_stock(checkpoint))
        for system, speeds in values.items():
            episodes = self.config.scenes * self.config.repeats
            more = {"successes": solved[system], "episodes": episodes} if system in solved else {}
            self._row(policy, system, "evaluation", "steps_per_second", speeds, **more)
        self._ratios(policy, "evaluation", values, OURS_EVALUATION)

    def _pretrain(self, policy: str, dataset: Path, steps: int) -> tuple[float, Path]:
        """Samples per second, and the directory of the run."""
        config, out = self.config, self._new(policy)
        words = [
            *(f"policy={policy}", f"real=['{dataset}']", f"optim.steps={steps}", f"optim.checkpoint_every={steps}"),
            *(f"optim.batch_size={config.batch_size}", f"optim.log_every={config.log_every}"),
            *(f"runtime.threads={config.threads}", f"seed={config.seed}", f"out={out}"),
        ]
        self._do(self.ours, run_vag, "pretrain", words)
        return float(read_json(out / "run.json")["result"]["throughput"]["samples_per_second"]), out

    def _lerobot_train(self, first: Path, dataset: Path, workers: int, steps: int) -> tuple[float, float]:
        """Samples per second, and as if the data came for nothing; settings are those of the run `first`."""
        config = self.config
        words = [
            *(f"--config_path={first / 'pretrained_model/train_config.json'}", f"--dataset.root={dataset}"),
            *(f"--steps={steps}", f"--batch_size={config.batch_size}", f"--num_workers={workers}"),
            *(f"--log_freq={config.log_every}", "--save_checkpoint=false", "--policy.push_to_hub=false"),
            f"--output_dir={self._new('lerobot_train')}",
        ]
        log = self._do(self.theirs, run_lerobot, "lerobot-train", words)
        parts = np.array([[float(number) for number in line] for line in LINE.findall(log)])[1:]
        if not len(parts):
            raise UserError("lerobot-train wrote no line with updt_s and data_s; this LeRobot has another log")
        update, data = parts.mean(0)
        return config.batch_size / (update + data), config.batch_size / update

    def _vag_evaluate(self, checkpoint: Path) -> tuple[float, int, int]:
        """Seconds, steps and episodes solved."""
        config = self.config
        seeds = list(range(config.first_seed, config.first_seed + config.scenes))
        arguments = (str(checkpoint), config.task, seeds, config.max_steps, config.threads, config.seed)
        return self._do(self.ours, evaluate_scenes, *arguments)

    def _lerobot_eval(self, checkpoint: Path) -> tuple[float, int, int]:
        """Seconds, steps and episodes solved, on `vag_metaworld`."""
        config, out = self.config, self._new("lerobot_eval")
        world = ["--env.type=vag_metaworld", f"--env.task={config.task}", f"--env.episode_length={config.max_steps}"]
        self._do(self.theirs, run_lerobot, "lerobot-eval", [*self._eval_words(checkpoint, out, config.scenes), *world])
        results = read_json(out / "eval_info.json")
        (metrics,) = (result["metrics"] for result in results["per_task"])
        steps = sum(frames_of(Path(path)) for path in metrics["video_paths"])
        return float(results["overall"]["eval_s"]), steps, sum(metrics["successes"])

    def _lerobot_eval_stock(self, checkpoint: Path) -> float:
        """Steps per second on LeRobot's own Meta-World, between two updates of its progress bar; then it is stopped."""
        words = [script("lerobot-eval"), *self._eval_words(checkpoint, self._new("lerobot_eval_stock"), 1)]
        words += ["--env.type=metaworld", f"--env.task={self.config.task}-v3"]
        seen: list[tuple[float, int]] = []
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(self.config.threads)}
        # A process of its own: stock Meta-World is not to meet our renderer's OpenGL context.
        with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as tool:
            try:
                assert tool.stderr is not None
                text = b""
                while part := os.read(tool.stderr.fileno(), 4096):
                    text = (text + part)[-8192:]
                    done = [int(number) for number in STEPS.findall(text)]
                    if done and done[-1] and (not seen or done[-1] > seen[-1][1]):
                        seen.append((time.perf_counter(), done[-1]))
                    if seen and seen[-1][1] >= self.config.stock_steps + seen[0][1]:
                        break
            finally:
                tool.kill()
        self.bar.update()
        if len(seen) < 2:
            last = (text.decode(errors="replace").strip().splitlines() or ["it printed nothing"])[-1]
            raise UserError(f"lerobot-eval on metaworld came to no second step: {last[-300:]}")
        (started, first), (ended, most) = seen[0], seen[-1]
        return (most - first) / (ended - started)

    def _eval_words(self, checkpoint: Path, out: Path, scenes: int) -> list[str]:
        words = [f"--policy.path={checkpoint}", f"--output_dir={out}"]
        words += [f"--eval.n_episodes={scenes}", f"--eval.batch_size={scenes}", "--eval.use_async_envs=false"]
        return [*words, f"--seed={self.config.first_seed}"]

    def _do(self, call: Callable[..., Any], turn: Callable[..., Any], *arguments: Any) -> Any:
        """A turn in one of the two processes."""
        result = call(turn, *arguments)
        self.bar.update()
        return result

    def _new(self, name: str) -> Path:
        self.count += 1
        return self.scratch.absolute() / f"{self.count:03d}_{name}"

    def _row(self, policy: str, system: str, suite: str, metric: str, values: Sequence[float], **more: Any) -> None:
        n = len(values)
        numbers = ", ".join(f"{value:.4g}" for value in values)
        self.bar.write(f"{policy} {suite} {system} {metric}: {numbers}")  # what a run that is stopped has measured
        self.rows.append(
            Row(system=system, suite=suite, metric=metric, policy=policy, n=n, more=more, **quartiles(values))
        )

    def _ratios(self, policy: str, suite: str, values: dict[str, list[float]], ours: str) -> None:
        for system, speeds in values.items():
            if system != ours:
                ratio = quartiles(np.divide(values[ours], speeds))
                common: Any = {"suite": suite, "metric": "speed_ratio", "policy": policy, "paired": True}
                self.comparisons.append(Ratio(a=ours, b=system, **common, **ratio))


def evaluate_scenes(
    checkpoint: str, task: str, seeds: list[int], max_steps: int, threads: int, seed: int
) -> tuple[float, int, int]:
    """As `vag evaluate` rolls out, after a policy is loaded: seconds, steps and episodes solved."""
    set_threads(RuntimeConfig(threads=threads))
    policy = load_policy(checkpoint, pick_device(RuntimeConfig()))
    size = as_size(list(policy.picture_size), "image_size")
    started = time.perf_counter()
    rollouts = rollout(policy, {task: seeds}, max_steps=max_steps, image_size=size, record_first=3, seed=seed)
    seconds = time.perf_counter() - started
    return seconds, sum(r.steps for r in rollouts), sum(bool(r.success) for r in rollouts)


def frames_of(video: Path) -> int:
    """Pictures of a video of `lerobot-eval`: the steps of its episode."""
    import av

    with av.open(str(video)) as container:
        frames = int(container.streams.video[0].frames)
    return frames  # noqa: RET504  (mypy takes the context for one that may swallow errors)


def run_vag(command: str, words: list[str]) -> str:
    """Run one of our commands and return what it said."""
    from recipes.cli import execute

    with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
        execute(command, words)
    return said.getvalue()


def run_lerobot(name: str, words: list[str]) -> str:
    """Run what one of LeRobot's console scripts calls; what it said. Raises UserError if it fails."""
    main = importlib.import_module(f"lerobot.scripts.{name.replace('-', '_')}").main
    before, sys.argv = sys.argv, [name, *words]
    try:
        with redirect_stdout(io.StringIO()) as said, redirect_stderr(said):
            main()
    except (Exception, SystemExit) as error:
        last = [first_line(error), *said.getvalue().strip().splitlines()][-1 if isinstance(error, SystemExit) else 0]
        raise UserError(f"{name} failed: {last}") from None
    finally:
        sys.argv = before
    return said.getvalue()


def script(name: str) -> str:
    """The path of one of LeRobot's console scripts. Raises UserError where it is not installed."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise UserError(f"{path} is missing; pip install 'lerobot_policy_vag[robot]' in this environment")
    return str(path)


def summary(result: BenchmarkLerobotResult) -> str:
    return ", ".join(f"{c.policy} {c.suite} {c.value:.3g} x {c.b}" for c in result.comparisons)
