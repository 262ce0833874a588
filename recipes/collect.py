"""`vag collect`: scripted experts with operator noise stand in for teleoperation; successes become a dataset."""

from __future__ import annotations

import time
from pathlib import Path

from recipes.common import distinct_tasks
from recipes.schema import CollectConfig
from toolkit.base.engine import parallel_feed
from toolkit.base.errors import UserError, nearest
from toolkit.base.files import scratch_folder
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.envs.metaworld import ACTION_NAMES, FPS, STATE_NAMES, instructions, scene_stream
from toolkit.envs.recording import Attempt, load_attempt, record_attempt
from toolkit.reporting.results import Collected, CollectResult

MAX_ATTEMPTS = 8  # times the episodes asked for


def run(config: CollectConfig, run: Run) -> CollectResult:
    """Collect `episodes_per_task` successful episodes of each task and write `dataset`."""
    tasks = distinct_tasks("collect", config.tasks)
    for task in tasks:
        if task not in instructions():
            raise UserError(f"unknown Meta-World task '{task}'. {nearest(task, instructions())}")
    started = time.perf_counter()
    wanted = config.episodes_per_task
    attempts, pending = dict.fromkeys(tasks, 0), dict.fromkeys(tasks, 0)
    seeds = {task: scene_stream(task, config.first_seed, config.positions) for task in tasks}
    successes: dict[str, list[Attempt]] = {task: [] for task in tasks}

    def next_attempt() -> Attempt | None:
        """The task that is furthest behind gets the next seed; None while all have enough, or at work."""
        task = min(tasks, key=lambda task: len(successes[task]) + pending[task])
        if len(successes[task]) + pending[task] >= wanted:
            return None
        if attempts[task] >= MAX_ATTEMPTS * wanted:
            raise UserError(
                f"collect: '{task}' succeeded {len(successes[task])} times in {attempts[task] - pending[task]} "
                f"attempts of {config.num_steps} steps; raise num_steps, lower noise_scale or drop the task"
            )
        attempts[task] += 1
        pending[task] += 1
        return attempt_of(config, task, next(seeds[task]), spool)

    # Tasks in turn, so that any prefix is balanced; the order does not depend on who finishes first.
    order = iter([(task, k) for k in range(wanted) for task in tasks])
    bar = progress(description="collect", total=wanted * len(tasks), unit="ep")
    outcomes = parallel_feed(record_attempt, next_attempt, workers=config.workers, description="collect")
    with (
        scratch_folder(run.directory / "spool", kept=True) as spool,
        EpisodeWriter(run.directory / "dataset", FPS, STATE_NAMES, ACTION_NAMES) as writer,
    ):
        task, k = next(order)
        for attempt, success in outcomes:
            pending[attempt.task] -= 1
            if success:
                successes[attempt.task].append(attempt)
                bar.update()
            while k < len(successes[task]):
                writer.add(load_attempt(successes[task][k]))
                task, k = next(order, (task, wanted))
    bar.close()
    episodes = wanted * len(tasks)
    return CollectResult(
        episodes=episodes,
        attempts=sum(attempts.values()),
        frames=episodes * config.num_steps,
        episodes_per_minute=round(60 * episodes / (time.perf_counter() - started), 1),
        tasks={task: Collected(episodes=wanted, attempts=attempts[task]) for task in tasks},
        dataset="dataset",
    )


def attempt_of(config: CollectConfig, task: str, seed: int, spool: Path) -> Attempt:
    return Attempt(
        task,
        seed,
        config.num_steps,
        config.image_size,
        config.noise_scale,
        spool / f"{task}-{seed}.npz",
        operator=config.seed,
        render_every=config.render_every,
        hide_robot=config.hide_robot,
    )


def summary(result: CollectResult) -> str:
    return f"{result.episodes} episodes ({result.attempts} attempts), {result.episodes_per_minute} a minute"
