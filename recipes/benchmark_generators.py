"""`vag benchmark generators`: several systems trained, sampled and replayed side by side, on the same unseen scenes.

A suite is a way of looking at the same tasks: which frames the generator is given, and how the camera sees them. Each
training and each evaluation is one of the other commands with a run directory of its own below this one, so a killed
benchmark goes on with `resume=true`. Systems whose action branch only reads the video share one video branch, weight
for weight.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipes.compose import command_words, compose_config, listed, options_of
from recipes.lanes import Lane, check_stages, entry, needed_result, run_lanes, stage
from recipes.schema import BenchmarkGeneratorsConfig, VariantConfig
from toolkit.base.errors import UserError, nearest
from toolkit.base.files import write_json
from toolkit.base.reading import read_json
from toolkit.base.run import Run, read_record
from toolkit.base.typed_json import from_json, to_json
from toolkit.data.batches import GeneratorClips
from toolkit.data.cache import open_clips
from toolkit.evaluation.alignment import InverseDynamics, Pairs, inverse_dynamics_consistency, joint_distance
from toolkit.evaluation.clip_encoder import (
    load_clip_encoder,
    random_clip_encoders,
    save_clip_encoder,
    train_clip_encoder,
)
from toolkit.evaluation.distribution import frechet_clip_distance, frechet_distance, i3d_features
from toolkit.evaluation.statistics import compare_systems, hierarchical_bootstrap, wilson_interval
from toolkit.evaluation.validity import rank_agreement, validity_card
from toolkit.reporting.benchmark_record import write_record
from toolkit.reporting.benchmark_results import BenchmarkGeneratorsResult, Difference, Row, ValidityCard
from toolkit.reporting.results import CollectResult, EvaluateGeneratorResult, ReplayResult, TrainGeneratorResult

VIDEO_SOURCE = "vag_grid"  # its video branch, trained beside a head that sends no gradient back, serves the others
READERS = ("vag_published", "two_stage_temporal", "two_stage_resnet")
SCENE_METRICS = ("action_distance", "end_effector_error_cm", "jerk_ratio", "psnr", "ssim", "gmsd")
SPLITS = 20
Evaluations = dict[str, list[EvaluateGeneratorResult]]  # system or variant: one per training seed
FEWEST_RANKED = 4  # videos, below which a ranking says nothing


def run(config: BenchmarkGeneratorsConfig, run: Run) -> BenchmarkGeneratorsResult:
    """Collect, train, evaluate; write `record.json`, `record.md` and print the record as the last line."""
    check(config)
    root = run.directory
    data = collect(config, root)
    lanes: dict[str, Lane] = {}
    after: dict[str, str] = {}
    for suite in config.suites:
        for seed in config.seeds:
            add_lanes(lanes, after, config, root, data[suite], suite, seed)
    if config.evaluation_lanes:
        run_lanes(root, {name: lane[:1] for name, lane in lanes.items()}, config.lanes, after)
        run_lanes(root, {name: lane[1:] for name, lane in lanes.items() if lane[1:]}, config.evaluation_lanes)
    else:
        run_lanes(root, lanes, config.lanes, after)
    rows, comparisons = list[Row](), list[Difference]()
    for suite in config.suites:
        found = evaluations(config, root, suite)
        rows += suite_rows(suite, found)
        rows += training_rows(config, root, suite)
        rows += set_rows(config, root, data[suite], suite, found)
        rows.append(ceiling_row(suite, root / f"replay_{data[suite]}"))
        comparisons += suite_comparisons(config, suite, found)
    notes = {
        "scenes": f"{config.scenes_per_task} held-out scenes of each of {', '.join(config.tasks)}, which the expert "
        "solves; the same for all systems, and the same noise",
        "intervals": "95 %: Wilson over all rollouts for replay_success, too narrow where training seeds differ; "
        "a bootstrap over training seeds and scenes for other metrics of scenes and for differences; least and most "
        "of the training seeds for the rest, for distances between sets, but fvd, of their bounds. p is McNemar's "
        "exact test for the training seed where it is largest, not corrected for the number of comparisons",
        "first frame": "vag and action_only have an encoder of it for their actions too; the action branches of the "
        "others see it through the video branch or its latents, as published. The actions of vag, in its own order, "
        "are planned from the first frame and read no video",
        "time": f"processes side by side: {config.lanes or 1}, threads of each: {config.threads or 'all'}"
        + (f"; evaluations after all trainings, {config.evaluation_lanes} at once" if config.evaluation_lanes else "")
        + ". Speed is that after the first steps, in which code is compiled; training_minutes is that of all steps at "
        "this speed, so without compiling",
        "training": f"{config.episodes_per_task} episodes a task, seeds {list(config.seeds)}; "
        f"overrides {' '.join(config.train)}; "
        + "; ".join(f"{system}: {' '.join(config.system_train.get(system, []))}" for system in config.systems)
        + f". {', '.join(READERS)} take the video branch of {VIDEO_SOURCE}; training_minutes and training_pflop of "
        "streams and, where a video branch is taken, of that too",
        "suites": "; ".join(
            f"{suite}: {' '.join([*config.conditions[suite].collect, *config.conditions[suite].train])}"
            for suite in config.suites
        ),
    }
    command = " ".join(["vag benchmark generators", *command_words("benchmark generators", run.record["config"])])
    record = write_record(root, "generators", command, rows, comparisons, notes)
    paths = {suite: root / f"validity_card_{suite}.json" for suite in config.suites}
    cards = {suite: from_json(ValidityCard, read_json(path), path, "card") for suite, path in paths.items()}
    print(json.dumps(to_json(record)), flush=True)
    return BenchmarkGeneratorsResult(rows=rows, comparisons=comparisons, validity_cards=cards)


def check(config: BenchmarkGeneratorsConfig) -> None:
    """Raise UserError for a suite, system or variant that is not known, before anything is trained."""
    known = options_of("generator")
    for name in (
        *config.systems,
        *config.helpers,
        config.reference,
        *(variant.system for variant in config.variants.values()),
    ):
        if name not in known:
            raise UserError(f"benchmark generators: unknown system '{name}'. {nearest(name, known)}")
        if name in config.systems and not makes_actions(name):
            raise UserError(f"benchmark generators: '{name}' makes no actions; it can be a helper for a variant alone")
    if config.reference not in config.systems:
        raise UserError(f"benchmark generators: reference={config.reference} is not among systems={config.systems}")
    for suite in config.suites:
        if suite not in config.conditions:
            raise UserError(f"benchmark generators: unknown suite '{suite}'. {nearest(suite, config.conditions)}")
    for key in ("suites", "systems", "seeds"):
        values = getattr(config, key)
        if twice := [value for value in values if values.count(value) > 1]:
            raise UserError(f"benchmark generators: {key}={values} names {twice[0]} twice; it would count twice")
    lanes: dict[str, Lane] = {}
    for suite in config.suites:
        made: dict[str, Lane] = {}
        add_lanes(made, {}, config, Path("out"), suite, suite, config.seeds[0])
        lanes |= made if suite == config.suites[0] else dict(list(made.items())[:1])
    tasks = f"tasks={listed(config.tasks)}"
    stages = [("collect", [tasks, *config.collect, *config.conditions[suite].collect]) for suite in config.suites]
    stages += [(command, words) for lane in lanes.values() for _, command, words in lane]
    check_stages(stages)  # a mistake in train=, evaluate=, ... is told now, not after minutes
    if config.i3d is not None:
        for suite in config.suites:
            words = ["dataset=x", *config.conditions[suite].train, *config.train]
            shape = compose_config("train-generator", words).generator
            i3d_features(config.i3d, np.zeros((1, shape.num_frames, shape.image_size, shape.image_size, 3), np.uint8))


def makes_actions(system: str) -> bool:
    composed = compose_config("train-generator", ["dataset=x", f"generator={system}"])
    return str(composed.generator.action.clocks) != "given"


def collect(config: BenchmarkGeneratorsConfig, root: Path) -> dict[str, str]:
    """Record training and held-out episodes; the name of each suite's data, which suites that see alike share."""
    common = [f"tasks={listed(config.tasks)}", *config.collect]
    data: dict[str, str] = {}
    made: dict[tuple[str, ...], str] = {}
    for suite in config.suites:
        special = tuple(config.conditions[suite].collect)
        name = made.setdefault(special, suite)
        for part, episodes, seed in (
            ("train", config.episodes_per_task, config.first_seed),
            ("held_out", config.scenes_per_task, config.held_out_seed),
            ("metric", config.scenes_per_task, config.metric_seed),
        ):
            overrides = [*common, *special, f"episodes_per_task={episodes}", f"first_seed={seed}"]
            stage(root / f"{part}_{name}", "collect", overrides, CollectResult)
        words = [f"dataset={root / f'held_out_{name}/dataset'}", "system=recorded"]
        stage(root / f"replay_{name}", "replay", words, ReplayResult)
        data[suite] = name
    return data


