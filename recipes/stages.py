"""Commands that are made of others: each stage in a run directory of its own, several side by side, all resumable."""

from __future__ import annotations

import os
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from recipes import cli, terminal
from recipes.common import user_errors
from recipes.compose import check_config, compose_config, options_of
from recipes.worlds import tasks_in, world_of
from toolkit.base.engine import Engine, LocalEngine
from toolkit.base.errors import InUseError, UserError, nearest
from toolkit.base.manifest import note
from toolkit.base.record import RECORD, leaves, read_record
from toolkit.base.run import is_compared
from toolkit.base.shared_run import PATIENCE
from toolkit.base.typed_json import from_json
from toolkit.reporting.results import RESULTS
from toolkit.training.runtime import take_gpus

INTERRUPTED = 130
# Of commands that bring held-out scenes of their own: their generators learn from all episodes, as in old records.
EVERY_EPISODE = {"held_out_fraction": 0.0}
BEFORE = {"train-generator": EVERY_EPISODE}  # what runs did that are older than a setting, where not its default


# ---------------------------------------------------------------------------------------------------- what a stage is


@dataclass(frozen=True)
class Stage:
    """One command with its config, in the directory `name` below that of all; it begins after those that it needs."""

    name: str
    command: str
    config: Any  # of the command's schema
    needs: tuple[str, ...] = ()


def make_stage(
    name: str,
    command: str,
    defaults: Mapping[str, Any],
    words: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    needs: Iterable[str] = (),
) -> Stage:
    """A stage whose config is composed of words. Raises UserError for what the command would refuse only when it runs.

    That is a key, a number out of its range, a task, suite, generator or policy that does not exist, sizes that do not
    fit. defaults: values by dotted key that the words may change; values: those that they may not.
    """
    config = deepcopy(_composed(command, tuple(words)))
    named = {word.partition("=")[0].strip().lstrip("+") for word in words}
    chosen = {key: value for key, value in defaults.items() if key not in named}
    for key, value in {**chosen, **(values or {})}.items():
        OmegaConf.update(config, key, value, merge=False)
    typed: Any = OmegaConf.to_object(check_config(command, config))
    _check_names(command, typed)
    return Stage(name, command, typed, tuple(needs))


@cache
def _composed(command: str, words: tuple[str, ...]) -> DictConfig:
    return compose_config(command, list(words))


def _check_names(command: str, config: Any) -> None:
    """Raise UserError for a task, policy or kind of generator that does not exist, and for sizes that do not fit."""
    simulated = command == "collect" or (command == "synthesize" and config.scenes_from is None)
    if simulated or (command == "evaluate" and config.dataset is None):
        world = world_of(config)
        tasks_in(command, config.tasks, world)
        if new_tasks := getattr(config, "new_tasks", []):
            tasks_in(command, new_tasks, world, "new_tasks")
    if command == "pretrain" and config.policy.type not in {*(known := options_of("policy")), *config.allow}:
        raise UserError(
            f"pretrain: policy.type={config.policy.type} does not exist. {nearest(config.policy.type, known)}"
        )
    if command == "train-generator":
        _check_generator(config.generator)


def _check_generator(config: Any) -> None:
    with user_errors():
        config.validate()


def in_turn(stages: Sequence[Stage]) -> list[Stage]:
    """Stages that need nothing else, each after the one before it: one process runs them all."""
    before = [(), *((stage.name,) for stage in stages)]
    return [replace(stage, needs=need) for stage, need in zip(stages, before, strict=False)]


# ------------------------------------------------------------------------------------------------ one stage, its result


def run_stage[Result](root: Path, stage: Stage, kind: type[Result]) -> Result:
    """Run a stage, go on with an unfinished one, or take a finished one as it is. kind: that of its result."""
    directory = root / stage.name
    note(directory, run=True)
    if (directory / RECORD).exists() and read_record(directory)["status"] == "finished":
        return from_json(kind, check_begun(root, stage)["result"], directory / RECORD)
    whole = read_record(root)["config"] if (root / RECORD).exists() else {}
    config = replace(deepcopy(stage.config), out=str(directory), resume=True, strict=whole.get("strict") is True)
    return cast(Result, cli.run_recipe(stage.command, config, stage=True))


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


def is_finished(directory: Path) -> bool:
    """If a stage has finished, as far as its record can be read."""
    try:
        return read_record(directory)["status"] == "finished"
    except UserError:  # not begun; or damaged, which the stage will say
        return False


def check_begun(root: Path, stage: Stage) -> dict[str, Any]:
    """The record of a stage that was begun.

    Raises UserError if it is of another command, was begun with other settings than those asked for now, or has a
    result that does not fit. Paths below the directory that all stages share may have moved with it.
    """
    directory = root / stage.name
    record = read_record(directory)
    if record["command"] != stage.command:
        raise UserError(f"{directory}: holds a run of 'vag {record['command']}', expected one of 'vag {stage.command}'")
    before = record["config"]
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
    default = _defaults(stage.command)
    for key, now in leaves(asdict(stage.config)):
        begun = earlier.get(key, default.get(key))  # a setting that is newer than the run was at its default
        if is_compared(key) and begun != now:
            raise UserError(
                f"{directory}: begun with {key}={begun}; now it is {now}. "
                "Delete it and what was made from it to have them made again, or choose another out"
            )
    if record["status"] == "finished":
        from_json(RESULTS[stage.command], record["result"], directory / RECORD)
    return record


