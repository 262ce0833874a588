"""The held-out loss over a training, kept in a file: which step was the best, and whether it rises since."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError
from toolkit.base.files import write_json
from toolkit.base.processes import processes
from toolkit.base.reading import read_json

RISE = 1.02  # times the lowest loss: less is no rise
IN_A_ROW = 3  # measurements, each above the one before


@dataclass
class LossCurve:
    """Steps in order and the loss at each, as `path` keeps them."""

    path: Path
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> LossCurve:
        """What the file holds, nothing where there is none. Raises UserError if it is damaged."""
        if not path.exists():
            return cls(path)
        points = read_json(path).get("points")
        if not isinstance(points, list) or not all(map(_is_point, points)):
            raise UserError(f"{path}: damaged; expected steps with a held-out loss each. Use overwrite=true")
        curve = cls(path, [point["step"] for point in points], [float(point["loss"]) for point in points])
        if curve.steps != sorted(set(curve.steps)):
            raise UserError(f"{path}: damaged; its steps do not rise. Use overwrite=true")
        return curve

    def forget_after(self, step: int) -> None:
        """Leave out what came after a step; the file follows with the next point."""
        kept = sum(one <= step for one in self.steps)
        del self.steps[kept:], self.losses[kept:]

    def is_lowest(self, loss: float) -> bool:
        """If a loss is below all that there are."""
        return loss < min(self.losses, default=math.inf)

    def add(self, step: int, loss: float) -> None:
        """Take in a point, and write the file, in the main process."""
        self.steps.append(step)
        self.losses.append(loss)
        points = [{"step": step, "loss": loss} for step, loss in zip(self.steps, self.losses, strict=True)]
        if processes().is_main:
            write_json(self.path, {"points": points})

    @property
    def best(self) -> int:
        """The place of the lowest loss, the first of equal ones."""
        return self.losses.index(min(self.losses))

    @property
    def has_risen(self) -> bool:
        """If the last loss is clearly above the lowest one."""
        return bool(self.losses) and self.losses[-1] > RISE * min(self.losses)

    @property
    def begins_to_rise(self) -> bool:
        """If the last of the losses is the first at which it has risen clearly, and several times in a row."""
        return [end for end in range(len(self.losses) + 1) if self._rises_at(end)][:1] == [len(self.losses)]

    def _rises_at(self, end: int) -> bool:
        last = self.losses[max(0, end - IN_A_ROW - 1) : end]
        rises = len(last) > IN_A_ROW and all(a < b for a, b in pairwise(last))
        return rises and last[-1] > RISE * min(self.losses[:end])


def _is_point(value: Any) -> bool:
    if not isinstance(value, dict) or type(value.get("step")) is not int or value["step"] < 1:
        return False
    loss = value.get("loss")
    return isinstance(loss, int | float) and not isinstance(loss, bool) and math.isfinite(loss)
