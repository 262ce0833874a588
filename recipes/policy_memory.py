"""`vag pretrain dry_run=true`: how large a policy is, and what its weights take in training, built on the meta device.

Nothing is trained, written or downloaded, and no weight has memory. The cameras and widths are those of the first
dataset, of which only `meta/` is read; without one they are assumed, and it is said.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from policies.checkpoint_config import Loading
from policies.factory import Wanted, check_options, plan_policy
from recipes.gpus import GPUS
from recipes.parallel_options import warn_of_dry_run
from recipes.policy_schema import PretrainConfig
from toolkit.base.errors import UserError
from toolkit.base.processes import processes
from toolkit.data.clips import ClipStore
from toolkit.data.episode import ACTION, STATE
from toolkit.data.formats.lerobot_layout import camera_keys, picture_size, read_info
from toolkit.reporting.generator_results import Throughput
from toolkit.reporting.results import PolicyMemory, PretrainResult

ASSUMED = {"observation.images.image": (224, 224)}, 8, 7  # a camera, widths of state and action, as in LIBERO


def policy_memory(config: PretrainConfig) -> PretrainResult:
    """Weights, gradients, moments of AdamW and average of a training. Raises UserError as the training would."""
    warn_of_dry_run(config.parallelism)
    policy, path = config.policy, config.policy.path
    local = Path(path) if path is not None and Path(path).is_dir() else None
    if path is not None and local is None and processes().is_main:
        print(f"policy.path={path} is no directory here: sizes are those of a new {policy.type} policy", flush=True)
    wanted = Wanted(
        policy.type, policy.options, local, policy.lora_rank, config.freeze_vision_encoder, Loading.of(config)
    )
    check_options(wanted)
    found = measured(plan_policy(wanted, *features_of(config)), config.gpu)
    return PretrainResult(
        policy=policy.type,
        steps=0,
        parameters=found.parameters,
        throughput=Throughput(),
        checkpoint="",
        synthetic_fraction=0.0,
        episodes=[],
        dry_run=found,
    )


def features_of(config: PretrainConfig) -> tuple[dict[str, tuple[int, int]], int, int]:
    """(height, width) of each camera, widths of states and actions: of the first dataset, or assumed."""
    sources = [*config.real, *config.synthetic]
    if not sources:
        sizes, states, actions = ASSUMED
        if processes().is_main:
            camera, (height, width) = next(iter(sizes.items()))
            print(
                f"no dataset: {camera} of {height}x{width}, {states} states and {actions} actions are assumed",
                flush=True,
            )
        return sizes, states, actions
    first = Path(sources[0])
    if first.is_file():
        store = ClipStore.open(first)
        return store.canvas.sizes, store.states.shape[1], store.actions.shape[1]
    if not first.is_dir():
        raise UserError(f"{first}: not found; expected a LeRobotDataset directory or a clip file (.h5)")
    info = read_info(first)
    cameras = config.cameras or camera_keys(info)
    names = {config.rename.get(camera, camera): picture_size(info, camera) for camera in cameras}
    states, actions = (int(info["features"][key]["shape"][0]) for key in (STATE, ACTION))
    return names, states, actions


def measured(policy: nn.Module, gpu: str) -> PolicyMemory:
    """The sums of a policy on the meta device."""

    def size(parameters: list[nn.Parameter]) -> int:
        return sum(p.numel() * p.element_size() for p in parameters)

    own = list(policy.parameters())
    trained = [p for p in own if p.requires_grad]
    buffers = sum(b.numel() * b.element_size() for b in policy.buffers() if b.dtype is not torch.bool)
    once = size(trained)
    return PolicyMemory(
        parameters=sum(p.numel() for p in own),
        trained_parameters=sum(p.numel() for p in trained),
        weights=size(own) + buffers,
        gradients=once,
        optimizer=2 * once,
        average=once,
        total=size(own) + buffers + 4 * once,
        gpu=gpu,
        gpu_memory=int(GPUS[gpu].bytes),
    )


def memory_text(policy: str, found: PolicyMemory) -> str:
    """One line, with the GPUs that hold it."""
    parts = {name: getattr(found, name) / 1e9 for name in ("weights", "gradients", "optimizer", "average")}
    listed = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
    share = f"{found.total / found.gpu_memory:.0%} of {found.gpu}"
    holding = [name for name, gpu in GPUS.items() if gpu.bytes > found.total]
    all_trained = found.trained_parameters == found.parameters
    advice = "; policy.lora_rank=16 takes far less" if found.total > found.gpu_memory and all_trained else ""
    return (
        f"{policy}: {found.parameters:,} weights, {found.trained_parameters:,} of them trained; "
        f"{found.total / 1e9:.1f} GB ({listed}), {share}, and activations come on top; "
        f"held by {', '.join(holding) or 'none of the GPUs that are known'}{advice}"
    )
