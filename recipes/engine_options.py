"""Options of commands whose work an engine does: processes of this machine, or a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from toolkit.base.engine import MOST_CPUS, MOST_GPUS, Engine, EngineConfig, Resources, check_local, open_engine
from toolkit.base.errors import UserError, nearest
from toolkit.base.options import option, part

ENGINE = "which processes do the work"


@dataclass
class EngineOptions:
    """Of a command that maps over episodes."""

    engine: EngineConfig = part(EngineConfig, ENGINE)


@dataclass
class StageEngineConfig(EngineConfig):
    """Of a command that is made of others; on this machine `lanes` says how many run side by side."""

    stage_cpus: dict[str, float] = option({}, "by command, instead of cpus: {evaluate: 2}", above=0, most=MOST_CPUS)
    stage_gpus: dict[str, float] = option({}, "by command, instead of gpus: {evaluate: 0.25}", least=0, most=MOST_GPUS)


@dataclass
class StageEngineOptions:
    """Of a command that is made of others."""

    engine: StageEngineConfig = part(StageEngineConfig, ENGINE)


def stages_engine(config: StageEngineConfig, root: Path) -> Engine | None:
    """The cluster that runs the stages below `root`; None = this machine, in lanes.

    Raises UserError for a cluster that does not fit, and for a command that does not exist.
    """
    from recipes.study_schema import SCHEMAS

    for key in ("stage_cpus", "stage_gpus"):
        for command in getattr(config, key):
            if command not in SCHEMAS:
                raise UserError(f"engine.{key}: '{command}' is no command. {nearest(command, SCHEMAS)}")
    check_local(config)
    if config.kind == "local":
        return None
    return open_engine(config, root, gpus=None, resources=partial(chain_resources, config))


def chain_resources(config: StageEngineConfig, chain: Any) -> Resources:
    """Of the process that runs a chain of stages: the most that one of them needs."""
    cpus = [config.stage_cpus.get(stage.command, config.cpus) for stage in chain.stages]
    gpus = [config.stage_gpus.get(stage.command, stage_gpus(config, stage.config)) for stage in chain.stages]
    return Resources(max(cpus), None if None in gpus else max(gpu for gpu in gpus if gpu is not None))


def stage_gpus(config: StageEngineConfig, stage: Any) -> float | None:
    """Of one stage, by its config: None, one where there are any, if it computes on a GPU."""
    runtime = getattr(stage, "runtime", None)
    return 0.0 if runtime is None or runtime.device == "cpu" else config.gpus
