"""`vag demo`: the whole story once, for real, at a size two CPU cores finish in minutes.

Each stage is one of the other commands with its own run directory below this one, so that each can be looked
at or rerun alone. The two policies train and roll out side by side, one process and one thread each.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import connection
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recipes import cli
from recipes.compose import check_ranges, compose_config
from recipes.schema import DemoConfig
from toolkit.data.lerobot_io import read_table
from toolkit.envs.pool import die_with_parent
from toolkit.errors import UserError
from toolkit.reporting.report import write_report
from toolkit.reporting.run_record import Run, read_record, write_json

Lane = list[tuple[str, str, list[str]]]  # (directory, command, overrides)


def run(config: DemoConfig, run: Run) -> None:
    """Run all stages; write `summary.json` and `report.html`."""
    if not config.tasks or not config.policies:
        raise UserError("demo: tasks and policies must each name at least one")
    root = run.directory
    check_overrides(config)
    tasks = f"tasks=[{','.join(config.tasks)}]"
    seed = f"seed={config.seed}"
    done: list[str] = []

    def execute(name: str, command: str, overrides: list[str]) -> dict[str, Any]:
        done.append(name)
        return stage(root / name, command, [*overrides, seed])

    real, held_out = root / "collect/dataset", root / "collect_held_out/dataset"
    execute("collect", "collect", [tasks, *config.collect])
    execute("collect_held_out", "collect", [tasks, *config.collect_held_out])
    execute("train_generator", "train-generator", [f"dataset={real}", *config.train_generator])
    generator = f"checkpoint={root / 'train_generator/generator'}"
    execute("synthesize", "synthesize", [generator, tasks, *config.synthesize])
    metrics = execute("synthesize_held_out", "synthesize", [generator, tasks, f"scenes_from={held_out}"])
    horizon = f"max_steps={read_table(root / 'synthesize_held_out/dataset').lengths.min()}"  # as long as generated
    generated = f"dataset={root / 'synthesize_held_out/dataset'}"
    replays = execute("replay_generated", "replay", [generated, "system=vag", horizon])["systems"]
    replays |= execute("replay_recorded", "replay", [f"dataset={held_out}", "system=recorded", horizon])["systems"]

    lanes = {policy: policy_lane(config, root, policy, tasks, seed) for policy in config.policies}
    run_lanes(root, lanes)
    done += [name for lane in lanes.values() for name, _, _ in lane]

    policies = []
    for policy in config.policies:
        for arm in ("real_few", "pretrain_finetune"):
            suite = read_record(root / f"evaluate_{policy}_{arm}")["result"]["suites"]["unseen"]
            row = {key: suite[key] for key in ("successes", "n", "rate", "low", "high")}
            policies.append({"policy": policy, "arm": arm, **row})
    systems = []
    for name, replay in replays.items():
        measured = metrics["metrics"] if name == "vag" else {"action_distance": 0.0}
        success = {key: replay[key] for key in ("successes", "n", "rate", "low", "high")}
        systems.append({"system": name, **measured, "replay_success": success})
    stages = [{"name": name, "seconds": read_record(root / name)["wall_seconds"]} for name in done]
    run.result.update(stages=stages, generator={"systems": systems}, policies=policies, runs=done)
    write_json(root / "summary.json", {key: run.result[key] for key in ("stages", "generator", "policies")})
    run.write()
    write_report([root], root / "report.html")
    print(table(run.result, root), flush=True)


def check_overrides(config: DemoConfig) -> None:
    """A mistake in what is handed to a later stage is told now, not after minutes."""
    given = {"collect": config.collect + config.collect_held_out, "train-generator": config.train_generator}
    given |= {"synthesize": config.synthesize, "finetune": config.finetune, "evaluate": config.evaluate}
    given |= {"pretrain": config.real_only + config.pretrain}
    for command, overrides in given.items():
        check_ranges(OmegaConf.to_container(compose_config(command, overrides)))


def policy_lane(config: DemoConfig, root: Path, policy: str, tasks: str, seed: str) -> Lane:
    """Stages of one policy: real only, pretrained on synthetic then fine-tuned, and both evaluated."""
    real = [f"real=[{root / 'collect/dataset'}]", f"episodes_per_task={config.few}"]
    synthetic = [f"synthetic=[{root / 'synthesize/dataset'}]", "synthetic_fraction=1.0"]
    single = [seed, "runtime.threads=1"]
    names = {arm: f"{arm}_{policy}" for arm in ("real_few", "pretrain", "finetune")}
    lane = [
        (names["real_few"], "pretrain", [f"policy={policy}", *real, *config.real_only, *single]),
        (names["pretrain"], "pretrain", [f"policy={policy}", *synthetic, *config.pretrain, *single]),
    ]
    checkpoint = f"checkpoint={root / names['pretrain'] / 'pretrained_model'}"
    lane.append((names["finetune"], "finetune", [checkpoint, *real, *config.finetune, *single]))
    for arm, name in (("real_few", names["real_few"]), ("pretrain_finetune", names["finetune"])):
        checkpoint = f"checkpoint={root / name / 'pretrained_model'}"
        lane.append(
            (
                f"evaluate_{policy}_{arm}",
                "evaluate",
                [checkpoint, f"arm={arm}", tasks, *config.evaluate, *single],
            )
        )
    return lane


def stage(directory: Path, command: str, overrides: list[str]) -> dict[str, Any]:
    """Run one command into its directory, go on with an unfinished one, or take a finished one as it is."""
    if (directory / "run.json").exists():
        record = read_record(directory)
        if record["status"] == "finished":
            return record["result"]
    return cli.execute(command, [*overrides, f"out={directory}", "resume=true"])


def run_lanes(root: Path, lanes: dict[str, Lane]) -> None:
    """One process per policy. Raises UserError if one fails; its own message is already on the screen."""
    context = multiprocessing.get_context("spawn")
    processes = {
        name: context.Process(target=_run_lane, args=(position, root, lane), name=name)
        for position, (name, lane) in enumerate(lanes.items())
    }
    try:
        for process in processes.values():
            process.start()
        while any(process.is_alive() for process in processes.values()):
            connection.wait([process.sentinel for process in processes.values() if process.is_alive()])
            if any(process.exitcode for process in processes.values()):
                break  # no need to wait for the others
        failed = [name for name, process in processes.items() if process.exitcode]
    except KeyboardInterrupt:
        for process in processes.values():
            process.join(20)  # it was interrupted too and cleans up
        raise
    finally:
        for process in processes.values():
            process.terminate()
            process.join()
    if failed:
        raise UserError(f"demo: stages of {', '.join(failed)} failed; their messages stand above")


def _run_lane(position: int, root: Path, lane: Lane) -> None:
    die_with_parent()
    os.environ["VAG_PROGRESS_POSITION"] = str(position)

    def stages() -> int:
        try:
            for name, command, overrides in lane:
                stage(root / name, command, overrides)
        except KeyboardInterrupt:
            return 130  # the parent says so
        return 0

    raise SystemExit(cli.guarded(stages))


def table(result: dict[str, Any], root: Path) -> str:
    """The numbers of the demo as text."""
    lines = ["", f"{'stage':<36}{'seconds':>9}"]
    lines += [f"{stage['name']:<36}{stage['seconds']:>9.1f}" for stage in result["stages"]]
    lines += ["", f"{'generator, held-out scenes':<36}{'distance':>9}  replay success"]
    for system in result["generator"]["systems"]:
        lines.append(f"{system['system']:<36}{system['action_distance']:>9.3f}  {_rate(system['replay_success'])}")
    lines += ["", f"{'policy, unseen scenes':<18}{'arm':<20}success"]
    lines += [f"{row['policy']:<18}{row['arm']:<20}{_rate(row)}" for row in result["policies"]]
    lines += [
        "",
        "The generator saw every collected episode, the policies a few of them: read the arms with that in mind.",
    ]
    return "\n".join([*lines, "", f"report: {root / 'report.html'}"])


def _rate(row: dict[str, Any]) -> str:
    return f"{row['successes']:>3}/{row['n']:<4} {row['rate']:.2f}  [{row['low']:.2f}, {row['high']:.2f}]"


def summary(result: dict[str, Any]) -> str:
    return f"{len(result['stages'])} stages, {sum(stage['seconds'] for stage in result['stages']):.0f} s of work"
