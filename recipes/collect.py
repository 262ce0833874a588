"""`vag collect`: demonstrations in a world, whose successes become a dataset.

Who demonstrates is the world's scripted expert with operator noise, which stands in for teleoperation, or a policy.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from recipes.demonstrators import policy_attempt, policy_directory
from recipes.schema import CollectConfig
from recipes.worlds import recorded_size, spec_of, tasks_in, world_of
from toolkit.base.engine import open_engine
from toolkit.base.errors import UserError
from toolkit.base.files import scratch_folder
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.envs.recording import Attempt, load_attempt, record_attempt
from toolkit.reporting.results import Collected, CollectResult

MAX_ATTEMPTS = 8  # times the episodes asked for


def run(config: CollectConfig, run: Run) -> CollectResult:
    """Collect `episodes_per_task` successful episodes of each task and write `dataset`."""
    world = world_of(config)
    tasks = tasks_in("collect", config.tasks, world)
    checkpoint = policy_directory(config, run)
    record, source = record_attempt, "teleoperation"
    if checkpoint is not None:
        record, source = partial(policy_attempt, checkpoint, config.seed), "policy"
    engine = open_engine(config.engine, run.directory, config.workers)
    env = world.shared(tasks[0], recorded_size(config.image_size), config.hide_robot)
    names = list(env.state_names), list(env.action_names)
    started, frames = time.perf_counter(), 0
    wanted = config.episodes_per_task
    attempts, pending = dict.fromkeys(tasks, 0), dict.fromkeys(tasks, 0)
    seeds = {task: world.scene_stream(task, config.first_seed, config.positions) for task in tasks}
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
    outcomes = engine.feed(record, next_attempt, description="collect")
    with (
        scratch_folder(run.directory / "spool", kept=True) as spool,
        EpisodeWriter(run.directory / "dataset", env.fps, *names, robot_type=world.robot_type) as writer,
    ):
        task, k = next(order)
        for attempt, success in outcomes:
            pending[attempt.task] -= 1
            if success:
                successes[attempt.task].append(attempt)
                bar.update()
            while k < len(successes[task]):
                episode = load_attempt(successes[task][k], source)
                writer.add(episode)
                frames += len(episode)
                task, k = next(order, (task, wanted))
    bar.close()
    episodes = wanted * len(tasks)
    return CollectResult(
        episodes=episodes,
        attempts=sum(attempts.values()),
        frames=frames,
        episodes_per_minute=round(60 * episodes / (time.perf_counter() - started), 1),
        tasks={task: Collected(episodes=wanted, attempts=attempts[task]) for task in tasks},
        dataset="dataset",
    )


def attempt_of(config: CollectConfig, task: str, seed: int, spool: Path) -> Attempt:
    return Attempt(
        task,
        seed,
        config.num_steps,
        recorded_size(config.image_size),
        config.noise_scale,
        spool / f"{task.replace('/', '-')}-{seed}.npz",
        operator=config.seed,
        render_every=config.render_every,
        hide_robot=config.hide_robot,
        world=spec_of(config),
    )


def summary(result: CollectResult) -> str:
    return f"{result.episodes} episodes ({result.attempts} attempts), {result.episodes_per_minute} a minute"
