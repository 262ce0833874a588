"""Which world: a small spec that travels to worker processes, and what opens it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from toolkit.base.errors import UserError
from toolkit.envs.base import World

METAWORLD = "metaworld"
PLAIN = re.compile(r"[\w.+-]{0,100}")  # words that options from a file may hold: neither paths nor names of modules


@dataclass(frozen=True)
class WorldSpec:
    """env: metaworld, lerobot:<type of an EnvConfig> or gymnasium:<id>.

    options: JSON of fields of the EnvConfig, or of keywords of `gymnasium.make`. success_key: of `info`, None = one of
    those that are usual. instruction: of tasks that have no text.
    """

    env: str = METAWORLD
    options: str = "{}"
    success_key: str | None = None
    instruction: str | None = None

    @classmethod
    def of(
        cls,
        env: str | None,
        options: Mapping[str, Any] | None = None,
        success_key: str | None = None,
        instruction: str | None = None,
    ) -> WorldSpec:
        """env: None = metaworld. Raises UserError for an unknown kind of world, or options of Meta-World."""
        env = env or METAWORLD
        kind, sign, name = env.partition(":")
        if env != METAWORLD and (kind not in ("lerobot", "gymnasium") or not sign or not name):
            raise UserError(f"env={env}: expected metaworld, lerobot:<type> such as lerobot:aloha, or gymnasium:<id>")
        for key, value in (("env_options", options), ("success_key", success_key), ("env_instruction", instruction)):
            if env == METAWORLD and value:
                raise UserError(f"{key}={value}: Meta-World has none; it is for env=lerobot:<type> or gymnasium:<id>")
        return cls(env, json.dumps(dict(options or {}), sort_keys=True), success_key, instruction)

    @property
    def is_metaworld(self) -> bool:
        return self.env == METAWORLD

    @property
    def metadata(self) -> dict[str, str]:
        """What is noted of an episode: nothing of Meta-World."""
        if self.is_metaworld:
            return {}
        settings = {"options": json.loads(self.options), "success_key": self.success_key}
        settings["instruction"] = self.instruction
        return {"world": self.env, "world_settings": json.dumps(settings, sort_keys=True)}

    @classmethod
    def noted(cls, row: Mapping[str, Any], where: str) -> WorldSpec:
        """Inverse of `metadata`, Meta-World where nothing is noted.

        Raises UserError, with `where` in front, for settings that are more than numbers and plain words: nobody's file
        may name code or paths.
        """
        env = row.get("world")
        if not isinstance(env, str) or not env or env == METAWORLD:
            return cls()
        try:
            settings = json.loads(row.get("world_settings") or "{}")
            options, key, text = (settings.get(name) for name in ("options", "success_key", "instruction"))
            if not isinstance(options or {}, dict) or not all(map(_is_plain, [key, *(options or {}).values()])):
                raise ValueError("more than numbers and words")
            if not isinstance(text, str | None):
                raise ValueError("an instruction that is no text")
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where}: 'world_settings' are damaged ({error}); expected options that are numbers or words"
            ) from error
        return cls.of(env, options, key, text)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return (
        value is None
        or isinstance(value, bool | int | float)
        or bool(isinstance(value, str) and PLAIN.fullmatch(value))
    )


@cache
def open_world(spec: WorldSpec) -> World:
    """The world of a spec, once in a process. Raises UserError if it does not exist or is not installed."""
    if spec.is_metaworld:
        from toolkit.envs.metaworld import MetaWorld

        return MetaWorld()
    from toolkit.envs.lerobot_world import LeRobotWorld

    return LeRobotWorld(spec)
