"""What the benchmark of generators found: the rows and comparisons of its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.schema import TrainGeneratorConfig
from recipes.stages import entry, needed_result
from recipes.study_schema import BenchmarkGeneratorsConfig, VariantConfig
from toolkit.base.errors import UserError
from toolkit.base.files import write_json
from toolkit.data.batches import GeneratorClips
from toolkit.data.cache import open_clips
from toolkit.evaluation.alignment import InverseDynamics, Pairs, inverse_dynamics_consistency, joint_distance
from toolkit.evaluation.clip_encoder import (
    ClipEncoder,
    load_clip_encoder,
    random_clip_encoders,
    save_clip_encoder,
    train_clip_encoder,
)
from toolkit.evaluation.distribution import frechet_clip_distance, frechet_distance, i3d_features
from toolkit.evaluation.systems import Trained, compare_means, compare_success, measured_mean, measured_success
from toolkit.evaluation.validity import rank_agreement, validity_card
from toolkit.reporting.benchmark_results import Difference, Row
from toolkit.reporting.generator_results import EvaluateGeneratorResult, TrainGeneratorResult
from toolkit.reporting.results import ReplayResult

VIDEO_SOURCE = "vag_grid"  # its video branch, trained beside a head that sends no gradient back, serves the others
READERS = ("vag_published", "two_stage_temporal", "two_stage_resnet")
SCENE_METRICS = ("action_distance", "end_effector_error_cm", "jerk_ratio", "psnr", "ssim", "gmsd")
SVD = "svd"  # the row of Stable Video Diffusion, which is not trained: one evaluation for all training seeds
SPLITS = 20
Evaluations = dict[str, list[EvaluateGeneratorResult]]  # system or variant: one per training seed
FEWEST_RANKED = 4  # videos, below which a ranking says nothing


def variants_of(config: BenchmarkGeneratorsConfig, suite: str) -> dict[str, VariantConfig]:
    """Further evaluations in a suite, of systems that take part."""
    if suite != config.variants_suite:
        return {}
    return {name: variant for name, variant in config.variants.items() if variant.system in trained(config, suite)}


def trained(config: BenchmarkGeneratorsConfig, suite: str) -> list[str]:
    """Systems that are trained in a suite."""
    return [*config.systems, *(config.helpers if suite == config.variants_suite else [])]


def evaluation_stages(config: BenchmarkGeneratorsConfig, suite: str, name: str) -> list[str]:
    """Names of the stages that evaluate a system or variant in a suite, one per training seed."""
    return [f"evaluate_{SVD}_{suite}"] if name == SVD else [f"evaluate_{name}_{suite}_{seed}" for seed in config.seeds]


def systems_of(config: BenchmarkGeneratorsConfig) -> list[str]:
    """Those that have rows of their own in every suite."""
    return [*config.systems, *([SVD] if config.svd else [])]


def evaluations(config: BenchmarkGeneratorsConfig, root: Path, suite: str) -> Evaluations:
    """Results of every system and variant in a suite, one per training seed."""
    return {
        name: [needed_result(root / stage, EvaluateGeneratorResult) for stage in evaluation_stages(config, suite, name)]
        for name in [*systems_of(config), *variants_of(config, suite)]
    }


def suite_rows(suite: str, found: Evaluations) -> list[Row]:
    """One row per system and metric."""
    rows = []
    for system, results in found.items():
        where: Any = {"system": system, "suite": suite}
        for metric in ("replay_success", *SCENE_METRICS):
            table = scene_table(results, metric)
            if table is not None:
                measure = measured_success if metric == "replay_success" else measured_mean
                rows.append(Row(**where, metric=metric, **measure(Trained(table))))
        values: dict[str, tuple[float, float, float, int]] = {}
        for metric in ("seconds_per_pair", "function_evaluations"):
            measured = [float(getattr(result, metric)) for result in results]
            values[metric] = (float(np.median(measured)), min(measured), max(measured), len(measured))
        for i, errors in enumerate(zip(*(result.dimension_errors or [] for result in results), strict=True)):
            values[f"action_{i}_error"] = (float(np.mean(errors)), min(errors), max(errors), len(errors))
        for metric, (value, low, high, n) in values.items():
            rows.append(Row(**where, metric=metric, value=value, low=low, high=high, n=n, seeds=len(results)))
    return rows


def training_rows(
    config: BenchmarkGeneratorsConfig, root: Path, suite: str, trainings: dict[str, TrainGeneratorConfig]
) -> list[Row]:
    """What the training of each system took: minutes, 10^15 floating-point operations, samples/s, tokens/s and FLOP/s.

    Where the device was measured, also the share of its bf16 peak.
    """
    rows = []
    for system in trained(config, suite):
        measured: dict[str, list[float]] = {}
        for seed in config.seeds:
            names = [f"{name}_{suite}_{seed}" for name in [system, *([VIDEO_SOURCE] if system in READERS else [])]]
            costs = [training_cost(root / name, trainings[name]) for name in names]
            for key in ("training_minutes", "training_pflop"):
                measured.setdefault(key, []).append(sum(cost[key] for cost in costs))
            for key in ("samples_per_second", "tokens_per_second", "gflop_per_second", "bf16_peak_share"):
                if key in costs[0]:
                    measured.setdefault(key, []).append(costs[0][key])
        for metric, values in measured.items():
            bounds: Any = {"value": float(np.median(values)), "low": min(values), "high": max(values)}
            rows.append(Row(system=system, suite=suite, metric=metric, **bounds, n=len(values), seeds=len(values)))
    return rows


def training_cost(directory: Path, config: TrainGeneratorConfig) -> dict[str, float]:
    """Cost of the streams of one training; the tokenizer, which all share, is left out."""
    speed, optim = needed_result(directory, TrainGeneratorResult).throughput, config.optim
    if speed.samples_per_second is None or speed.flop_per_second is None or speed.flop_per_sample is None:
        raise UserError(f"{directory}: its training does not say how fast it was; delete it to have it made again")
    samples = optim.steps * optim.batch_size * optim.gradient_accumulation
    cost = {
        "training_minutes": samples / speed.samples_per_second / 60,
        "training_pflop": samples * speed.flop_per_sample / 1e15,
        "samples_per_second": speed.samples_per_second,
        "gflop_per_second": speed.flop_per_second / 1e9,
    }
    more = {key: getattr(speed, key) for key in ("tokens_per_second", "bf16_peak_share")}
    return cost | {key: value for key, value in more.items() if value is not None}


def set_rows(
    config: BenchmarkGeneratorsConfig,
    root: Path,
    data: str,
    suite: str,
    found: Evaluations,
    training: TrainGeneratorConfig,
) -> list[Row]:
    """Distances between sets: of clips, of pairs of video and actions, and inverse dynamics on the pairs.

    The encoder, and inverse dynamics, learn on episodes of their own. The floor is the distance of recorded episodes
    to each other; `shuffled` is the same set with its actions exchanged within each task. Values of training seeds are
    averaged; the bounds are the least and most of theirs. A system without actions has no distance of pairs.
    """
    metric, real = (recorded_pairs(root / f"{part}_{data}/dataset", training) for part in ("metric", "held_out"))
    path = root / f"clip_encoder_{suite}.safetensors"
    if not path.exists():
        save_clip_encoder(train_clip_encoder(metric.clips, config.encoder_steps, config.seeds[0]), path)
    encoder = load_clip_encoder(path)
    write_json(root / f"validity_card_{suite}.json", validity_card(encoder, real.clips, splits=SPLITS))
    others, inverse_dynamics = random_clip_encoders(reference=metric.clips), InverseDynamics(metric)
    if config.i3d is not None:
        real_features, _ = i3d_features(config.i3d, real.clips)
    rows: list[Row] = []
    ranks: dict[str, list[float]] = {}
    for system in systems_of(config):
        measured: dict[str, list[dict[str, Any]]] = {}
        for stage, result in zip(evaluation_stages(config, suite, system), found[system], strict=True):
            if "psnr" not in result.scenes.metrics or result.samples is None:  # no video
                continue
            with np.load(root / stage / result.samples) as saved:
                made = {name: saved[name] for name in ("frames", "actions") if name in saved}
            clips = made["frames"]
            distances = {
                "frechet_clip_distance": frechet_clip_distance(encoder, real.clips, clips, splits=SPLITS, paired=True)
            }
            if "actions" in made:
                pairs = Pairs(clips, made["actions"])
                distances |= pair_distances(encoder, inverse_dynamics, real, pairs, result.scenes.task)
            if config.i3d is not None:
                features, weights = i3d_features(config.i3d, clips)
                fvd = frechet_distance(real_features, features, shrink=False)
                bounds = dict.fromkeys(("value", "low", "high"), fvd)  # one set of clips has no interval
                distances["fvd"] = {**bounds, "n": len(features), "encoder_id": weights}
            for metric_name, values in distances.items():
                measured.setdefault(metric_name, []).append(values)
            if system not in READERS or VIDEO_SOURCE not in config.systems:  # else the video of another once more
                ranks[stage] = [
                    frechet_clip_distance(one, real.clips, clips, splits=5, paired=True)["value"]
                    for one in (encoder, *others)
                ]
        for metric_name, of_seeds in measured.items():
            rows.append(Row(system=system, suite=suite, metric=metric_name, **over_seeds(of_seeds)))
    table = np.array(list(ranks.values())).T  # (encoders, videos of a system and training seed)
    if len(ranks) >= FEWEST_RANKED:
        agreement = rank_agreement(table)
        row: Any = {"value": agreement["mean"], "low": agreement["lowest"], "high": 1.0, "n": 1 + len(others)}
        rows.append(Row(system="clip_encoders", suite=suite, metric="rank_agreement", seeds=1, **row))
    return rows


def pair_distances(
    encoder: ClipEncoder, inverse_dynamics: InverseDynamics, real: Pairs, made: Pairs, tasks: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Of pairs of video and actions: how far they are from recorded ones, and whether the two belong together."""
    consistency = inverse_dynamics_consistency(inverse_dynamics, real, made)
    consistency |= {"value": consistency["difference"], "n": consistency["n_generated"]}
    return {
        "joint_distance": joint_distance(encoder, real, made, groups=tasks, splits=SPLITS, paired=True),
        "inverse_dynamics_error_difference": consistency,
    }


