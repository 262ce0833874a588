"""`vag benchmark generators`: several systems trained, sampled and replayed side by side, on the same unseen scenes.

A suite is a way of looking at the same tasks: which frames the generator is given, and how the camera sees them. Each
training and each evaluation is one of the other commands with a run directory of its own below this one, so a killed
benchmark goes on with `resume=true`. Systems whose action branch only reads the video share one video branch, weight
for weight.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from recipes.compose import command_words, compose_config, options_of
from recipes.engine_options import stages_engine
from recipes.generator_rows import (
    READERS,
    SVD,
    VIDEO_SOURCE,
    ceiling_row,
    evaluation_stages,
    evaluations,
    set_rows,
    suite_comparisons,
    suite_rows,
    trained,
    training_rows,
    variants_of,
)
from recipes.stages import EVERY_EPISODE, Stage, make_stage, run_stage, run_stages
from recipes.study_schema import BenchmarkGeneratorsConfig
from recipes.svd_video import find_svd
from recipes.worlds import world_values
from toolkit.base.errors import UserError, nearest
from toolkit.base.reading import read_json
from toolkit.base.run import Run
from toolkit.base.typed_json import from_json, to_json
from toolkit.data.images import as_size
from toolkit.evaluation.distribution import i3d_features
from toolkit.evaluation.systems import HOW_TO_READ
from toolkit.reporting.benchmark_record import bounds_text, write_record
from toolkit.reporting.benchmark_results import BenchmarkGeneratorsResult, Difference, Row, ValidityCard
from toolkit.reporting.results import RESULTS


def run(config: BenchmarkGeneratorsConfig, run: Run) -> BenchmarkGeneratorsResult:
    """Collect, train, evaluate; write `record.json`, `record.md` and print the record as the last line."""
    check(config)
    root = run.directory
    data = data_of(config)
    collected = [stage for suite in dict.fromkeys(data.values()) for stage in data_stages(config, root, suite)]
    stages = [
        stage
        for suite in config.suites
        for seed in config.seeds
        for stage in system_stages(config, root, data[suite], suite, seed)
    ]
    stages += [stage for suite in config.suites for stage in svd_stages(config, root, data[suite], suite)]
    engine = stages_engine(config.engine, root)
    for stage in collected:
        run_stage(root, stage, RESULTS[stage.command])
    if config.evaluation_lanes:
        for command, limit in (("train-generator", config.lanes), ("evaluate-generator", config.evaluation_lanes)):
            run_stages(root, [stage for stage in stages if stage.command == command], limit, engine=engine)
    else:
        run_stages(root, stages, config.lanes, engine=engine)
    trainings = {stage.name: stage.config for stage in stages if stage.command == "train-generator"}
    rows, comparisons = list[Row](), list[Difference]()
    for suite in config.suites:
        found = evaluations(config, root, suite)
        rows += suite_rows(suite, found)
        rows += training_rows(config, root, suite, trainings)
        training = trainings[f"{config.reference}_{suite}_{config.seeds[0]}"]
        rows += set_rows(config, root, data[suite], suite, found, training)
        rows.append(ceiling_row(suite, root / f"replay_{data[suite]}"))
        comparisons += suite_comparisons(config, suite, found)
    command = " ".join(["vag benchmark generators", *command_words("benchmark generators", run.record["config"])])
    record = write_record(root, "generators", command, rows, comparisons, notes_of(config))
    paths = {suite: root / f"validity_card_{suite}.json" for suite in config.suites}
    cards = {suite: from_json(ValidityCard, read_json(path), path, "card") for suite, path in paths.items()}
    print(json.dumps(to_json(record)), flush=True)
    return BenchmarkGeneratorsResult(rows=rows, comparisons=comparisons, validity_cards=cards)


def notes_of(config: BenchmarkGeneratorsConfig) -> dict[str, str]:
    """What a reader of the record has to know."""
    notes = {
        "scenes": f"{config.scenes_per_task} held-out scenes of each of {', '.join(config.tasks)}, which the expert "
        "solves; the same for all systems, and the same noise",
        "intervals": f"{HOW_TO_READ}. Of metrics that no scenes have, low and high are the least and most of the "
        "training seeds, for distances between sets, but fvd, of their bounds",
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
    if config.svd:
        notes[SVD] = (
            f"{config.svd}, not trained on these tasks, without actions: the first picture goes in, letterboxed into "
            "its own size; of the frames that come out, taken out of the bars, those nearest in time are compared. "
            f"Once in each suite; overrides {' '.join([*config.evaluate, *config.svd_evaluate])}"
        )
    return notes


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
    if config.svd:
        if SVD in config.variants:
            raise UserError(f"benchmark generators: variants has a '{SVD}', the row of svd={config.svd}; rename it")
        words = ["checkpoint=x", "dataset=x", *config.evaluate, *config.svd_evaluate]
        find_svd(config.svd, compose_config("evaluate-generator", words).svd.image_size)
    if config.i3d is not None:
        for suite in config.suites:
            words = ["dataset=x", *config.conditions[suite].train, *config.train]
            training = compose_config("train-generator", words)
            size = as_size(training.image_size, "image_size")
            i3d_features(config.i3d, np.zeros((1, training.generator.num_frames, *size, 3), np.uint8))


@cache
def makes_actions(system: str) -> bool:
    composed = compose_config("train-generator", ["dataset=x", f"generator={system}"])
    return str(composed.generator.action.kind) != "forward_dynamics"


def data_of(config: BenchmarkGeneratorsConfig) -> dict[str, str]:
    """The name of each suite's data, which suites that see alike share."""
    made: dict[tuple[str, ...], str] = {}
    return {suite: made.setdefault(tuple(config.conditions[suite].collect), suite) for suite in config.suites}


