"""Commands that run other commands: each in a run directory of its own, several side by side, all of it resumable."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Iterable
from functools import cache, partial
from multiprocessing import connection
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from recipes import cli
from recipes.common import distinct_tasks, user_errors
from recipes.compose import checked_config, compose_config, options_of
from toolkit.base.errors import UserError, nearest
from toolkit.base.manifest import note
from toolkit.base.pool import die_with_parent
from toolkit.base.run import NOT_COMPARED, RECORD, leaves, read_record
from toolkit.base.typed_json import from_json
from toolkit.reporting.results import RESULTS

Lane = list[tuple[str, str, list[str]]]  # (directory, command, overrides)
INTERRUPTED = 130
PATIENCE = 20  # seconds that stages have to clean up after an interruption


def check_stage(command: str, overrides: list[str]) -> Any:
    """The config of a stage that is to run later. Raises UserError for what it would refuse only then.

    A key, a number out of its range, a task, suite, generator or policy that does not exist, sizes that do not fit.
    """
    config: Any = checked_config(command, overrides)
    simulated = {"collect": True, "synthesize": config.get("scenes_from") is None}
    simulated["evaluate"] = config.get("dataset") is None
    if simulated.get(command):
        from toolkit.envs.metaworld import instructions

        for task in distinct_tasks(command, [*config.tasks, *config.get("new_tasks", [])]):
            if task not in instructions():
                raise UserError(f"{command}: unknown Meta-World task '{task}'. {nearest(task, instructions())}")
    if command == "pretrain":
        _check_policy(config.policy.type)
    if command == "train-generator":
        _check_generator(OmegaConf.to_object(config.generator))
    return config


def _check_policy(name: str) -> None:
    if name in {compose_config("pretrain", [f"policy={choice}"]).policy.type for choice in options_of("policy")}:
        return
    from policies.factory import CONFIGS  # slow, so for a name that no shipped config has

    if name not in CONFIGS:
        raise UserError(f"pretrain: policy.type={name} does not exist. {nearest(name, CONFIGS)}")


def _check_generator(config: Any) -> None:
    from vag_core.video_branch import BACKBONES, TOKENIZERS

    for key, kind, known in (("tokenizer", config.tokenizer.kind, TOKENIZERS), ("video", config.video.kind, BACKBONES)):
        if kind not in known:
            raise UserError(f"train-generator: generator.{key}.kind={kind} does not exist. {nearest(kind, known)}")
    with user_errors():
        config.validate()


def check_stages(stages: Iterable[tuple[str, list[str]]]) -> None:
    """Raise UserError for a mistake in any of these commands and their overrides, before the first one begins."""
    for command, overrides in dict.fromkeys((command, tuple(overrides)) for command, overrides in stages):
        check_stage(command, list(overrides))


def stage[Result](directory: Path, command: str, overrides: list[str], kind: type[Result]) -> Result:
    """Run one command into its directory, go on with an unfinished one, or take a finished one as it is."""
    note(directory, run=True)
    if (directory / RECORD).exists() and read_record(directory)["status"] == "finished":
        record = check_begun(directory, command, overrides)
        return from_json(kind, record["result"], directory / RECORD)
    return cast(Result, cli.execute(command, [*overrides, f"out={directory}", "resume=true"], stage=True))


def finished_result[Result](directory: Path, kind: type[Result]) -> Result | None:
    """What a finished stage found; None if it was not begun or has not finished. Raises UserError if it is damaged."""
    if not (directory / RECORD).exists():
        return None
    record = read_record(directory)
    return from_json(kind, record["result"], directory / RECORD) if record["status"] == "finished" else None


def needed_result[Result](directory: Path, kind: type[Result]) -> Result:
    """What a stage found. Raises UserError unless it has finished."""
    if (result := finished_result(directory, kind)) is None:
        raise UserError(f"{directory}: its stage has not finished; resume=true makes it")
    return result


def entry[Item](directory: Path, key: str, entries: dict[str, Item], name: str) -> Item:
    """An entry of a mapping in a stage's result. Raises UserError if it is missing."""
    if name not in entries:
        path = directory / RECORD
        raise UserError(f"{path}: 'result.{key}.{name}' is missing; delete {directory} to have it made again")
    return entries[name]


def check_begun(directory: Path, command: str, overrides: list[str]) -> dict[str, Any]:
    """The record of a stage. Raises UserError for another command, other settings, or a result that does not fit."""
    record = read_record(directory)
    if record["command"] != command:
        raise UserError(f"{directory}: holds a run of 'vag {record['command']}', expected one of 'vag {command}'")
    check_same(directory, record["config"], command, overrides)
    if record["status"] == "finished":
        from_json(RESULTS[command], record["result"], directory / RECORD)
    return record