def add_lanes(
    lanes: dict[str, Lane],
    after: dict[str, str],
    config: BenchmarkGeneratorsConfig,
    root: Path,
    data: str,
    suite: str,
    seed: int,
) -> None:
    """A lane for each system of a suite and training seed: its training and its evaluations."""
    dataset, held_out = (root / f"{part}_{data}/dataset" for part in ("train", "held_out"))
    single = [f"seed={seed}", *([f"runtime.threads={config.threads}"] if config.threads else [])]
    common = [*config.train, *single]
    systems = trained(config, suite)
    if VIDEO_SOURCE not in systems and set(systems) & set(READERS):
        systems.append(VIDEO_SOURCE)
    systems.sort(key=lambda system: system != VIDEO_SOURCE)
    source = root / f"{VIDEO_SOURCE}_{suite}_{seed}/generator"
    for system in systems:
        name = f"{system}_{suite}_{seed}"
        overrides = [f"dataset={dataset}", f"generator={system}", *config.conditions[suite].train]
        overrides += [*config.system_train.get(system, []), *common]
        if VIDEO_SOURCE in systems and system != VIDEO_SOURCE:
            overrides.append(f"{'video' if system in READERS else 'tokenizer'}_from={source}")
            after[name] = f"{VIDEO_SOURCE}_{suite}_{seed}"
        lanes[name] = [(name, "train-generator", overrides)]
    variants = {system: (system, list[str]()) for system in config.systems}
    variants |= {name: (v.system, list(v.overrides)) for name, v in variants_of(config, suite).items()}
    common_evaluation = [f"dataset={held_out}", "workers=1", "keep_samples=true", *single[1:]]
    for name, (system, overrides) in variants.items():
        checkpoint = f"checkpoint={root / f'{system}_{suite}_{seed}' / 'generator'}"
        lanes[f"{system}_{suite}_{seed}"].append(
            (
                f"evaluate_{name}_{suite}_{seed}",
                "evaluate-generator",
                [checkpoint, *common_evaluation, *config.evaluate, *overrides],
            )
        )


