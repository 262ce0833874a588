"""`vag evaluate-generator`: generated pairs against the recorded episodes of the same initial scenes.

With `svd.path` the videos of Stable Video Diffusion stand in the place of the checkpoint's pairs; the checkpoint still
says which cameras, sizes and windows, so that both are judged alike.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from recipes.common import (
    Pictures,
    canvas_of,
    check_unseen,
    load_clips,
    load_generator,
    load_notes,
    pick_device,
    sampling_errors,
    weights_id,
)
from recipes.schema import EvaluateGeneratorConfig
from recipes.start_scenes import scene_seeds
from recipes.svd_video import SvdVideos
from recipes.video_model import prepare_text, sampling, text_reader
from recipes.worlds import noted_world
from toolkit.base.engine import LocalEngine
from toolkit.base.errors import UserError
from toolkit.base.files import atomic_file
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.batches import GeneratorClips, to_tensors
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import RETRAIN, Conventions
from toolkit.data.episode_notes import check_used
from toolkit.data.seen_scenes import scenes_of
from toolkit.evaluation.action_metrics import (
    action_distance,
    dimension_errors,
    end_effector_error_cm,
    jerk_ratio,
    success_curve,
)
from toolkit.evaluation.replay import replay_episodes
from toolkit.evaluation.statistics import success_table
from toolkit.evaluation.video_metrics import gmsd, psnr, ssim
from toolkit.reporting.generator_results import EvaluateGeneratorResult, PairScores, SuccessCurve
from toolkit.training.runtime import set_threads
from vag_core import Generator
from vag_core.config import GeneratorConfig

GIVEN = ("nothing", "video", "actions")
SHORTEST = 5  # steps: jerk is a third difference
THRESHOLDS = np.linspace(0.05, 1.0, 20)  # of the action distance


def run(config: EvaluateGeneratorConfig, run: Run) -> EvaluateGeneratorResult:
    """Sample every held-out scene once; metrics of each pair, replay success and, if asked, the pairs themselves."""
    if config.given not in GIVEN:
        raise UserError(f"evaluate-generator: given={config.given}; expected one of {', '.join(GIVEN)}")
    set_threads(config.runtime)
    device = pick_device(config.runtime)
    generator = load_generator(config.checkpoint, device, config.max_parameters, config.base)
    shape, identity = generator.config, weights_id(config.checkpoint)
    run.add_data(config.checkpoint, identity)
    svd = SvdVideos.open(config, run, device)
    notes = load_notes(run, config.notes)
    trained = Conventions.of(config.checkpoint)
    pictures = Pictures.trained_on(canvas_of(generator, trained), config, trained)
    store = load_clips(run, config.dataset, pictures, notes)
    check_used(notes)
    trained.check(store, remedy=RETRAIN)
    check_data(config, store, shape)
    seen = check_unseen("evaluate-generator", config.checkpoint, scenes_of(store.metadata), config.allow_seen)
    clips = GeneratorClips(store, 1, shape.num_frames, config.seed, False, shape.frame_stride)
    episodes = np.arange(store.num_episodes)
    if svd is None:
        made, seconds, evaluations = sample_all(config, generator, clips, episodes, trained.views)
    else:
        made, seconds, evaluations = svd.sample_all(config.seed, clips, episodes)
        identity, seen = svd.identity, None
    real, streams = clips.window(episodes), {"video"} if svd else made_streams(generator, config.given)
    scenes = compare(generator, made, real, streams)
    still = compare(generator, held_still(real), real, streams)
    errors, curve, replay, outcomes, samples = None, None, None, None, None
    if "actions" in streams:
        errors = np.mean(scenes.pop("dimension_errors"), axis=0).tolist()
        success = success_curve(np.array(scenes["action_distance"]), THRESHOLDS).tolist()
        curve = SuccessCurve(thresholds=THRESHOLDS.tolist(), success=success)
    known = [(str(row.get("task_name") or ""), row.get("seed")) for row in store.metadata]
    if config.replay and "actions" in streams and all(task and seed is not None for task, seed in known):
        items = [(task, int(seed or 0), actions) for (task, seed), actions in zip(known, made["actions"], strict=True)]
        world = noted_world(config, store.metadata, config.dataset)
        outcomes = [bool(r["success"]) for r in replay_episodes(items, LocalEngine(config.workers), world=world)]
        replay = success_table([item[0] for item in items], outcomes)
    tasks, seeds = [task for task, _ in known], [seed for _, seed in known]
    if config.keep_samples:
        samples = "samples.npz"
        with atomic_file(run.directory / samples) as temporary, temporary.open("wb") as file:
            streams_of: dict[str, Any] = made
            np.savez(file, **streams_of)
    return EvaluateGeneratorResult(
        checkpoint_id=identity,
        given=config.given,
        seconds_per_pair=seconds / len(episodes),
        function_evaluations=evaluations,
        seen_scenes=seen,
        dimension_errors=errors,
        success_curve=curve,
        replay=replay,
        scenes=PairScores(task=tasks, seed=seeds, metrics=scenes, replay_success=outcomes),
        metrics={name: float(np.mean(values)) for name, values in scenes.items()},
        still={name: float(np.mean(still[name])) for name in scenes if name != "jerk_ratio"},
        samples=samples,
    )


def check_data(config: EvaluateGeneratorConfig, store: ClipStore, shape: GeneratorConfig) -> None:
    """Raise UserError for data of other widths than the checkpoint's, and for episodes that are too short."""
    for name, found, wanted in (
        ("states", store.states.shape[1], shape.state_dim),
        ("actions", store.actions.shape[1], shape.action_dim),
    ):
        if found != wanted:
            raise UserError(f"{config.dataset}: {name} are {found} wide; {config.checkpoint} was trained on {wanted}")
    needed = max(SHORTEST, shape.frame_stride + 1)
    if (shortest := store.episode_lengths.min()) < needed:
        raise UserError(f"{config.dataset}: an episode has {shortest} steps; expected at least {needed}")