def check_same(directory: Path, before: dict[str, Any], command: str, overrides: list[str]) -> None:
    """Raise UserError if a run was begun with other settings than those asked for now.

    Paths below the directory that all stages share may have moved with it.
    """
    if not isinstance(before.get("out"), str):
        raise UserError(f"{directory / RECORD}: damaged (no 'out' in 'config')")
    was, is_now = list(Path(before["out"]).parts), list(directory.parts)
    while was and is_now and was[-1] == is_now[-1]:
        was.pop()
        is_now.pop()
    old, new = f"{Path(*was)}/", f"{Path(*is_now)}/"
    earlier = {
        key: value.replace(old, new) if was and isinstance(value, str) else value for key, value in leaves(before)
    }
    default = _defaults(command)
    for key, now in leaves(cast(Any, OmegaConf.to_container(compose_config(command, overrides), resolve=True))):
        begun = earlier.get(key, default.get(key))  # a setting that is newer than the run was at its default
        if key not in NOT_COMPARED and begun != now:
            raise UserError(
                f"{directory}: begun with {key}={begun}; now it is {now}. "
                "Delete it and what was made from it to have them made again, or choose another out"
            )


@cache
def _defaults(command: str) -> dict[str, Any]:
    return dict(leaves(cast(Any, OmegaConf.to_container(compose_config(command, [])))))


def run_lanes(
    root: Path,
    lanes: dict[str, Lane],
    limit: int | None = None,
    after: dict[str, str] | None = None,
    keep_going: bool = False,
) -> list[str]:
    """One process per lane, `limit` at a time; a lane begins once the one that `after` names for it has ended.

    With a limit of 0 all run in this process, one after the other: small ones are done before a process has started.
    Lanes whose stages have all finished before are only checked, here, and wait for none: a study that grows starts no
    process for them.
    Returns the lanes that failed, and those that waited for them, if it is to `keep_going`; else raises UserError at
    the first. Their own messages are already on the screen.
    """
    after = after or {}
    for path in {path for lane in lanes.values() for path, *_ in lane}:
        note(root / path, run=True)
    finished = {name: lane for name, lane in lanes.items() if all(is_finished(root / path) for path, *_ in lane)}
    refused = _run_here(root, finished, {}, set(), keep_going)  # those that were finished with other settings
    earlier, waiting = finished.keys() - refused, [name for name in lanes if name not in finished]
    if limit == 0:
        return refused + _run_here(root, {name: lanes[name] for name in waiting}, after, earlier, keep_going)
    context, limit = multiprocessing.get_context("spawn"), limit or len(lanes)
    processes: dict[str, Any] = {}
    places: dict[str, int] = {}  # line of the progress bar
    try:
        while True:
            running = [name for name, process in processes.items() if process.is_alive()]
            if any(process.exitcode for process in processes.values()) and not keep_going:
                break  # no need to wait for the others
            done = earlier | {name for name, process in processes.items() if process.exitcode == 0}
            ready = [name for name in waiting if name not in after or after[name] in done]
            for name in ready[: limit - len(running)]:
                places[name] = min(set(range(limit)) - {places[other] for other in running})
                processes[name] = context.Process(target=_run_lane, args=(places[name], root, lanes[name]), name=name)
                processes[name].start()
                waiting.remove(name)
                running.append(name)
            if not running:
                break
            connection.wait([processes[name].sentinel for name in running])
        failed = [name for name, process in processes.items() if process.exitcode]
    except cli.Terminated:
        raise  # this process alone was told
    except KeyboardInterrupt:
        _wait(processes.values())  # they were interrupted too and clean up
        raise
    finally:
        for process in processes.values():
            process.terminate()
        _wait(processes.values())
        for process in processes.values():
            process.kill()
            process.join()
    if failed and not keep_going:
        raise _failure(failed)
    return refused + failed + waiting


def _wait(processes: Iterable[Any]) -> None:
    end = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))


def is_finished(directory: Path) -> bool:
    """If a stage has finished, as far as its record can be read."""
    try:
        return read_record(directory)["status"] == "finished"
    except UserError:  # not begun; or damaged, which the stage will say
        return False


def _run_here(root: Path, lanes: dict[str, Lane], after: dict[str, str], done: set[str], keep_going: bool) -> list[str]:
    waiting, failed = list(lanes), list[str]()
    while ready := [name for name in waiting if name not in after or after[name] in done]:
        name = ready[0]
        waiting.remove(name)
        try:
            code = cli.mendable(partial(_stages, root, lanes[name]))
        except Exception:
            traceback.print_exc()  # as a process would
            code = 1
        if code and not keep_going:
            raise _failure([name])
        failed += [name] if code else []
        done = done | (set() if code else {name})
    return failed + waiting


def _failure(lanes: list[str]) -> UserError:
    return UserError(f"stages of {', '.join(lanes)} failed; their messages stand above")


def _stages(root: Path, lane: Lane) -> int:
    for name, command, overrides in lane:
        stage(root / name, command, overrides, RESULTS[command])
    return 0


def _run_lane(position: int, root: Path, lane: Lane) -> None:
    die_with_parent()
    os.environ["VAG_PROGRESS_POSITION"] = str(position)
    with cli.terminable():
        try:
            code = cli.mendable(partial(_stages, root, lane))
        except KeyboardInterrupt:
            code = INTERRUPTED  # the command that all lanes belong to says so
    raise SystemExit(code)
