"""`vag demo`: the whole story once, for real, at a size two CPU cores finish in minutes.

Each stage is one of the other commands with its own run directory below this one, so that each can be looked
at or rerun alone. The two policies train and roll out side by side, one process and one thread each.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from recipes.compose import listed, options_of, typed
from recipes.lanes import Lane, check_stages, entry, needed_result, run_lanes, stage
from recipes.schema import DemoConfig
from toolkit.base.errors import UserError, nearest
from toolkit.base.files import write_json
from toolkit.base.run import Run, read_record
from toolkit.base.typed_json import to_json
from toolkit.data.formats.lerobot_read import read_table
from toolkit.evaluation.rates import Rate
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
    SynthesizeResult,
    TrainGeneratorResult,
)


def run(config: DemoConfig, run: Run) -> DemoResult:
    """Run all stages; write `summary.json` and `report.html`."""
    if not config.policies or not (config.tasks or config.source):
        raise UserError("demo: policies, and tasks or a source, must each name at least one")
    root = run.directory
    check_overrides(config)
    tasks = f"tasks={listed(config.tasks)}"
    done: list[str] = []

    def execute[Result](name: str, command: str, overrides: list[str], kind: type[Result]) -> Result:
        done.append(name)
        return stage(root / name, command, [*overrides, f"seed={config.seed}"], kind)

    command, origin = ("import", f"source={typed(config.source)}") if config.source else ("collect", tasks)
    execute(command, command, [origin, *config.collect], RESULTS[command])
    execute(f"{command}_held_out", command, [origin, *config.collect_held_out], RESULTS[command])
    real, held_out = root / command / "dataset", root / f"{command}_held_out/dataset"
    execute("train_generator", "train-generator", [f"dataset={real}", *config.train_generator], TrainGeneratorResult)
    generator = f"checkpoint={root / 'train_generator/generator'}"
    scenes = f"scenes_from={real}" if config.source else tasks
    execute("synthesize", "synthesize", [generator, scenes, *config.synthesize], SynthesizeResult)
    made = execute("synthesize_held_out", "synthesize", [generator, f"scenes_from={held_out}"], SynthesizeResult)
    systems = [GeneratedSystem(system="vag", metrics=made.metrics or {})]
    if not config.source:
        horizon = f"max_steps={read_table(root / 'synthesize_held_out/dataset').lengths.min()}"  # as long as generated
        systems.append(GeneratedSystem(system="recorded", metrics={"action_distance": 0.0}))
        datasets = {"generated": root / "synthesize_held_out/dataset", "recorded": held_out}
        for i, (name, dataset) in enumerate(datasets.items()):
            words = [f"dataset={dataset}", f"system={systems[i].system}", horizon]
            replays = execute(f"replay_{name}", "replay", words, ReplayResult).systems
            rate = entry(root / f"replay_{name}", "systems", replays, systems[i].system).alone
            systems[i] = replace(systems[i], replay_success=rate)

    test = f"dataset={held_out}" if config.source else tasks
    lanes = {policy: policy_lane(config, root, policy, real, test) for policy in config.policies}
    run_lanes(root, lanes)
    done += [name for lane in lanes.values() for name, _, _ in lane]

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


def check_overrides(config: DemoConfig) -> None:
    """A mistake in what is handed to a later stage, a policy or task that is none, is told now, not after minutes."""
    for policy in config.policies:
        if policy not in (known := options_of("policy")):
            raise UserError(f"demo: policies: unknown policy '{policy}'. {nearest(policy, known)}")
    tasks = f"tasks={listed(config.tasks)}"
    command, origin = ("import", f"source={typed(config.source)}") if config.source else ("collect", tasks)
    stages = [(command, [origin, *config.collect]), (command, [origin, *config.collect_held_out])]
    stages.append(("train-generator", ["dataset=x", *config.train_generator]))
    stages.append(("synthesize", ["checkpoint=x", "scenes_from=x" if config.source else tasks, *config.synthesize]))
    for policy in config.policies:
        lane = policy_lane(config, Path("x"), policy, Path("x"), "dataset=x" if config.source else tasks)
        stages += [(command, overrides) for _, command, overrides in lane]
    check_stages(stages)


def real_arm(config: DemoConfig) -> str:
    """Name of the arm that sees real episodes only."""
    return "real_all" if config.few is None else "real_few"


def policy_lane(config: DemoConfig, root: Path, policy: str, dataset: Path, test: str) -> Lane:
    """Stages of one policy: real only, pretrained on synthetic then fine-tuned, and both evaluated on `test`."""
    real = [f"real={listed([dataset])}"] + ([] if config.few is None else [f"episodes_per_task={config.few}"])
    synthetic = [f"synthetic={listed([root / 'synthesize/dataset'])}", "synthetic_fraction=1.0"]
    single = [f"seed={config.seed}", "runtime.threads=1"]
    few = real_arm(config)
    names = {arm: f"{arm}_{policy}" for arm in (few, "pretrain", "finetune")}
    lane = [
        (names[few], "pretrain", [f"policy={policy}", *real, *config.real_only, *single]),
        (names["pretrain"], "pretrain", [f"policy={policy}", *synthetic, *config.pretrain, *single]),
    ]
    checkpoint = f"checkpoint={root / names['pretrain'] / 'pretrained_model'}"
    lane.append((names["finetune"], "finetune", [checkpoint, *real, *config.finetune, *single]))
    for arm, name in ((few, names[few]), ("pretrain_finetune", names["finetune"])):
        checkpoint = f"checkpoint={root / name / 'pretrained_model'}"
        lane.append(
            (
                f"evaluate_{policy}_{arm}",
                "evaluate",
                [checkpoint, f"arm={arm}", test, *config.evaluate, *single],
            )
        )
    return lane


def table(result: DemoResult, root: Path) -> str:
    """The numbers of the demo as text."""
    lines = ["", f"{'stage':<36}{'seconds':>9}"]
    lines += [f"{stage.name:<36}{stage.seconds:>9.1f}" for stage in result.stages]
    lines += ["", f"{'generator, held-out scenes':<36}{'distance':>9}  replay success"]
    for system in result.generator.systems:
        replay = "needs a simulator" if system.replay_success is None else _rate(system.replay_success)
        lines.append(f"{system.system:<36}{system.metrics['action_distance']:>9.3f}  {replay}")
    measure = "success" if isinstance(result.policies[0], PolicyRate) else "open-loop action distance"
    lines += ["", f"{'policy, unseen scenes':<18}{'arm':<20}{measure}"]
    lines += [f"{row.policy:<18}{row.arm:<20}{_rate(row)}" for row in result.policies]
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
