"""`vag pretrain`: train a policy on real and synthetic datasets at a fixed synthetic fraction."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from policies.factory import PolicyObjective, build_policy
from recipes.common import load_clips
from recipes.schema import PolicyTrainingConfig, PretrainConfig
from toolkit.data.clips import ClipStore
from toolkit.data.mixture import Mixture, check_compatible
from toolkit.data.normalizer import compute_statistics
from toolkit.data.scenes import Scenes, merge, read_scenes, scenes_of, write_scenes
from toolkit.data.schema import IMAGE
from toolkit.errors import UserError
from toolkit.reporting.run_record import Run
from toolkit.training.loop import train
from toolkit.training.runtime import seed_everything, set_threads


def run(config: PretrainConfig, run: Run) -> None:
    """Train a new policy and write `pretrained_model/` in LeRobot's layout."""
    stores, weights = load_mixture(config, run)
    seed_everything(config.seed)
    objective = build_policy(
        config.policy.type,
        image_shape=(3, *stores[0].frames.shape[1:3]),
        state_dim=stores[0].states.shape[1],
        action_dim=stores[0].actions.shape[1],
        stats=compute_statistics([store for store, weight in zip(stores, weights, strict=True) if weight]),
        options=config.policy.options,
        text_encoder=config.text_encoder,
    )
    train_policy(config, run, objective, stores, weights)


def load_mixture(config: PolicyTrainingConfig, run: Run) -> tuple[list[ClipStore], list[float]]:
    """Clips of all datasets and the share of each. Raises UserError if the fraction does not fit the sources."""
    set_threads(config.runtime)
    fraction = config.synthetic_fraction
    if not config.real and not config.synthetic:
        raise UserError("no data: give real=[DATASET] and/or synthetic=[DATASET]")
    if fraction is not None and not 0 <= fraction <= 1:
        raise UserError(f"synthetic_fraction={fraction}: expected a number from 0 to 1")
    if (fraction or 0) > 0 and not config.synthetic:
        raise UserError(f"synthetic_fraction={fraction} needs synthetic=[DATASET]")
    if fraction is not None and fraction < 1 and not config.real:
        raise UserError(f"synthetic_fraction={fraction} needs real=[DATASET]")
    real = [load_clips(run, path, config.image_size, config.image_key) for path in config.real]
    if config.episodes_per_task is not None:
        real = [first_episodes(store, config.episodes_per_task) for store in real]
    synthetic = [load_clips(run, path, config.image_size, IMAGE) for path in config.synthetic]  # as synthesize names it
    check_compatible([*real, *synthetic])
    sizes = [float(store.episode_lengths.sum()) for store in [*real, *synthetic]]
    if fraction is None:
        return [*real, *synthetic], sizes
    weights = [
        share * size / max(1.0, sum(part))
        for share, part in ((1 - fraction, sizes[: len(real)]), (fraction, sizes[len(real) :]))
        for size in part
    ]
    return [*real, *synthetic], weights


def first_episodes(store: ClipStore, per_task: int) -> ClipStore:
    """The first `per_task` episodes of each task, as a store of their own (copied; few by intention)."""
    chosen = np.sort(
        np.concatenate([np.flatnonzero(store.episode_tasks == t)[:per_task] for t in range(len(store.tasks))])
    )
    rows = np.concatenate(
        [np.arange(s, s + n) for s, n in zip(store.episode_starts[chosen], store.episode_lengths[chosen], strict=True)]
    )
    lengths = store.episode_lengths[chosen]
    return ClipStore(
        path=store.path,
        frames=store.frames[rows],
        states=store.states[rows],
        actions=store.actions[rows],
        episode_starts=np.cumsum(lengths) - lengths,
        episode_lengths=lengths,
        episode_tasks=store.episode_tasks[chosen],
        tasks=store.tasks,
        metadata=[store.metadata[i] for i in chosen],
        fps=store.fps,
        source_id=store.source_id,
    )


def train_policy(
    config: PolicyTrainingConfig,
    run: Run,
    objective: PolicyObjective,
    stores: list[ClipStore],
    weights: list[float],
    seen_before: Scenes | None = None,
) -> None:
    """Train through the one loop, write the checkpoint and the scenes it has seen, fill in the result."""
    mixture = Mixture(stores, weights, config.optim.batch_size, objective.horizon, config.seed)
    name = objective.policy_type
    metrics = train(objective, mixture, config.optim, config.runtime, run.directory, f"{run.record['command']} {name}")
    target, temporary = run.directory / "pretrained_model", run.directory / ".pretrained_model.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    objective.save_pretrained(temporary)
    starts = [scenes_of(store.metadata) for store, weight in zip(stores, weights, strict=True) if weight]
    generators = [read_scenes(Path(path) / "meta") or {} for path in [*config.real, *config.synthetic]]
    write_scenes(temporary, merge(seen_before or {}, *starts, *generators))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    shutil.rmtree(run.directory / "checkpoints")
    real, batches = len(config.real), config.optim.steps * config.optim.gradient_accumulation
    run.result.update(
        policy=name,
        steps=config.optim.steps,
        **{k: round(v, 4) for k, v in metrics.items()},
        parameters=sum(p.numel() for p in objective.parameters()),
        checkpoint="pretrained_model",
        synthetic_fraction=round(sum(mixture.fractions(batches)[real:]), 4),
        episodes=[store.num_episodes for store in stores],
    )


def summary(result: dict[str, Any]) -> str:
    loss = result.get("loss", float("nan"))
    return f"{result['policy']}, loss {loss}, synthetic fraction {result['synthetic_fraction']}"
