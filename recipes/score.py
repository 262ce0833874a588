"""`vag score`: note how far each episode of a synthetic dataset can be trusted."""

from __future__ import annotations

import numpy as np
import torch

from recipes.common import (
    Pictures,
    canvas_of,
    instruction_encoder,
    load_all,
    load_generator,
    pick_device,
    user_errors,
    weights_id,
)
from recipes.schema import ScoreConfig
from recipes.start_scenes import scene_seeds
from toolkit.base.errors import UserError
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.batches import GeneratorClips, to_tensors
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import RETRAIN, Conventions
from toolkit.data.episode_notes import FILE, write_notes
from toolkit.data.images import as_size
from toolkit.data.normalizer import STATE_FLOOR, describe
from toolkit.evaluation.action_metrics import action_distance
from toolkit.evaluation.episode_scores import Limits, limit_excess, nearest_distance
from toolkit.reporting.results import ScoreResult, Spread
from toolkit.training.runtime import set_threads
from vag_core import Generator


def run(config: ScoreConfig, run: Run) -> ScoreResult:
    """Note score_cycle_error (with a checkpoint), score_limit_excess and score_nearest (with real data).

    The table is `vag_episodes.parquet` in the run directory.
    """
    if config.checkpoint is None and not config.real:
        raise UserError("score: give checkpoint=GENERATOR for the cycle error, real=[DATASET] for the others, or both")
    set_threads(config.runtime)
    generator, identity = None, None
    pictures = Pictures(
        as_size(config.image_size or 64, "image_size"), config.cameras, config.rename, config.frame_storage
    )
    if config.checkpoint is not None:
        generator = load_generator(config.checkpoint, pick_device(config.runtime), config.max_parameters)
        identity = weights_id(config.checkpoint)
        run.add_data(config.checkpoint, identity)
        trained = Conventions.of(config.checkpoint)
        pictures = Pictures.trained_on(canvas_of(generator, trained), config, trained)
    store, *real = load_all(run, [config.dataset, *config.real], pictures)
    scores: dict[str, list[float]] = {}
    if config.real:
        scores |= against_real(store, real)
    if generator is not None:
        Conventions.of(str(config.checkpoint)).check(store, remedy=RETRAIN)
        scores["score_cycle_error"] = cycle_errors(config, generator, store)
    rows = [dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True)]
    write_notes(run.directory / FILE, store.episode_ids, rows)
    spreads = {name: np.quantile(values, (0, 0.5, 1)).tolist() for name, values in scores.items()}
    return ScoreResult(
        checkpoint_id=identity,
        scores={name: Spread(least=least, median=median, most=most) for name, (least, median, most) in spreads.items()},
    )


def against_real(store: ClipStore, real: list[ClipStore]) -> dict[str, list[float]]:
    """Kinematic limits of the real episodes, and the distance to the nearest of the same instruction."""
    for other in real:
        for name in ("states", "actions"):
            ours, theirs = getattr(store, name).shape[1], getattr(other, name).shape[1]
            if ours != theirs:
                raise UserError(f"{other.name}: {name} are {theirs} wide; {store.name} has {ours}: not the same robot")
    limits = Limits.measured([trajectory(other, e) for other in real for e in range(other.num_episodes)])
    deviation = describe(np.concatenate([other.states for other in real]), STATE_FLOOR)["std"]
    known: dict[str, list[np.ndarray]] = {}
    for other in real:
        for episode in range(other.num_episodes):
            known.setdefault(other.instruction(episode), []).append(other.states[other.rows_of(np.array([episode]))])
    scores: dict[str, list[float]] = {"score_limit_excess": [], "score_nearest": []}
    for episode in progress(range(store.num_episodes), description="score", total=store.num_episodes, unit="ep"):
        scores["score_limit_excess"].append(limit_excess(trajectory(store, episode), limits))
        states = store.states[store.rows_of(np.array([episode]))]
        scores["score_nearest"].append(nearest_distance(states, known.get(store.instruction(episode), []), deviation))
    return scores


def trajectory(store: ClipStore, episode: int) -> np.ndarray:
    """[state, action] of an episode, (T, S + A)."""
    rows = store.rows_of(np.array([episode]))
    return np.concatenate([store.states[rows], store.actions[rows]], axis=1)


def cycle_errors(config: ScoreConfig, generator: Generator, store: ClipStore) -> list[float]:
    """Distance of each episode's actions to those that the generator infers from its video (inverse dynamics)."""
    checkpoint = config.checkpoint
    encode, shape = instruction_encoder(config.instruction_encoder, config.max_parameters), generator.config
    if not shape.action.makes_video:
        raise UserError(f"{checkpoint}: it makes no video, so it infers no actions from one; use another generator")
    for name, width in (("states", shape.state_dim), ("actions", shape.action_dim)):
        if (found := getattr(store, name).shape[1]) != width:
            raise UserError(f"{store.name}: {name} are {found} wide; {checkpoint} was trained on {width}")
    clips = GeneratorClips(store, 1, shape.num_frames, 0, False, shape.frame_stride)
    errors: list[float] = []
    seeds = scene_seeds(config.seed, store.metadata)
    bar = progress(description="cycle error", total=store.num_episodes, unit="ep")
    for part in np.array_split(np.arange(store.num_episodes), -(-store.num_episodes // config.batch_size)):
        batch = to_tensors(clips.window(part))
        with user_errors():
            inferred = generator.sample(
                batch["frames"][:, 0],
                batch["states"][:, 0],
                encode(batch["instruction"]),
                frames=batch["frames"],
                rng=[torch.Generator().manual_seed(seeds[episode]) for episode in part],
            ).actions.cpu()
        for i, padded in enumerate(batch["is_pad"].numpy()):
            steps = int((~padded).sum())
            errors.append(action_distance(inferred[i, :steps].numpy(), batch["actions"][i, :steps].numpy()))
        bar.update(len(part))
    bar.close()
    return errors


def summary(result: ScoreResult) -> str:
    return ", ".join(f"{name} {s.median:.3f} [{s.least:.3f}, {s.most:.3f}]" for name, s in result.scores.items())
