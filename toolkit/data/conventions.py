"""What a robot's numbers mean, beside their width: rate and names. A policy keeps those of its training data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.base.errors import UserError
from toolkit.base.files import write_json
from toolkit.base.reading import read_json
from toolkit.data.clips import ClipStore

CONVENTIONS = "conventions.json"


@dataclass(frozen=True)
class Conventions:
    """What a robot's numbers mean, beside their width. A policy keeps those of the data that it was trained on."""

    name: str  # what messages call it
    fps: float
    state_names: Sequence[str]  # empty where nobody said
    action_names: Sequence[str]

    @classmethod
    def shared(cls, parts: Sequence[ClipStore | Conventions]) -> Conventions:
        """Those of data that is trained on together: the names of the widest, none where those disagree."""
        names: dict[str, list[str]] = {}
        for key in ("state_names", "action_names"):
            told = [list(getattr(part, key)) for part in parts]
            widest = [found for found in told if len(found) == max(map(len, told))]
            names[key] = widest[0] if all(found == widest[0] for found in widest) else []
        return cls(parts[0].name, parts[0].fps, **names)

    @classmethod
    def read(cls, checkpoint: str | Path) -> Conventions | None:
        """`conventions.json` of a checkpoint; None if it has none. Raises UserError if it is damaged."""
        path = Path(checkpoint) / CONVENTIONS
        if not os.path.lexists(path):
            return None
        found = read_json(path)
        try:
            fps, names = float(found["fps"]), {key: found[key] for key in ("state_names", "action_names")}
            listed = all(isinstance(told, list) and all(isinstance(n, str) for n in told) for told in names.values())
            if not (0 < fps < np.inf and listed):
                raise ValueError("no rate above 0, or no lists of names")
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise UserError(f"{path}: damaged ({error}); expected fps, state_names and action_names") from error
        return cls(str(checkpoint), fps, **names)

    def write(self, directory: Path) -> None:
        """Write `conventions.json` into a directory that is still under its temporary name."""
        told = {"fps": self.fps, "state_names": list(self.state_names), "action_names": list(self.action_names)}
        write_json(directory / CONVENTIONS, told)

    def check(self, store: ClipStore, names: bool = True) -> None:
        """Raise UserError if a dataset has another rate or, where both tell `names` of dimensions, other ones."""
        if round(store.fps) != round(self.fps):
            raise UserError(
                f"{store.name}: {store.fps:g} steps a second; {self.name} was trained on {self.fps:g}: the same action "
                "would last another time. refit_statistics=true goes on from its weights all the same"
            )
        for key in ("state_names", "action_names") if names else ():
            now, before = list(getattr(store, key)), list(getattr(self, key))
            if now and before and now != before:
                raise UserError(
                    f"{store.name}: its {key} are {', '.join(now)}; {self.name} was trained on {', '.join(before)}. If "
                    "they are the same, give them the same names in meta/info.json; if not, refit_statistics=true goes "
                    "on from its weights all the same"
                )


def check_dimensions(stores: Sequence[ClipStore]) -> None:
    """Raise UserError where datasets name the dimensions of states or actions differently: equal widths say little."""
    for key in ("state_names", "action_names"):
        told = [(store, list(getattr(store, key))) for store in stores if getattr(store, key)]
        for store, names in told[1:]:
            if names != told[0][1]:
                raise UserError(
                    f"{store.name}: its {key} are {', '.join(names)}; {told[0][0].name} has {', '.join(told[0][1])}: "
                    "they would be taken for the same. If they are, give both the same names in meta/info.json"
                )