def data_stages(config: BenchmarkGeneratorsConfig, root: Path, suite: str) -> list[Stage]:
    """Training episodes, held-out ones and those of the metrics, and how many of the held-out ones replay."""
    words, world = [*config.collect, *config.conditions[suite].collect], world_values(config)
    stages = []
    for part, episodes, seed in (
        ("train", config.episodes_per_task, config.first_seed),
        ("held_out", config.scenes_per_task, config.held_out_seed),
        ("metric", config.scenes_per_task, config.metric_seed),
    ):
        values = {"episodes_per_task": episodes, "first_seed": seed}
        stages.append(make_stage(f"{part}_{suite}", "collect", {**world, "tasks": config.tasks}, words, values))
    replay = {**world, "dataset": str(root / f"held_out_{suite}/dataset"), "system": "recorded"}
    return [*stages, make_stage(f"replay_{suite}", "replay", replay)]


def system_stages(config: BenchmarkGeneratorsConfig, root: Path, data: str, suite: str, seed: int) -> list[Stage]:
    """Of each system of a suite and training seed its training, then its evaluations in turn."""
    dataset, held_out = (str(root / f"{part}_{data}/dataset") for part in ("train", "held_out"))
    threads = {"runtime.threads": config.threads} if config.threads else {}
    systems = trained(config, suite)
    if VIDEO_SOURCE not in systems and set(systems) & set(READERS):
        systems.append(VIDEO_SOURCE)
    systems.sort(key=lambda system: system != VIDEO_SOURCE)
    source = f"{VIDEO_SOURCE}_{suite}_{seed}"
    variants = {system: (system, list[str]()) for system in config.systems}
    variants |= {name: (v.system, list(v.overrides)) for name, v in variants_of(config, suite).items()}
    stages = []
    for system in systems:
        name = f"{system}_{suite}_{seed}"
        words = [f"generator={system}", *config.conditions[suite].train, *config.system_train.get(system, [])]
        values: dict[str, Any] = {"seed": seed, **threads}
        needs: list[str] = []
        if VIDEO_SOURCE in systems and system != VIDEO_SOURCE:
            values[f"{'video' if system in READERS else 'tokenizer'}_from"] = str(root / source / "generator")
            needs = [source]
        learn = {"dataset": dataset, **EVERY_EPISODE}
        stages.append(make_stage(name, "train-generator", learn, [*words, *config.train], values, needs))
        sampled = {"checkpoint": str(root / name / "generator"), "dataset": held_out, "workers": 1}
        sampled |= {"keep_samples": True, **threads, **world_values(config)}
        for variant, (of, overrides) in variants.items():
            if of == system:
                words, needs = [*config.evaluate, *overrides], [stages[-1].name]
                evaluation = f"evaluate_{variant}_{suite}_{seed}"
                stages.append(make_stage(evaluation, "evaluate-generator", sampled, words, needs=needs))
    return stages


def svd_stages(config: BenchmarkGeneratorsConfig, root: Path, data: str, suite: str) -> list[Stage]:
    """The evaluation of Stable Video Diffusion, if it is asked for: sizes and windows are those of the reference."""
    if not config.svd:
        return []
    training = f"{config.reference}_{suite}_{config.seeds[0]}"
    sampled = {
        "checkpoint": str(root / training / "generator"),
        "dataset": str(root / f"held_out_{data}/dataset"),
        "keep_samples": True,
        **world_values(config),
        **({"runtime.threads": config.threads} if config.threads else {}),
    }
    words, (name,) = [*config.evaluate, *config.svd_evaluate], evaluation_stages(config, suite, SVD)
    return [make_stage(name, "evaluate-generator", sampled, words, {"svd.path": config.svd}, [training])]


def summary(result: BenchmarkGeneratorsResult) -> str:
    return "; ".join(
        f"{row.suite} {row.system} {row.value:.3f}{bounds_text(row, '.3f')}"
        for row in result.rows
        if row.metric == "replay_success"
    )
