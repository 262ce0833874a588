"""`vag demo`: the whole story once, for real, at a size two CPU cores finish in minutes.

Each stage is one of the other commands with its own run directory below this one, so that each can be looked
at or rerun alone. The two policies train and roll out side by side, one process and one thread each.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from recipes.compose import options_of
from recipes.engine_options import stages_engine
from recipes.stages import EVERY_EPISODE, Stage, entry, in_turn, make_stage, needed_result, run_stage, run_stages
from recipes.study_schema import DemoConfig
from recipes.worlds import world_values
from toolkit.base.errors import UserError, nearest
from toolkit.base.files import write_json
from toolkit.base.record import read_record
from toolkit.base.run import Run
from toolkit.base.typed_json import to_json
from toolkit.data.formats.lerobot_read import read_table
from toolkit.evaluation.rates import Rate
from toolkit.reporting.generator_results import SynthesizeResult
from toolkit.reporting.report import write_report
from toolkit.reporting.results import (
    RESULTS,
    DemoResult,
    Distance,
    GeneratedSystem,
    GeneratedSystems,
    OpenLoopResult,
    PolicyDistance,
    PolicyRate,
    ReplayResult,
    RolloutResult,
    StageTime,
)


def run(config: DemoConfig, run: Run) -> DemoResult:
    """Run all stages; write `summary.json` and `report.html`."""
    if not config.policies or not (config.tasks or config.source):
        raise UserError("demo: policies, and tasks or a source, must each name at least one")
    root = run.directory
    data, trained = data_stages(config, root), policy_stages(config, root)
    engine = stages_engine(config.engine, root)
    for stage in data:
        run_stage(root, stage, RESULTS[stage.command])
    made, systems = needed_result(root / data[-1].name, SynthesizeResult), list[GeneratedSystem]()
    entry(root / data[-1].name, "metrics", made.metrics or {}, "action_distance")
    systems.append(GeneratedSystem(system="vag", metrics=made.metrics or {}))
    replays = {} if config.source else replay_stages(config, root)
    if replays:
        systems.append(GeneratedSystem(system="recorded", metrics={"action_distance": 0.0}))
    for i, (system, stage) in enumerate(replays.items()):
        rates = run_stage(root, stage, ReplayResult).systems
        systems[i] = replace(systems[i], replay_success=entry(root / stage.name, "systems", rates, system).alone)
    run_stages(root, trained, engine=engine)
    done = [stage.name for stage in [*data, *replays.values(), *trained]]

    policies: list[PolicyRate | PolicyDistance] = []
    for policy in config.policies:
        for arm in (real_arm(config), "pretrain_finetune"):
            directory = root / f"evaluate_{policy}_{arm}"
            if config.source:
                error = needed_result(directory, OpenLoopResult).open_loop
                numbers = {part.name: getattr(error, part.name) for part in fields(Distance)}
                policies.append(PolicyDistance(policy=policy, arm=arm, **numbers))
            else:
                suite = entry(directory, "suites", needed_result(directory, RolloutResult).suites, "unseen")
                policies.append(PolicyRate(policy=policy, arm=arm, **vars(suite.alone)))
    stages = [StageTime(name=name, seconds=read_record(root / name)["wall_seconds"]) for name in done]
    result = DemoResult(stages=stages, generator=GeneratedSystems(systems=systems), policies=policies, runs=done)
    run.note_result(result)
    write_json(root / "summary.json", {key: value for key, value in to_json(result).items() if key != "runs"})
    run.write()
    write_report([root], root / "report.html")
    print(table(result, root), flush=True)
    return result


def first_stage(config: DemoConfig) -> tuple[str, dict[str, Any]]:
    """The command that episodes come from, and what it is asked for."""
    return ("import", {"source": config.source}) if config.source else ("collect", simulated(config))


def simulated(config: DemoConfig) -> dict[str, Any]:
    """The tasks and the world that they are in."""
    return {**world_values(config), "tasks": config.tasks}


def data_stages(config: DemoConfig, root: Path) -> list[Stage]:
    """From the first episode to what a generator makes of the scenes that it has not seen."""
    first, origin = first_stage(config)
    seed, (real, held_out) = (
        {"seed": config.seed},
        (str(root / f"{name}/dataset") for name in (first, f"{first}_held_out")),
    )
    generator = {"checkpoint": str(root / "train_generator/generator")}
    scenes = {"scenes_from": real} if config.source else simulated(config)
    return [
        make_stage(first, first, origin, config.collect, seed),
        make_stage(f"{first}_held_out", first, origin, config.collect_held_out, seed),
        make_stage(
            "train_generator", "train-generator", {"dataset": real, **EVERY_EPISODE}, config.train_generator, seed
        ),
        make_stage("synthesize", "synthesize", {**generator, **scenes}, config.synthesize, seed),
        make_stage("synthesize_held_out", "synthesize", {**generator, "scenes_from": held_out, **seed}),
    ]


def replay_stages(config: DemoConfig, root: Path) -> dict[str, Stage]:
    """By system: the generated episodes of held-out scenes, and the recorded ones as far as those go."""
    generated = root / "synthesize_held_out/dataset"
    common = {**world_values(config), "max_steps": int(read_table(generated).lengths.min()), "seed": config.seed}
    what = {"vag": ("generated", generated), "recorded": ("recorded", root / "collect_held_out/dataset")}
    return {
        system: make_stage(f"replay_{name}", "replay", {"dataset": str(dataset), "system": system, **common})
        for system, (name, dataset) in what.items()
    }


def real_arm(config: DemoConfig) -> str:
    """Name of the arm that sees real episodes only."""
    return "real_all" if config.few is None else "real_few"


def policy_stages(config: DemoConfig, root: Path) -> list[Stage]:
    """For each policy, in turn: real only, pretrained on synthetic then fine-tuned, and both evaluated."""
    first, origin = first_stage(config)
    test = {"dataset": str(root / f"{first}_held_out/dataset")} if config.source else origin
    real: dict[str, Any] = {"real": [str(root / first / "dataset")]}
    real |= {} if config.few is None else {"episodes_per_task": config.few}
    synthetic = {"synthetic": [str(root / "synthesize/dataset")], "synthetic_fraction": 1.0}
    single, few, stages = {"seed": config.seed, "runtime.threads": 1}, real_arm(config), []
    for policy in config.policies:
        if policy not in (known := options_of("policy")):
            raise UserError(f"demo: policies: unknown policy '{policy}'. {nearest(policy, known)}")
        checkpoints = {
            name: {"checkpoint": str(root / f"{name}_{policy}" / "pretrained_model")}
            for name in (few, "pretrain", "finetune")
        }
        chosen = f"policy={policy}"
        lane = [
            make_stage(f"{few}_{policy}", "pretrain", real, [chosen, *config.real_only], single),
            make_stage(f"pretrain_{policy}", "pretrain", synthetic, [chosen, *config.pretrain], single),
            make_stage(f"finetune_{policy}", "finetune", {**checkpoints["pretrain"], **real}, config.finetune, single),
        ]
        for arm, name in ((few, few), ("pretrain_finetune", "finetune")):
            defaults = {**checkpoints[name], "arm": arm, **test}
            lane.append(make_stage(f"evaluate_{policy}_{arm}", "evaluate", defaults, config.evaluate, single))
        stages += in_turn(lane)
    return stages


def table(result: DemoResult, root: Path) -> str:
    """The numbers of the demo as text."""
    lines = ["", f"{'stage':<36}{'seconds':>9}"]
    lines += [f"{stage.name:<36}{stage.seconds:>9.1f}" for stage in result.stages]
    lines += ["", f"{'generator, held-out scenes':<36}{'distance':>9}  replay success, 95 % of this checkpoint"]
    for system in result.generator.systems:
        replay = "needs a simulator" if system.replay_success is None else _rate(system.replay_success)
        lines.append(f"{system.system:<36}{system.metrics['action_distance']:>9.3f}  {replay}")
    measure = "success" if isinstance(result.policies[0], PolicyRate) else "open-loop action distance"
    lines += ["", f"{'policy, unseen scenes':<24}{'arm':<20}{measure}, 95 % of this checkpoint"]
    lines += [f"{row.policy:<24}{row.arm:<20}{_rate(row)}" for row in result.policies]
    lines += [
        "",
        "The generator saw every episode of its dataset, the policies perhaps few: read the arms with that in mind.",
    ]
    return "\n".join([*lines, "", f"report: {root / 'report.html'}"])


def _rate(row: Rate | Distance) -> str:
    if isinstance(row, Distance):
        value = f"{row.action_distance:.4f}  [{row.low:.4f}, {row.high:.4f}]  n = {row.n}"
        return f"{value}  (mean action {row.mean:.4f})"
    return f"{row.successes:>3}/{row.n:<4} {row.rate:.2f}  [{row.low:.2f}, {row.high:.2f}]"


def summary(result: DemoResult) -> str:
    return f"{len(result.stages)} stages, {sum(stage.seconds for stage in result.stages):.0f} s of work"