def variants_of(config: BenchmarkGeneratorsConfig, suite: str) -> dict[str, VariantConfig]:
    """Further evaluations in a suite, of systems that take part."""
    if suite != config.variants_suite:
        return {}
    return {name: variant for name, variant in config.variants.items() if variant.system in trained(config, suite)}


def trained(config: BenchmarkGeneratorsConfig, suite: str) -> list[str]:
    """Systems that are trained in a suite."""
    return [*config.systems, *(config.helpers if suite == config.variants_suite else [])]


def evaluations(config: BenchmarkGeneratorsConfig, root: Path, suite: str) -> Evaluations:
    """Results of every system and variant in a suite, one per training seed."""
    names = [*config.systems, *variants_of(config, suite)]
    return {
        name: [
            needed_result(root / f"evaluate_{name}_{suite}_{seed}", EvaluateGeneratorResult) for seed in config.seeds
        ]
        for name in names
    }


def suite_rows(suite: str, found: Evaluations) -> list[Row]:
    """One row per system and metric."""
    rows = []
    for system, results in found.items():
        values: dict[str, tuple[float, float, float, int]] = {}
        outcomes = scene_table(results, "replay_success")
        if outcomes is not None:
            bounds = wilson_interval(int(outcomes.sum()), outcomes.size)
            values["replay_success"] = (float(outcomes.mean()), *bounds, outcomes.size)
        for metric in SCENE_METRICS:
            table = scene_table(results, metric)
            if table is not None:
                mean = hierarchical_bootstrap(table.tolist(), [[0.0] * table.shape[1]])
                values[metric] = (mean["difference"], mean["low"], mean["high"], table.size)
        for metric in ("seconds_per_pair", "function_evaluations"):
            measured = [float(getattr(result, metric)) for result in results]
            values[metric] = (float(np.median(measured)), min(measured), max(measured), len(measured))
        for i, errors in enumerate(zip(*(result.dimension_errors or [] for result in results), strict=True)):
            values[f"action_{i}_error"] = (float(np.mean(errors)), min(errors), max(errors), len(errors))
        where: Any = {"system": system, "suite": suite, "seeds": len(results)}
        for metric, (value, low, high, n) in values.items():
            rows.append(Row(**where, metric=metric, value=value, low=low, high=high, n=n))
    return rows


