"""`vag collect`: scripted experts with operator noise stand in for teleoperation; successes become a dataset."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipes.schema import CollectConfig
from toolkit.data.lerobot_io import EpisodeWriter
from toolkit.data.schema import Episode
from toolkit.envs.metaworld import cached_env, record_episode
from toolkit.envs.pool import parallel_map
from toolkit.errors import UserError
from toolkit.reporting.run_record import Run

MAX_ATTEMPTS = 8  # times the episodes asked for


@dataclass(frozen=True)
class Recording:
    """One attempt, kept as a file so that a killed run goes on where it stopped."""

    task: str
    seed: int
    num_steps: int
    image_size: int
    noise_scale: float
    path: Path


def record(item: Recording) -> bool:
    """Record one episode into its file, unless it is there already; True if the expert succeeded."""
    if not item.path.exists():
        env = cached_env(item.task, item.image_size)
        episode, success = record_episode(env, item.seed, item.num_steps, item.noise_scale)
        arrays = {"success": np.array(success)}
        if success:
            arrays |= {"images": episode.images, "states": episode.states, "actions": episode.actions}
        temporary = item.path.with_suffix(f".{os.getpid()}.partial")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, item.path)
    with np.load(item.path, allow_pickle=False) as saved:
        return bool(saved["success"])


def run(config: CollectConfig, run: Run) -> None:
    """Collect `episodes_per_task` successful episodes of each task and write `dataset`."""
    if not config.tasks:
        raise UserError("collect: tasks=[] is empty; name at least one, e.g. tasks=[push]")
    started = time.perf_counter()
    envs = {task: cached_env(task, config.image_size) for task in config.tasks}
    spool = run.directory / ".spool"
    spool.mkdir(exist_ok=True)
    kept: dict[str, list[Recording]] = {task: [] for task in config.tasks}
    attempts = dict.fromkeys(config.tasks, 0)
    while pending := [task for task in config.tasks if len(kept[task]) < config.episodes_per_task]:
        items = []
        for task in pending:
            if attempts[task] >= MAX_ATTEMPTS * config.episodes_per_task:
                raise UserError(
                    f"collect: '{task}' succeeded {len(kept[task])} times in {attempts[task]} attempts of "
                    f"{config.num_steps} steps; raise num_steps, lower noise_scale or drop the task"
                )
            for _ in range(config.episodes_per_task - len(kept[task])):
                seed = config.first_seed + attempts[task]
                path = spool / f"{task}-{seed}.npz"
                items.append(Recording(task, seed, config.num_steps, config.image_size, config.noise_scale, path))
                attempts[task] += 1
        outcomes = parallel_map(record, items, workers=config.workers, description="collect")
        for item, success in zip(items, outcomes, strict=True):
            if success:
                kept[item.task].append(item)
    first = next(iter(envs.values()))
    target = run.directory / "dataset"
    if not target.exists():
        with EpisodeWriter(target, first.fps, first.state_names, first.action_names) as writer:
            for episode in parallel_episodes(kept, envs):
                writer.add(episode)
    shutil.rmtree(spool)
    episodes = sum(len(items) for items in kept.values())
    run.result.update(
        episodes=episodes,
        attempts=sum(attempts.values()),
        frames=episodes * config.num_steps,
        episodes_per_minute=round(60 * episodes / (time.perf_counter() - started), 1),
        tasks={task: {"episodes": len(kept[task]), "attempts": attempts[task]} for task in config.tasks},
        dataset="dataset",
    )


def parallel_episodes(kept: dict[str, list[Recording]], envs: dict[str, Any]) -> Any:
    """Episodes from their files, tasks interleaved, so that any prefix of the dataset is balanced."""
    from toolkit.training.logging import progress

    order = [item for group in zip(*kept.values(), strict=True) for item in group]
    for item in progress(order, description="encode", total=len(order), unit="ep"):
        with np.load(item.path, allow_pickle=False) as saved:
            yield Episode(
                images=saved["images"],
                states=saved["states"],
                actions=saved["actions"],
                task=envs[item.task].instruction,
                metadata={"seed": item.seed, "task_name": item.task, "success": True, "source": "teleoperation"},
            )


def summary(result: dict[str, Any]) -> str:
    return f"{result['episodes']} episodes ({result['attempts']} attempts), {result['episodes_per_minute']} a minute"
