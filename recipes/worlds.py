"""The world that a command acts in: its tasks, cameras and conventions against those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.world_options import WorldConfig
from toolkit.base.errors import UserError, nearest, warn
from toolkit.data.canvas import choose_cameras
from toolkit.data.conventions import Conventions
from toolkit.data.images import as_size
from toolkit.envs.base import Env, Size, World
from toolkit.envs.worlds import WorldSpec, open_world


def spec_of(config: WorldConfig) -> WorldSpec:
    """Which world is asked for. Raises UserError for one that cannot be."""
    return WorldSpec.of(config.env, config.env_options, config.success_key, config.env_instruction)


def world_of(config: WorldConfig) -> World:
    """The world that is asked for, opened. Raises UserError if it does not exist here."""
    return open_world(spec_of(config))


def world_values(config: WorldConfig) -> dict[str, Any]:
    """The same choice for a stage of another command; nothing where it is the default one."""
    values = {key: getattr(config, key) for key in ("env", "env_options", "success_key", "env_instruction")}
    return {key: value for key, value in values.items() if value}


def tasks_in(command: str, tasks: Sequence[str], world: World, key: str = "tasks") -> list[str]:
    """Tasks by their own names. Raises UserError for none, for one that does not exist, or is named twice.

    Of a world that has a single task, that one, whatever is named.
    """
    if len(world.tasks) == 1 and not set(tasks) & set(world.tasks):
        print(f"{command}: {key}=[{world.tasks[0]}], the one that env={world.name} has", flush=True)
        tasks = world.tasks
    if not tasks:
        raise UserError(f"{command}: {key}=[] is empty; name at least one, e.g. {key}=[push]")
    try:
        names = [world.task_name(task) for task in tasks]
    except UserError as error:
        raise UserError(f"{command}: {error}") from error
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{command}: {key} names '{name}' twice; its episodes would count twice")
    return names


def check_suites(command: str, suites: Sequence[str], world: World, new_tasks: Sequence[str]) -> None:
    """Raise UserError for a suite that the world does not show, or one that lacks its tasks."""
    if not suites:
        raise UserError(f"{command}: suites=[] is empty; choose from {', '.join(world.suites)}")
    for suite in suites:
        if suite not in world.suites:
            raise UserError(f"{command}: unknown suite '{suite}' of env={world.name}. {nearest(suite, world.suites)}")
        if world.suites[suite].new_tasks and not new_tasks:
            raise UserError(
                f"{command}: suite '{suite}' rolls out on tasks without real episodes; name them: new_tasks=[...]"
            )


def noted_world(config: WorldConfig, rows: Sequence[Mapping[str, Any]], where: str) -> WorldSpec:
    """The world that episodes come from, or the one that is asked for, which must be the same.

    Raises UserError if they contradict, if episodes are of several worlds, or for a world that a file must not start:
    one that runs code which only its user can name.
    """
    noted = list(dict.fromkeys(WorldSpec.noted(row, f"{where}: episode {index}") for index, row in enumerate(rows)))
    if len({spec.env for spec in noted}) > 1:
        raise UserError(f"{where}: its episodes are of {' and '.join(spec.env for spec in noted)}; replay each alone")
    if len(noted) > 1:
        raise UserError(f"{where}: its episodes were made with different options of {noted[0].env}; replay each alone")
    (own,) = noted or [WorldSpec()]
    asked = spec_of(config) if config.env or config.env_options else None
    if asked is None:
        if own.env.startswith("gymnasium:"):
            raise UserError(f"{where}: its episodes are of {own.env}, whose package runs; allow it by env={own.env}")
        return replace(own, success_key=config.success_key or own.success_key)
    if asked.env != own.env:
        raise UserError(f"env={asked.env}: the episodes of {where} are of {own.env}; leave env out, or give their own")
    if config.env_options and asked.options != own.options:
        raise UserError(f"env_options={asked.options}: the episodes of {where} were made with {own.options}")
    return replace(own, success_key=config.success_key or own.success_key)


def check_simulated(checkpoint: str | Path, env: Env, name: str, remedy: str) -> None:
    """Warn if a checkpoint was trained on cameras that the world does not show.

    Raises UserError if it was at another rate, or on dimensions of other names.
    """
    trained = Conventions.of(checkpoint)
    where = "the simulator" if name == "metaworld" else f"env={name}"
    remedy = f"choose the world of its data by env=..., or {remedy}"
    trained.check(Conventions(where, env.fps, named(env.state_names), named(env.action_names)), remedy=remedy)
    cameras = trained.cameras_of([])
    if len(cameras) == len(env.cameras) == 1 and cameras != list(env.cameras):
        warn(f"{checkpoint}: was trained on the pictures of {cameras[0]}; {where} shows {', '.join(env.cameras)}")


def named(names: Sequence[str]) -> list[str]:
    """Names of dimensions that say something; none where they are numbered."""
    return [] if all(name.endswith(f"_{index}") for index, name in enumerate(names)) else list(names)


def cameras_for(
    wanted: Sequence[str], env: Env, rename: Mapping[str, str], name: str, checkpoint: str | Path
) -> dict[str, str]:
    """The world's camera for each that a checkpoint sees; the only one for the only one, whatever their names.

    Raises UserError for one that the world does not show, with those that it shows.
    """
    shown = list(env.cameras)
    if len(wanted) == len(shown) == 1 and not rename:
        return {wanted[0]: shown[0]}
    try:
        return choose_cameras(shown, wanted, rename, "the simulator" if name == "metaworld" else f"env={name}")
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from error


def recorded_size(value: Any) -> Size:
    """Of `image_size`: pixels of the longer side, (height, width), or None for the world's own."""
    return value if value is None or isinstance(value, int) else as_size(value, "image_size")
