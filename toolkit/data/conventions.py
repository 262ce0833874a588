"""What a robot's numbers and pictures mean, beside their width: rate, names, cameras. Checkpoints keep them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, warn
from toolkit.base.files import write_json
from toolkit.base.reading import read_json
from toolkit.data.canvas import Canvas, describe_cameras
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
    canvas: Canvas | None = None  # cameras, their sizes and where the network sees them
    robot_type: str = ""
    codec: str = ""  # of its videos
    name_views: bool = False  # instructions say which camera the canvas shows where

    @classmethod
    def shared(cls, parts: Sequence[ClipStore | Conventions]) -> Conventions:
        """Those of data that is trained on together: the names of the widest, none where those disagree."""
        names: dict[str, Any] = {}
        for key in ("state_names", "action_names"):
            told = [list(getattr(part, key)) for part in parts]
            widest = [found for found in told if len(found) == max(map(len, told))]
            names[key] = widest[0] if all(found == widest[0] for found in widest) else []
        robot, codec = (
            next((getattr(part, key) for part in parts if getattr(part, key)), "") for key in ("robot_type", "codec")
        )
        return cls(parts[0].name, parts[0].fps, **names, canvas=parts[0].canvas, robot_type=robot, codec=codec)

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
            canvas = _canvas_of(found)
            texts = {key: found.get(key, "") for key in ("robot_type", "codec")}
            listed = all(isinstance(told, list) and all(isinstance(n, str) for n in told) for told in names.values())
            named = found.get("name_views", False)
            if not (0 < fps < np.inf and listed and all(isinstance(text, str) for text in texts.values())):
                raise ValueError("no rate above 0, no lists of names, or a robot_type or codec that is no text")
            if not isinstance(named, bool):
                raise ValueError("name_views is neither true nor false")
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise UserError(f"{path}: damaged ({error}); expected fps, state_names and action_names") from error
        return cls(str(checkpoint), fps, **names, canvas=canvas, name_views=named, **texts)

    @property
    def views(self) -> str:
        """What instructions say of the cameras, if anything."""
        return self.canvas.description if self.name_views and self.canvas is not None else ""

    def write(self, directory: Path) -> None:
        """Write `conventions.json` into a directory that is still under its temporary name."""
        listed = {key: list(getattr(self, key)) for key in ("state_names", "action_names")}
        canvas = {} if self.canvas is None else {"canvas": self.canvas.to_dict()}
        texts = {"robot_type": self.robot_type, "codec": self.codec}
        views = {"name_views": True} if self.name_views else {}
        write_json(directory / CONVENTIONS, {"fps": self.fps, **listed, **canvas, **texts, **views})

    def check(self, store: ClipStore | Conventions, names: bool = True, remedy: str = REFIT) -> None:
        """Raise UserError if a dataset has another rate or, where both tell `names` of dimensions, other ones.

        Pictures of another shape are a warning: they are letterboxed in another way.
        """
        if self.canvas is not None and store.canvas is not None and self.canvas.places != store.canvas.places:
            ours, theirs = describe_cameras(self.canvas), describe_cameras(store.canvas)
            warn(f"{store.name}: pictures of {theirs}; {self.name} was trained on {ours}: their bars stand elsewhere")
        if self.fps and round(store.fps) != round(self.fps):
            is_data = not isinstance(store, Conventions)  # else a robot or a world, which has its rate
            lower = f"vag import resample_fps={self.fps:g} lowers it, or " if is_data and store.fps > self.fps else ""
            raise UserError(
                f"{store.name}: {store.fps:g} steps a second; {self.name} was trained on {self.fps:g}: the same action "
                f"would last another time. {lower}{remedy}"
            )
        for key in ("state_names", "action_names") if names else ():
            now, before = list(getattr(store, key)), list(getattr(self, key))
            if now and before and now != before:
                where = f"{CONVENTIONS} of the checkpoint" if isinstance(store, Conventions) else "meta/info.json"
                raise UserError(
                    f"{store.name}: its {key} are {', '.join(now)}; {self.name} was trained on {', '.join(before)}. If "
                    f"they are the same, give them the same names in {where}; if not, {remedy}"
                )

    def cameras_of(self, given: Sequence[str]) -> list[str]:
        """The cameras to read: those of the training, in its order. Raises UserError if others are given.

        Of a checkpoint that does not say, the given ones or observation.image.
        """
        trained = [IMAGE] if self.canvas is None else list(self.canvas.cameras)
        if self.canvas is None:
            return list(given) or trained
        if given and sorted(given) != sorted(trained):
            raise UserError(
                f"cameras=[{', '.join(given)}]: {self.name} was trained on {', '.join(trained)}; leave cameras out, "
                f"and give rename={{{given[0]}: {trained[0]}}} where the same camera has another name"
            )
        return trained


def _canvas_of(found: dict[str, Any]) -> Canvas | None:
    if "canvas" in found:
        return Canvas.from_dict(found["canvas"])
    if isinstance(camera := found.get("camera"), str) and found.get("picture_size"):  # of the one camera there was
        size = found["picture_size"]
        return Canvas.from_dict({"cameras": {camera or IMAGE: size}, "cell": size})
    return None  # of version 0.1


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
