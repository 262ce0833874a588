"""What a robot's numbers and pictures mean, beside their width: rate, names, camera. Checkpoints keep them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.base.errors import UserError, warn
from toolkit.base.files import write_json
from toolkit.base.reading import read_json
from toolkit.data.clips import ClipStore
from toolkit.data.episode import IMAGE

CONVENTIONS = "conventions.json"


# What to do about a policy's checkpoint that does not fit, and about a generator's.
REFIT = "refit_statistics=true goes on from its weights all the same"
RETRAIN = "train a generator on such data"


@dataclass(frozen=True)
class Conventions:
    """What the data that a checkpoint was trained on mean. Empty, or a rate of 0, where nobody said."""

    name: str  # what messages call it
    fps: float
    state_names: Sequence[str]
    action_names: Sequence[str]
    camera: str = ""  # key of the pictures in the dataset
    picture_size: Sequence[int] = ()  # (H, W), as the network takes them

    @classmethod
    def shared(cls, parts: Sequence[ClipStore | Conventions]) -> Conventions:
        """Those of data that is trained on together: the names of the widest, none where those disagree."""
        names: dict[str, list[str]] = {}
        for key in ("state_names", "action_names"):
            told = [list(getattr(part, key)) for part in parts]
            widest = [found for found in told if len(found) == max(map(len, told))]
            names[key] = widest[0] if all(found == widest[0] for found in widest) else []
        camera = next((part.camera for part in parts if part.camera), "")
        return cls(parts[0].name, parts[0].fps, **names, camera=camera, picture_size=list(parts[0].picture_size))

    @classmethod
    def of(cls, checkpoint: str | Path) -> Conventions:
        """As `read`; nothing but the name where the checkpoint does not say."""
        return cls.read(checkpoint) or cls(str(checkpoint), 0, [], [])

    @classmethod
    def read(cls, checkpoint: str | Path) -> Conventions | None:
        """`conventions.json` of a checkpoint; None if it has none. Raises UserError if it is damaged."""
        path = Path(checkpoint) / CONVENTIONS
        if not os.path.lexists(path):
            return None
        found = read_json(path)
        try:
            fps, names = float(found["fps"]), {key: found[key] for key in ("state_names", "action_names")}
            camera, size = found.get("camera", ""), found.get("picture_size", [])  # version 0.1 had neither
            listed = all(isinstance(told, list) and all(isinstance(n, str) for n in told) for told in names.values())
            sized = isinstance(size, list) and len(size) in (0, 2) and all(type(n) is int and n > 0 for n in size)
            if not (0 < fps < np.inf and listed and isinstance(camera, str) and sized):
                raise ValueError("no rate above 0, no lists of names, no camera, or no two sizes")
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise UserError(f"{path}: damaged ({error}); expected fps, state_names and action_names") from error
        return cls(str(checkpoint), fps, **names, camera=camera, picture_size=size)

    def write(self, directory: Path) -> None:
        """Write `conventions.json` into a directory that is still under its temporary name."""
        listed = {key: list(getattr(self, key)) for key in ("state_names", "action_names", "picture_size")}
        write_json(directory / CONVENTIONS, {"fps": self.fps, **listed, "camera": self.camera})

    def check(self, store: ClipStore | Conventions, names: bool = True, remedy: str = REFIT) -> None:
        """Raise UserError if a dataset has another rate or, where both tell `names` of dimensions, other ones."""
        if self.fps and round(store.fps) != round(self.fps):
            raise UserError(
                f"{store.name}: {store.fps:g} steps a second; {self.name} was trained on {self.fps:g}: the same action "
                f"would last another time. {remedy}"
            )
        for key in ("state_names", "action_names") if names else ():
            now, before = list(getattr(store, key)), list(getattr(self, key))
            if now and before and now != before:
                raise UserError(
                    f"{store.name}: its {key} are {', '.join(now)}; {self.name} was trained on {', '.join(before)}. If "
                    f"they are the same, give them the same names in meta/info.json; if not, {remedy}"
                )

    def camera_of(self, given: str | None) -> str:
        """The camera to read: the one that is given, else that of the training. Warns where the two differ."""
        if given and self.camera and given != self.camera:
            warn(f"image_key={given}: {self.name} was trained on the pictures of {self.camera}")
        return given or self.camera or IMAGE


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
