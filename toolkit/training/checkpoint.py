"""Whole training checkpoints: weights, average and optimizer, all in safetensors and JSON.

No random state: what a step draws depends on the seed and the step alone. Nothing is pickled. A checkpoint exists under
its final name only when it is complete and on the disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toolkit.base.errors import UserError, first_line
from toolkit.base.files import atomic_directory, discard
from toolkit.base.reading import read_json
from toolkit.training.optim import ExponentialMovingAverage, load_trained_state, trained_state

NAME = re.compile(r"step_(\d{6,9})")
PARTS = ("model", "ema", "optimizer")


def save_checkpoint(
    directory: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: ExponentialMovingAverage,
    metrics: dict[str, float],
) -> None:
    """Write `directory/step_XXXXXX`, then remove older ones. Raises UserError if a number in it is not finite."""
    state = optimizer.state_dict()["state"]
    moments = {f"{i}.{k}": torch.as_tensor(v) for i, values in state.items() for k, v in values.items()}
    parts = {"model": trained_state(module), "ema": average.shadow, "optimizer": moments}
    for name in PARTS:
        if bad := not_finite(parts[name].items()):
            raise UserError(f"{name}: '{bad}' holds NaN or infinity at step {step}")
    target = directory / f"step_{step:06d}"
    with atomic_directory(target) as temporary:
        for name, tensors in parts.items():
            save_file(
                {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
                temporary / f"{name}.safetensors",
            )
        (temporary / "state.json").write_text(json.dumps({"step": step, "metrics": metrics}))
    for old in saved_steps(directory).values():
        if old != target:
            discard(old)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds NaN or infinity, None if all are finite."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


def saved_steps(directory: Path) -> dict[int, Path]:
    """Step -> folder of the checkpoints there, in order; folders of other names are somebody else's."""
    found = {int(m[1]): path for path in directory.glob("step_*") if path.is_dir() and (m := NAME.fullmatch(path.name))}
    return dict(sorted(found.items()))


def load_checkpoint(
    directory: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: ExponentialMovingAverage,
    last: int | None = None,
) -> tuple[int, dict[str, float]]:
    """Restore the newest checkpoint in `directory`, strictly; returns its step and metrics, (0, {}) if none.

    Raises UserError for one that is damaged, does not fit, or lies beyond the `last` step of the training.
    """
    saved = saved_steps(directory)
    if not saved:
        return 0, {}
    named, path = list(saved.items())[-1]
    try:
        state = read_json(path / "state.json")
        step, metrics = state["step"], state["metrics"]
        if step != named or not 0 < step <= (last or step):
            raise ValueError(f"state.json says step {str(step)[:40]}, of {last}")
        if not isinstance(metrics, dict) or not all(isinstance(v, int | float) for v in metrics.values()):
            raise ValueError("state.json: 'metrics' is no table of numbers")
        tensors = {name: load_file(path / f"{name}.safetensors") for name in PARTS}
        moments = _moments(tensors["optimizer"], optimizer)
        if shapes(tensors["ema"]) != shapes(average.shadow):
            raise ValueError("ema.safetensors holds other tensors")
        load_trained_state(module, tensors["model"])
    except (
        *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, SafetensorError, UserError),
    ) as error:
        reason = first_line(error)
        raise UserError(
            f"{path}: cannot resume from it ({reason}); was the config changed? Delete the folder or use overwrite=true"
        ) from error
    for name, tensor in tensors["ema"].items():
        average.shadow[name].copy_(tensor)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return step, metrics


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    """Name -> shape and type."""
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _moments(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """State of the optimizer by parameter. Raises ValueError if it is not that of these parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        place = int(index)
        if not 0 <= place < len(parameters) or not key:
            raise ValueError(f"optimizer.safetensors: '{name[:60]}' is of no parameter")
        if tensor.ndim and tensor.shape != parameters[place].shape:
            raise ValueError(f"optimizer.safetensors: '{name[:60]}' has shape {tuple(tensor.shape)}")
        moments.setdefault(place, {})[key] = tensor
    expected = {"step", "exp_avg", "exp_avg_sq"}
    for place, values in moments.items():
        if values.keys() != expected:
            raise ValueError(f"optimizer.safetensors: parameter {place} has {', '.join(sorted(values))[:80]}")
    return moments
