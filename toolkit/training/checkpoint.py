"""Whole training checkpoints: weights, average and optimizer, all in safetensors and JSON.

No random state: what a step draws depends on the seed and the step alone. Nothing is pickled. A checkpoint exists under
its final name only when it is complete and on the disk.

Of a network that is divided among processes (`fsdp`) each process of one group writes its parts into files of its own,
`model-shard-1-of-8.safetensors`; what is not divided is in `model.safetensors`, as always.
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

from toolkit.base.errors import NotFiniteError, UserError, first_line
from toolkit.base.files import atomic_directory, discard
from toolkit.base.processes import processes
from toolkit.base.reading import read_json
from toolkit.training.fsdp import FullySharded, is_sharded, like_parameter, local
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
    shards: FullySharded | None = None,
) -> None:
    """Write `directory/step_XXXXXX`, then remove older ones. Raises UserError if a number in it is not finite.

    The main process alone calls it, or with `shards` all of them.
    """
    state = optimizer.state_dict()["state"]
    moments = {f"{i}.{k}": torch.as_tensor(v) for i, values in state.items() for k, v in values.items()}
    divided = {name for name, tensor in [*module.state_dict().items(), *moments.items()] if is_sharded(tensor)}
    parts = {"model": trained_state(module), "ema": average.shadow, "optimizer": moments}
    parts = {part: {name: local(tensor) for name, tensor in tensors.items()} for part, tensors in parts.items()}
    for name in PARTS:
        if bad := not_finite(parts[name].items()):
            raise NotFiniteError(f"{name}: '{bad}' holds NaN or infinity at step {step}")
    if shards is not None and not processes().is_main:
        _write_shard(Path(processes().from_main(None)), parts, divided, shards)
        processes().wait()
        return
    target = directory / f"step_{step:06d}"
    told: dict[str, Any] = {"step": step, "metrics": metrics}
    with atomic_directory(target) as temporary:
        if shards is not None:
            processes().from_main(str(temporary.resolve()))
            _write_shard(temporary, parts, divided, shards)
            told["parallelism"] = shards.sizes
        for name, tensors in parts.items():
            _write(temporary / f"{name}.safetensors", {k: v for k, v in tensors.items() if k not in divided})
        if shards is not None:
            processes().wait()  # all have written
        (temporary / "state.json").write_text(json.dumps(told))
    for old in saved_steps(directory).values():
        if old != target:
            discard(old)


def _write_shard(folder: Path, parts: dict[str, dict[str, Tensor]], divided: set[str], shards: FullySharded) -> None:
    """What this process holds of what is divided; one group of processes writes. Raises UserError without the folder,
    which the main process has made."""
    if not folder.is_dir():
        raise UserError(
            f"{folder}: not found; parallelism.dp_shard on several machines needs an out= that all of them see"
        )
    for name in PARTS if shards.group == 0 else ():
        own = {key: tensor for key, tensor in parts[name].items() if key in divided}
        _write(folder / shards.file(name), own)


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)


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
    shards: FullySharded | None = None,
) -> tuple[int, dict[str, float]]:
    """Restore the newest checkpoint in `directory`, strictly; returns its step and metrics, (0, {}) if none.

    shards: how the module is divided; each process reads its own parts. Raises UserError for a checkpoint that is
    damaged, does not fit, was divided otherwise, or lies beyond the `last` step of the training.
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
        if (sizes := state.get("parallelism")) != (None if shards is None else shards.sizes):
            told = " ".join(f"parallelism.{key}={number}" for key, number in dict(sizes or {"dp_shard": 1}).items())
            raise ValueError(f"made with {told}, go on with that")
        tensors = {name: load_file(path / f"{name}.safetensors") for name in PARTS}
        if shards is not None:
            tensors = {name: {**whole, **load_file(path / shards.file(name))} for name, whole in tensors.items()}
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
        if tensor.ndim and tensor.shape != local(parameters[place]).shape:
            raise ValueError(f"optimizer.safetensors: '{name[:60]}' has shape {tuple(tensor.shape)}")
        moments.setdefault(place, {})[key] = like_parameter(tensor, parameters[place]) if tensor.ndim else tensor
    expected = {"step", "exp_avg", "exp_avg_sq"}
    for place, values in moments.items():
        if values.keys() != expected:
            raise ValueError(f"optimizer.safetensors: parameter {place} has {', '.join(sorted(values))[:80]}")
    return moments