def training_rows(config: BenchmarkGeneratorsConfig, root: Path, suite: str) -> list[Row]:
    """What the training of each system took: minutes, 10^15 floating-point operations, samples/s, tokens/s and FLOP/s.

    Where the device was measured, also the share of its bf16 peak.
    """
    rows = []
    for system in trained(config, suite):
        measured: dict[str, list[float]] = {}
        for seed in config.seeds:
            costs = [training_cost(root / f"{system}_{suite}_{seed}")]
            if system in READERS:
                costs.append(training_cost(root / f"{VIDEO_SOURCE}_{suite}_{seed}"))
            for key in ("training_minutes", "training_pflop"):
                measured.setdefault(key, []).append(sum(cost[key] for cost in costs))
            for key in ("samples_per_second", "tokens_per_second", "gflop_per_second", "bf16_peak_share"):
                if key in costs[0]:
                    measured.setdefault(key, []).append(costs[0][key])
        for metric, values in measured.items():
            bounds: Any = {"value": float(np.median(values)), "low": min(values), "high": max(values)}
            rows.append(Row(system=system, suite=suite, metric=metric, **bounds, n=len(values), seeds=len(values)))
    return rows


def training_cost(directory: Path) -> dict[str, float]:
    """Cost of the streams of one training, from its record; the tokenizer, which all share, is left out."""
    speed, optim = needed_result(directory, TrainGeneratorResult).throughput, read_record(directory)["config"]["optim"]
    if speed.samples_per_second is None or speed.flop_per_second is None or speed.flop_per_sample is None:
        raise UserError(f"{directory}: its training does not say how fast it was; delete it to have it made again")
    samples = optim["steps"] * optim["batch_size"] * optim["gradient_accumulation"]
    cost = {
        "training_minutes": samples / speed.samples_per_second / 60,
        "training_pflop": samples * speed.flop_per_sample / 1e15,
        "samples_per_second": speed.samples_per_second,
        "gflop_per_second": speed.flop_per_second / 1e9,
    }
    more = {key: getattr(speed, key) for key in ("tokens_per_second", "bf16_peak_share")}
    return cost | {key: value for key, value in more.items() if value is not None}