def sample_all(
    config: EvaluateGeneratorConfig,
    generator: Generator,
    clips: GeneratorClips,
    episodes: np.ndarray,
    views: str = "",
) -> tuple[dict[str, np.ndarray], float, int]:
    """frames (E, F, H, W, 3), actions (E, N, A), states (E, N + 1, S) of one pair per episode; what they took.

    That is, seconds in all and evaluations of the generator per pair.

    The noise of a pair depends on the seed and the scene alone, so systems are compared on equal terms.
    """
    encode = text_reader(generator, config, views)
    prepare_text(encode, generator, clips.store.tasks, config.sampler)
    settings, parts, seconds = sampling(encode, config.sampler), [], 0.0
    seeds = scene_seeds(config.seed, clips.store.metadata)
    bar = progress(description="sample", total=len(episodes), unit="pair")
    for start in range(0, len(episodes), config.batch_size):
        part = episodes[start : start + config.batch_size]
        batch = to_tensors(clips.window(part))
        given: dict[str, Any] = {}
        if config.given == "video":
            given = {"frames": batch["frames"]}
        elif config.given == "actions":
            given = {"actions": batch["actions"], "states": batch["states"]}
        began = time.perf_counter()
        with sampling_errors(generator, len(part)):
            sample = generator.sample(
                batch["frames"][:, 0],
                batch["states"][:, 0],
                encode(batch["instruction"]),
                **settings,
                rng=[torch.Generator().manual_seed(seeds[episode]) for episode in part],
                **given,
            )
        seconds += time.perf_counter() - began
        parts.append({name: getattr(sample, name).cpu().numpy() for name in ("frames", "actions", "states")})
        bar.update(len(part))
    bar.close()
    made = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return made, seconds, sample.function_evaluations


def made_streams(generator: Generator, given: str) -> set[str]:
    """What a generator makes of what it is given: actions, video, or both."""
    makes = {"actions", "video"} if generator.config.action.makes_video else {"actions"}
    return makes - {given}


def compare(
    generator: Generator, made: dict[str, np.ndarray], real: dict[str, Any], streams: set[str]
) -> dict[str, list[Any]]:
    """Metrics of each pair against the recording, one list per metric, of the streams that were made."""
    scenes: dict[str, list[Any]] = {}
    for i, padded in enumerate(real["is_pad"]):
        steps = int((~padded).sum())  # what follows the end of the recording is not compared
        shown = slice(1, steps // generator.config.frame_stride + 1)
        row: dict[str, Any] = {}
        if "actions" in streams:
            actions, recorded = made["actions"][i, :steps], real["actions"][i, :steps]
            row["action_distance"] = action_distance(actions, recorded)
            row["jerk_ratio"] = jerk_ratio(actions, recorded)
            row["dimension_errors"] = dimension_errors(actions, recorded)
        if "actions" in streams and generator.config.state_dim >= 3:
            places = made["states"][i, 1 : steps + 1], real["states"][i, 1 : steps + 1]
            row["end_effector_error_cm"] = float(end_effector_error_cm(*places).mean())
        if "video" in streams:
            for metric in (psnr, ssim, gmsd):
                row[metric.__name__] = metric(made["frames"][i, shown], real["frames"][i, shown])
        for name, value in row.items():
            scenes.setdefault(name, []).append(value)
    return scenes


def held_still(real: dict[str, Any]) -> dict[str, np.ndarray]:
    """A baseline that every generator should beat: first picture and state stay, under the recordings' mean action."""
    mean = real["actions"][~real["is_pad"]].mean(axis=0)
    return {
        "frames": np.broadcast_to(real["frames"][:, :1], real["frames"].shape),
        "actions": np.broadcast_to(mean, real["actions"].shape),
        "states": np.broadcast_to(real["states"][:, :1], real["states"].shape),
    }


def summary(result: EvaluateGeneratorResult) -> str:
    beside = {name: f" (held still {value:.3f})" for name, value in result.still.items()}
    metrics = ", ".join(f"{name} {value:.3f}{beside.get(name, '')}" for name, value in result.metrics.items())
    if (replay := result.replay) is None:
        return metrics
    return f"{metrics}; replay {replay.successes}/{replay.n}, of this checkpoint [{replay.low:.2f}, {replay.high:.2f}]"