def over_seeds(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fields of a row: means over training seeds, the bounds the least and most of theirs."""
    beside = ("value", "floor", "shuffled", "real", "mean")
    more: dict[str, Any] = {key: np.mean([v[key] for v in values]).item() for key in beside if key in values[0]}
    more |= {key: values[0][key] for key in ("encoder_id",) if key in values[0]}
    row: Any = {"low": min(v["low"] for v in values), "high": max(v["high"] for v in values)}
    return {**row, "value": more.pop("value"), "n": values[0]["n"], "seeds": len(values), "more": more}


def recorded_pairs(dataset: Path, training: TrainGeneratorConfig) -> Pairs:
    """The first window of every recorded episode."""
    shape, store = training.generator, open_clips(dataset, training.image_size)
    clips = GeneratorClips(store, 1, shape.num_frames, 0, False, shape.frame_stride)
    window = clips.window(np.arange(store.num_episodes))
    return Pairs(window["frames"], window["actions"])


def scene_table(results: Sequence[EvaluateGeneratorResult], metric: str) -> np.ndarray | None:
    """(training seeds, scenes) of a metric or `replay_success`, None where the system has none."""
    tables = [{**r.scenes.metrics, "replay_success": r.scenes.replay_success}.get(metric) for r in results]
    return None if None in tables else np.array(tables, dtype=float)


def ceiling_row(suite: str, directory: Path) -> Row:
    """What recorded actions reach when they are replayed."""
    found = entry(directory, "systems", needed_result(directory, ReplayResult).systems, "recorded")
    bounds: Any = {"value": found.rate, "low": found.low, "high": found.high, "n": found.n}
    return Row(system="recorded", suite=suite, metric="replay_success", **bounds, seeds=0)


def suite_comparisons(config: BenchmarkGeneratorsConfig, suite: str, found: Evaluations) -> list[Difference]:
    """The reference minus every other system, and variants minus what they name, paired by scene.

    Two that are made of the same weights are paired by training seed too.
    """
    pairs = [(config.reference, system) for system in systems_of(config) if system != config.reference]
    for name, variant in variants_of(config, suite).items():
        if variant.against is None:
            pairs.append((config.reference, name))
        elif variant.against in found:
            pairs.append((name, variant.against))
    comparisons = []
    for a, b in pairs:
        for metric in ("replay_success", "action_distance", "psnr"):
            ours, theirs = scene_table(found[a], metric), scene_table(found[b], metric)
            if ours is None or theirs is None:
                continue
            compare = compare_success if metric == "replay_success" else compare_means
            sides = (Trained(table, weights_of(config, suite, name)) for name, table in ((a, ours), (b, theirs)))
            comparisons.append(Difference(a=a, b=b, suite=suite, metric=metric, paired=True, **compare(*sides)))
    return comparisons


def weights_of(config: BenchmarkGeneratorsConfig, suite: str, name: str) -> list[tuple[str, int]]:
    """Which weights a system or variant is, of each training seed."""
    if name == SVD:
        return [(SVD, 0)]
    variants = variants_of(config, suite)
    return [(variants[name].system if name in variants else name, seed) for seed in config.seeds]
