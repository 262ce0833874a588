"""`vag collect`: scripted experts with operator noise stand in for teleoperation; successes become a dataset."""

from __future__ import annotations

import shutil
import time
from typing import Any

from recipes.schema import CollectConfig
from toolkit.data.lerobot_io import EpisodeWriter
from toolkit.envs.metaworld import ACTION_NAMES, FPS, STATE_NAMES, instructions
from toolkit.envs.pool import parallel_map
from toolkit.envs.recording import Attempt, load_attempt, record_attempt
from toolkit.errors import UserError, nearest
from toolkit.reporting.run_record import Run

MAX_ATTEMPTS = 8  # times the episodes asked for


def run(config: CollectConfig, run: Run) -> None:
    """Collect `episodes_per_task` successful episodes of each task and write `dataset`."""
    if not config.tasks:
        raise UserError("collect: tasks=[] is empty; name at least one, e.g. tasks=[push]")
    tasks = [task.removesuffix("-v3") for task in config.tasks]
    for task in tasks:
        if task not in instructions():
            raise UserError(f"unknown Meta-World task '{task}'. {nearest(task, instructions())}")
    started = time.perf_counter()
    spool = run.directory / ".spool"
    spool.mkdir(exist_ok=True)
    kept, attempts = dict.fromkeys(tasks, 0), dict.fromkeys(tasks, 0)
    with EpisodeWriter(run.directory / "dataset", FPS, STATE_NAMES, ACTION_NAMES) as writer:
        while pending := [task for task in tasks if kept[task] < config.episodes_per_task]:
            items = []
            for k in range(config.episodes_per_task):  # tasks in turn, so that a prefix of the dataset is balanced
                for task in pending:
                    if k < config.episodes_per_task - kept[task]:
                        seed = config.first_seed + attempts[task]
                        attempts[task] += 1
                        path = spool / f"{task}-{seed}.npz"
                        items.append(Attempt(task, seed, config.num_steps, config.image_size, config.noise_scale, path))
            outcomes = parallel_map(record_attempt, items, workers=config.workers, description="collect")
            for attempt, success in zip(items, outcomes, strict=True):
                if success:
                    writer.add(load_attempt(attempt))
                    kept[attempt.task] += 1
            for task in pending:
                if kept[task] < config.episodes_per_task and attempts[task] >= MAX_ATTEMPTS * config.episodes_per_task:
                    raise UserError(
                        f"collect: '{task}' succeeded {kept[task]} times in {attempts[task]} attempts of "
                        f"{config.num_steps} steps; raise num_steps, lower noise_scale or drop the task"
                    )
    shutil.rmtree(spool)
    episodes = sum(kept.values())
    run.result.update(
        episodes=episodes,
        attempts=sum(attempts.values()),
        frames=episodes * config.num_steps,
        episodes_per_minute=round(60 * episodes / (time.perf_counter() - started), 1),
        tasks={task: {"episodes": kept[task], "attempts": attempts[task]} for task in tasks},
        dataset="dataset",
    )


def summary(result: dict[str, Any]) -> str:
    return f"{result['episodes']} episodes ({result['attempts']} attempts), {result['episodes_per_minute']} a minute"
