"""`vag demo`: the whole story once, for real, at a size two CPU cores finish in minutes.

Each stage is one of the other commands with its own run directory below this one, so that each can be looked
at or rerun alone. The two policies train and roll out side by side, one process and one thread each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.compose import listed, options_of, typed
from recipes.lanes import Lane, check_stages, run_lanes, stage
from recipes.schema import DemoConfig
from toolkit.base.errors import UserError, nearest
from toolkit.base.files import write_json
from toolkit.base.run import Run, read_record
from toolkit.data.formats.lerobot_read import read_table
from toolkit.reporting.report import write_report

OPEN_LOOP = ("action_distance", "n", "mean")
BOUNDS = ("low", "high")


def run(config: DemoConfig, run: Run) -> None:
    """Run all stages; write `summary.json` and `report.html`."""
    if not config.policies or not (config.tasks or config.source):
        raise UserError("demo: policies, and tasks or a source, must each name at least one")
    root = run.directory
    check_overrides(config)
    tasks = f"tasks={listed(config.tasks)}"
    seed = f"seed={config.seed}"
    done: list[str] = []

    def execute(name: str, command: str, overrides: list[str]) -> dict[str, Any]:
        done.append(name)
        return stage(root / name, command, [*overrides, seed])

    command, origin = ("import", f"source={typed(config.source)}") if config.source else ("collect", tasks)
    execute(command, command, [origin, *config.collect])
    execute(f"{command}_held_out", command, [origin, *config.collect_held_out])
    real, held_out = root / command / "dataset", root / f"{command}_held_out/dataset"
    execute("train_generator", "train-generator", [f"dataset={real}", *config.train_generator])
    generator = f"checkpoint={root / 'train_generator/generator'}"
    scenes = f"scenes_from={real}" if config.source else tasks
    execute("synthesize", "synthesize", [generator, scenes, *config.synthesize])
    metrics = execute("synthesize_held_out", "synthesize", [generator, f"scenes_from={held_out}"])["metrics"]
    systems = [{"system": "vag", **metrics}]
    if not config.source:
        horizon = f"max_steps={read_table(root / 'synthesize_held_out/dataset').lengths.min()}"  # as long as generated
        generated = f"dataset={root / 'synthesize_held_out/dataset'}"
        replays = execute("replay_generated", "replay", [generated, "system=vag", horizon])["systems"]
        replays |= execute("replay_recorded", "replay", [f"dataset={held_out}", "system=recorded", horizon])["systems"]
        systems.append({"system": "recorded", "action_distance": 0.0})
        for system in systems:
            replay = replays[system["system"]]
            system["replay_success"] = {key: replay[key] for key in ("successes", "n", "rate", "low", "high")}

    test = f"dataset={held_out}" if config.source else tasks
    lanes = {policy: policy_lane(config, root, policy, real, test) for policy in config.policies}
    run_lanes(root, lanes)
    done += [name for lane in lanes.values() for name, _, _ in lane]

    policies = []
    for policy in config.policies:
        for arm in (real_arm(config), "pretrain_finetune"):
            result = read_record(root / f"evaluate_{policy}_{arm}")["result"]
            measured = result["open_loop"] if config.source else result["suites"]["unseen"]
            row = {key: measured[key] for key in (OPEN_LOOP if config.source else ("successes", "n", "rate")) + BOUNDS}
            policies.append({"policy": policy, "arm": arm, **row})
    stages = [{"name": name, "seconds": read_record(root / name)["wall_seconds"]} for name in done]
    run.result.update(stages=stages, generator={"systems": systems}, policies=policies, runs=done)
    write_json(root / "summary.json", {key: run.result[key] for key in ("stages", "generator", "policies")})
    run.write()
    write_report([root], root / "report.html")
    print(table(run.result, root), flush=True)


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


def table(result: dict[str, Any], root: Path) -> str:
    """The numbers of the demo as text."""
    lines = ["", f"{'stage':<36}{'seconds':>9}"]
    lines += [f"{stage['name']:<36}{stage['seconds']:>9.1f}" for stage in result["stages"]]
    lines += ["", f"{'generator, held-out scenes':<36}{'distance':>9}  replay success"]
    for system in result["generator"]["systems"]:
        replay = _rate(system["replay_success"]) if "replay_success" in system else "needs a simulator"
        lines.append(f"{system['system']:<36}{system['action_distance']:>9.3f}  {replay}")
    measure = "success" if "rate" in result["policies"][0] else "open-loop action distance"
    lines += ["", f"{'policy, unseen scenes':<18}{'arm':<20}{measure}"]
    lines += [f"{row['policy']:<18}{row['arm']:<20}{_rate(row)}" for row in result["policies"]]
    lines += [
        "",
        "The generator saw every episode of its dataset, the policies perhaps few: read the arms with that in mind.",
    ]
    return "\n".join([*lines, "", f"report: {root / 'report.html'}"])


def _rate(row: dict[str, Any]) -> str:
    if "rate" not in row:
        value = f"{row['action_distance']:.4f}  [{row['low']:.4f}, {row['high']:.4f}]  n = {row['n']}"
        return f"{value}  (mean action {row['mean']:.4f})"
    return f"{row['successes']:>3}/{row['n']:<4} {row['rate']:.2f}  [{row['low']:.2f}, {row['high']:.2f}]"


def summary(result: dict[str, Any]) -> str:
    return f"{len(result['stages'])} stages, {sum(stage['seconds'] for stage in result['stages']):.0f} s of work"
