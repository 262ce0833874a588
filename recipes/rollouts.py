"""Rollouts of one policy on the scenes of suites: all in step in this process, or in parts that several take."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from policies.checkpoint_config import Loading
from policies.checkpoints import checkpoint_directory
from policies.generator_kinds import acts_as_generator
from policies.stock import StockPolicy, load_policy
from policies.vag_policy.objective import load_generator_policy
from recipes.common import pick_device
from recipes.generator_policy_schema import chosen
from recipes.policy_schema import EvaluateConfig
from recipes.pretrain import expected_sizes
from recipes.worlds import cameras_for, check_simulated, tasks_in, world_of
from toolkit.base.engine import Engine, worker_number
from toolkit.base.errors import UserError
from toolkit.data.images import as_size
from toolkit.evaluation.rollout import Rollout, rollout
from toolkit.training.out_of_memory import one_line_if_full, sampling_advice
from toolkit.training.runtime import name_gpu, seed_everything, set_threads

NUM_SCENES = 20  # that share a prediction, and that a process takes at least, where there are so many
RECORDED = 3  # scenes of each task of which a video is made
RETUNE = "fine-tune the policy on such data"

Scenes = Mapping[str, Sequence[int]]  # seeds by task


@dataclass(frozen=True)
class Part:
    """Some scenes of a suite; of the first `recorded` seeds of each task there will be a video."""

    suite: str
    scenes: Scenes
    recorded: int = RECORDED


class Roller:
    """A policy that is loaded and fits its world; it rolls out parts."""

    def __init__(self, config: EvaluateConfig) -> None:
        set_threads(config.runtime)
        seed_everything(config.seed)
        self.config, self.world = config, world_of(config)
        self.checkpoint = checkpoint_directory(config.checkpoint, Loading.of(config))
        self.device = pick_device(config.runtime)
        self.policy = load(config, self.checkpoint, self.device)
        self.at_once = 1 if isinstance(self.policy, StockPolicy) else config.batch_size or NUM_SCENES
        env = self.world.shared(tasks_in("evaluate", config.tasks, self.world)[0])
        check_simulated(self.checkpoint, env, self.world.name, remedy=RETUNE)
        self.cameras = cameras_for(self.policy.cameras, env, config.rename, self.world.name, self.checkpoint)
        self.sizes = expected_sizes(self.policy, self.checkpoint)
        if config.image_size is not None:
            self.sizes = as_size(config.image_size, "image_size")

    def free(self) -> None:
        """Leave the GPU to other processes."""
        if torch.cuda.is_available() and isinstance(self.policy, nn.Module):
            self.policy.to("cpu")
            torch.cuda.empty_cache()

    def roll_out(self, part: Part) -> list[Rollout]:
        """In the order of tasks and seeds."""
        with one_line_if_full(self.device, partial(sampling_advice, size=self.at_once)):
            return rollout(
                self.policy,
                part.scenes,
                max_steps=self.config.max_steps,
                image_size=self.sizes,
                suite=self.world.suites[part.suite],
                record_first=part.recorded,
                num_envs=self.at_once,
                seed=self.config.seed,
                world=self.world,
                cameras=self.cameras,
            )


def load(config: EvaluateConfig, checkpoint: Path, device: str) -> Any:
    """The policy of a checkpoint, which may be a generator."""
    loading, (settings, base) = Loading.of(config), chosen(config.generator_policy)
    if acts_as_generator(checkpoint):
        return load_generator_policy(checkpoint, device, loading, settings, base)
    if settings or base is not None:
        name = next(iter(settings), "base")
        raise UserError(f"generator_policy.{name}: {checkpoint} is no generator; leave it out")
    return load_policy(checkpoint, device, loading)


def roll_out_all(roller: Roller, suites: Mapping[str, Scenes], engine: Engine) -> Iterator[tuple[str, list[Rollout]]]:
    """Each suite with its rollouts, in the order of its tasks and seeds.

    In this process all scenes of a suite go in step. Several processes take parts of one task each: then another number
    of scenes shares a prediction, which rounds otherwise; the noise of a scene is the same.
    """
    if not engine.remote and engine.workers == 1:
        for suite, scenes in suites.items():
            yield suite, roller.roll_out(Part(suite, scenes))
        return
    roller.free()
    parts = [part for suite, scenes in suites.items() for part in parts_of(suite, scenes, roller.at_once)]
    runtime = replace(roller.config.runtime, threads=roller.config.runtime.threads or engine.threads)
    work = partial(roll_out_part, replace(roller.config, runtime=runtime))
    results = zip(parts, engine.map(work, parts, description="evaluate, parts"), strict=True)
    for suite, group in groupby(results, key=lambda pair: pair[0].suite):
        yield suite, [rollout for _, rollouts in group for rollout in rollouts]


def parts_of(suite: str, scenes: Scenes, at_once: int) -> list[Part]:
    """Some seeds of one task each; which ones does not depend on who takes them."""
    size = max(at_once, NUM_SCENES)
    return [
        Part(suite, {task: seeds[start : start + size]}, RECORDED if start == 0 else 0)
        for task, seeds in scenes.items()
        for start in range(0, len(seeds), size)
    ]


_rollers: list[tuple[str, Roller]] = []  # of this process, which takes several parts of one command


def roll_out_part(config: EvaluateConfig, part: Part) -> list[Rollout]:
    """A part in a process of its own, on a GPU of its own where there are several."""
    key = repr((config, worker_number()))
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # all has been said
        if not _rollers or _rollers[0][0] != key:
            _rollers.clear()  # and give its memory back, before the next one takes some
            name_gpu(worker_number())
            _rollers.append((key, Roller(config)))
        return _rollers[0][1].roll_out(part)