def set_rows(config: BenchmarkGeneratorsConfig, root: Path, data: str, suite: str, found: Evaluations) -> list[Row]:
    """Distances between sets: of clips, of pairs of video and actions, and inverse dynamics on the pairs.

    The encoder, and inverse dynamics, learn on episodes of their own. The floor is the distance of recorded episodes
    to each other; `shuffled` is the same set with its actions exchanged within each task. Values of training seeds are
    averaged; the bounds are the least and most of theirs.
    """
    shape = read_record(root / f"{config.reference}_{suite}_{config.seeds[0]}")["config"]["generator"]
    metric, real = (recorded_pairs(root / f"{part}_{data}/dataset", shape) for part in ("metric", "held_out"))
    path = root / f"clip_encoder_{suite}.safetensors"
    if not path.exists():
        save_clip_encoder(train_clip_encoder(metric.clips, config.encoder_steps, config.seeds[0]), path)
    encoder = load_clip_encoder(path)
    write_json(root / f"validity_card_{suite}.json", validity_card(encoder, real.clips, splits=SPLITS))
    others, inverse_dynamics = random_clip_encoders(reference=metric.clips), InverseDynamics(metric)
    if config.i3d is not None:
        real_features, _ = i3d_features(config.i3d, real.clips)
    rows: list[Row] = []
    ranks: dict[tuple[str, int], list[float]] = {}
    for system in config.systems:
        measured: dict[str, list[dict[str, Any]]] = {}
        for seed, result in zip(config.seeds, found[system], strict=True):
            if "psnr" not in result.scenes.metrics or result.samples is None:  # no video
                continue
            with np.load(root / f"evaluate_{system}_{suite}_{seed}" / result.samples) as saved:
                made = Pairs(saved["frames"], saved["actions"])
            measured.setdefault("frechet_clip_distance", []).append(
                frechet_clip_distance(encoder, real.clips, made.clips, splits=SPLITS, paired=True)
            )
            measured.setdefault("joint_distance", []).append(
                joint_distance(encoder, real, made, groups=result.scenes.task, splits=SPLITS, paired=True)
            )
            consistency = inverse_dynamics_consistency(inverse_dynamics, real, made)
            measured.setdefault("inverse_dynamics_error_difference", []).append(
                {**consistency, "value": consistency["difference"], "n": consistency["n_generated"]}
            )
            if config.i3d is not None:
                features, weights = i3d_features(config.i3d, made.clips)
                fvd = frechet_distance(real_features, features, shrink=False)
                bounds = dict.fromkeys(("value", "low", "high"), fvd)  # one set of clips has no interval
                measured.setdefault("fvd", []).append({**bounds, "n": len(features), "encoder_id": weights})
            if system not in READERS or VIDEO_SOURCE not in config.systems:  # else the video of another once more
                ranks[system, seed] = [
                    frechet_clip_distance(one, real.clips, made.clips, splits=5, paired=True)["value"]
                    for one in (encoder, *others)
                ]
        for metric_name, values in measured.items():
            beside = ("value", "floor", "shuffled", "real", "mean")
            more: dict[str, Any] = {key: np.mean([v[key] for v in values]).item() for key in beside if key in values[0]}
            more |= {key: values[0][key] for key in ("encoder_id",) if key in values[0]}
            row: Any = {"low": min(v["low"] for v in values), "high": max(v["high"] for v in values)}
            row |= {"value": more.pop("value"), "n": values[0]["n"], "seeds": len(values), "more": more}
            rows.append(Row(system=system, suite=suite, metric=metric_name, **row))
    table = np.array(list(ranks.values())).T  # (encoders, videos of a system and training seed)
    if len(ranks) >= FEWEST_RANKED:
        agreement = rank_agreement(table)
        row = {"value": agreement["mean"], "low": agreement["lowest"], "high": 1.0, "n": 1 + len(others), "seeds": 1}
        rows.append(Row(system="clip_encoders", suite=suite, metric="rank_agreement", **row))
    return rows


def recorded_pairs(dataset: Path, shape: dict[str, Any]) -> Pairs:
    """The first window of every recorded episode."""
    store = open_clips(dataset, shape["image_size"])
    clips = GeneratorClips(store, 1, shape["num_frames"], 0, False, shape["frame_stride"])
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
    """The reference minus every other system, and variants minus what they name, paired by scene."""
    pairs = [(config.reference, system) for system in config.systems if system != config.reference]
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
            compare = compare_systems if metric == "replay_success" else mean_difference
            difference: Any = compare(ours, theirs)
            comparisons.append(Difference(a=a, b=b, suite=suite, metric=metric, paired=True, **difference))
    return comparisons


def mean_difference(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    return hierarchical_bootstrap(ours.tolist(), theirs.tolist())


def summary(result: BenchmarkGeneratorsResult) -> str:
    return "; ".join(
        f"{row.suite} {row.system} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
        for row in result.rows
        if row.metric == "replay_success"
    )