@cache
def _defaults(command: str) -> dict[str, Any]:
    return {**dict(leaves(cast(Any, OmegaConf.to_container(compose_config(command, []))))), **BEFORE.get(command, {})}


# ---------------------------------------------------------------------------------------------------------- many stages


@dataclass(frozen=True)
class Chain:
    """Stages that one process runs in turn, and the stages that must have finished before the first one begins."""

    stages: list[Stage]
    needs: set[str]

    @property
    def names(self) -> set[str]:
        return {stage.name for stage in self.stages}


def chains_of(stages: Sequence[Stage], names: set[str]) -> list[Chain]:
    """A stage joins the one before it if it needs that and no other one does: a process takes long to start.

    names: of all stages that run now. What a stage needs beyond them has been made before.
    """
    users = Counter(name for stage in stages for name in stage.needs)
    chains: list[Chain] = []
    for stage in stages:
        needs = names.intersection(stage.needs)
        last = chains[-1].stages[-1].name if chains else ""
        if last in needs and users[last] == 1:
            chains[-1] = Chain([*chains[-1].stages, stage], chains[-1].needs | (needs - chains[-1].names))
        else:
            chains.append(Chain([stage], needs))
    return chains


def run_stages(
    root: Path,
    stages: Sequence[Stage],
    limit: int | None = None,
    keep_going: bool = False,
    engine: Engine | None = None,
) -> list[str]:
    """Run stages in several processes, `limit` at a time; each begins once those that it needs have finished.

    With a limit of 0 all run in this process, one after the other: small ones are done before a process has started.
    engine: a cluster instead, which itself decides how many; None = this machine.
    Stages that have finished before are only checked, here, and wait for none: a study that grows starts no process
    for them.
    Returns the stages that failed or stood behind one in its process, and those that waited for them, if it is to
    `keep_going`; else raises UserError at the first. Their own messages are already on the screen.
    """
    for stage in stages:
        note(root / stage.name, run=True)
    finished = [Chain([stage], set()) for stage in stages if is_finished(root / stage.name)]
    refused = _run_here(root, finished, set(), keep_going)  # of other settings, or damaged
    done = {chain.stages[0].name for chain in finished if chain not in refused}
    begin = [stage for stage in stages if not is_finished(root / stage.name)]
    chains = chains_of(begin, {stage.name for stage in stages})
    if engine is None and limit == 0:
        failed = _run_here(root, chains, done, keep_going)
    else:
        lanes = min(limit or len(chains), max(1, len(chains)))
        work = partial(_run_chain, root, lanes if engine is None else None)
        failed, left = (engine or LocalEngine(lanes)).graph(work, chains, done, keep_going)
        if failed and not keep_going:
            raise _failure(root, failed)
        failed = [*failed, *left]
    return [stage.name for chain in [*refused, *failed] for stage in chain.stages]


def _run_here(root: Path, chains: list[Chain], done: set[str], keep_going: bool) -> list[Chain]:
    waiting, failed = list(chains), list[Chain]()
    while ready := [chain for chain in waiting if chain.needs <= done]:
        chain = ready[0]
        waiting.remove(chain)
        try:
            code = terminal.mendable(partial(_run_all, root, chain))
        except Exception:
            traceback.print_exc()  # as a process would
            code = 1
        if code and not keep_going:
            raise _failure(root, [chain])
        failed += [chain] if code else []
        done = done | (set() if code else chain.names)
    return failed + waiting


def _failure(root: Path, chains: list[Chain]) -> UserError:
    """One line that names the first stage of each chain that has not finished; of a finished one, the first."""
    names = [
        next((stage.name for stage in chain.stages if not is_finished(root / stage.name)), chain.stages[0].name)
        for chain in chains
    ]
    return UserError(f"{', '.join(names)} failed; the messages stand above")


def _run_all(root: Path, chain: Chain, patience: float = 0.0) -> int:
    """patience: seconds that a stage waits for a process that was lost with its node, and has not ended yet."""
    for stage in chain.stages:
        ended = time.monotonic() + patience
        while True:
            try:
                run_stage(root, stage, RESULTS[stage.command])
                break
            except InUseError:
                if time.monotonic() > ended:
                    raise
                time.sleep(1)
    return 0


def _run_chain(root: Path, lanes: int | None, chain: Chain, position: int) -> None:
    """In a process of its own. lanes: of this machine, which share its GPUs, None on a cluster; position: of this one,
    and of its progress bar."""
    os.environ["VAG_PROGRESS_POSITION"] = str(position)
    if lanes is not None:
        take_gpus(position, lanes)
    with terminal.terminable(), terminal.quiet_libraries():
        try:
            code = terminal.mendable(partial(_run_all, root, chain, PATIENCE if lanes is None else 0.0))
        except KeyboardInterrupt:
            code = INTERRUPTED  # the command that all stages belong to says so
    raise SystemExit(code)
