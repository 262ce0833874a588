"""Atomic training checkpoints: weights, average, optimizer and random state, all in safetensors and JSON.

Nothing is pickled. A checkpoint exists under its final name only when it is complete.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.training.optim import ExponentialMovingAverage


def save_checkpoint(
    directory: Path,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: ExponentialMovingAverage,
    metrics: dict[str, float],
) -> None:
    """Write `directory/step_XXXXXX`, then remove older ones."""
    target = directory / f"step_{step:06d}"
    temporary = directory / f".{target.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    state = optimizer.state_dict()["state"]
    moments = {f"{i}.{k}": torch.as_tensor(v) for i, values in state.items() for k, v in values.items()}
    for name, tensors in (
        ("model", module.state_dict()),
        ("ema", average.shadow),
        ("optimizer", moments),
        ("random", _random_tensors()),
    ):
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            temporary / f"{name}.safetensors",
        )
    version, internal, gauss = random.getstate()
    (temporary / "state.json").write_text(
        json.dumps({"step": step, "metrics": metrics, "python_random": [version, internal, gauss]})
    )
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
    for old in directory.glob("step_*"):
        if old != target:
            shutil.rmtree(old)


def load_checkpoint(
    directory: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: ExponentialMovingAverage
) -> tuple[int, dict[str, float]]:
    """Restore the newest checkpoint in `directory`, strictly; returns its step and metrics, (0, {}) if none."""
    found = sorted(directory.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))
    if not found:
        return 0, {}
    path = found[-1]
    try:
        state = json.loads((path / "state.json").read_text())
        tensors = {n: load_file(path / f"{n}.safetensors") for n in ("model", "ema", "optimizer", "random")}
        module.load_state_dict(tensors["model"], strict=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot resume from it ({str(error).splitlines()[0]}); was the config changed? "
            f"Delete the folder or use overwrite=true"
        ) from error
    for name, tensor in tensors["ema"].items():
        average.shadow[name].copy_(tensor)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors["optimizer"].items():
        index, key = name.split(".", 1)
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    _restore_random(tensors["random"], state["python_random"])
    return int(state["step"]), state["metrics"]


def _random_tensors() -> dict[str, Tensor]:
    _, keys, position, has_gauss, gauss = np.random.get_state()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors


def _restore_random(tensors: dict[str, Tensor], python_random: list[Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    position, has_gauss, gauss = tensors["numpy_rest"].tolist()
    np.random.set_state(
        ("MT19937", tensors["numpy_keys"].numpy().astype(np.uint32), int(position), int(has_gauss), gauss)
    )
    version, internal, gauss_next = python_random
    random.setstate((version, tuple(internal), gauss_next))
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
