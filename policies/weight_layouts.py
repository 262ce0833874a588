"""Names of weights in published checkpoints, brought to those of LeRobot's networks by LeRobot's own functions.

LeRobot's `from_pretrained` renames weights by itself and is lenient about the rest. Here its renaming alone is taken:
what is missing or left over afterwards is an error, but for what LeRobot documents as dropped or left at random.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from toolkit.base.errors import UserError, warn

INDEX, ADAPTER = "model.safetensors.index.json", "adapter_config.json"
PARTS = ("model-*-of-*.safetensors", "adapter_model.safetensors")  # which are not downloaded
# Statistics inside the network, before LeRobot had processors; those of several datasets have a name before `_buffer`.
_STATISTICS = re.compile(r"(un)?normalize(_inputs|_targets|_outputs)?\.(\S+_)?buffer_")
MIGRATION = "python -m lerobot.processor.migrate_policy_normalization --pretrained-path"
# `FastWAMPolicy._load_as_safetensor`: they differ between robots, and `lerobot/fastwam_base` has none.
_FASTWAM_HEADS = re.compile(r"\.(action(_expert)?\.(action_encoder|head)|proprio_encoder)\.")


def check_parts(directory: Path, weights: str) -> None:
    """Raise UserError for a checkpoint without the one file of weights that LeRobot writes, if it has others."""
    if (directory / weights).is_file():
        return
    if (directory / INDEX).is_file():
        raise UserError(
            f"{directory / INDEX}: the weights are in several files; LeRobot's policies are one {weights}: load the "
            "policy with the library that wrote it, and save it as one file"
        )
    if (directory / ADAPTER).is_file():
        raise UserError(
            f"{directory / ADAPTER}: an adapter of peft, without the weights beside which it was trained; merge it "
            f"into these (peft's merge_and_unload), and save one {weights}"
        )


class Layout:
    """From the names in a file of weights to those of a policy's network, for `vag_core.checkpoint.load_network`.

    new_robot: the policy is going to be trained for data of its own, so that what LeRobot then leaves at random may
    be. dropped, at_random: names, after a call.
    """

    def __init__(self, new_robot: bool) -> None:
        self.new_robot = new_robot
        self.dropped: set[str] = set()
        self.at_random: set[str] = set()

    def __call__(self, values: Mapping[str, Any], policy: nn.Module) -> dict[str, Any]:
        """Shapes by name, or tensors by name, under the names that the policy has."""
        shapes = {name for name, value in values.items() if not isinstance(value, Tensor)}
        tensors = {n: torch.empty(v, device="meta") if n in shapes else v for n, v in sorted(values.items())}
        tensors = {name.replace("_orig_mod.", ""): value for name, value in tensors.items()}  # of a compiled network
        self.dropped = {name for name in tensors if _STATISTICS.match(name)}
        tensors = {name: value for name, value in tensors.items() if name not in self.dropped}
        if hasattr(policy, "_fix_pytorch_state_dict_keys"):
            tensors = self._openpi(tensors, policy)
        elif getattr(policy, "name", "") == "xvla":
            tensors = self._florence(tensors)
        _by_modules(tensors, policy)
        self._leave_at_random(tensors, cast(PreTrainedPolicy, policy))
        return {name: tuple(value.shape) for name, value in tensors.items()} if shapes else tensors

    def say(self, path: Path) -> None:
        """One warning for each kind of what is not as in the file."""
        for names, text in (
            (self.dropped, "are not used by this version of LeRobot and dropped"),
            (self.at_random, "are left at random, as LeRobot leaves them for another robot"),
        ):
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                warn(f"{path}: '{min(names)}'{more}: {text}")

    def _openpi(self, tensors: dict[str, Tensor], policy: Any) -> dict[str, Tensor]:
        """Of openpi's conversion to PyTorch, such as `lerobot/pi05_base`; see `PI05Policy.from_pretrained`.

        Its embedding of words is the head's, once in the file and twice in LeRobot's network. One name at a time, in
        order, so that an embedding of its own, as a trained policy has it, counts.
        """
        renamed: dict[str, Tensor] = {}
        with _quiet():
            for name, tensor in tensors.items():
                own = policy._fix_pytorch_state_dict_keys({name: tensor}, policy.config)
                renamed |= {key if key.startswith("model.") else f"model.{key}": value for key, value in own.items()}
                if not own:
                    self.dropped.add(name)
        return renamed

    def _florence(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the Florence-2 that LeRobot once had of its own; see `XVLAPolicy.from_pretrained`."""
        from lerobot.policies.xvla import modeling_xvla as xvla

        if xvla._is_vendored_florence_state_dict(tensors):
            self.dropped |= {name for name in tensors if name.endswith("language_model.final_logits_bias")}
            tensors = xvla._remap_vendored_florence_state_dict(tensors)
        one, other = (f"model.vlm.language_model.{name}.weight" for name in ("shared", "encoder.embed_tokens"))
        for there, missing in ((one, other), (other, one)):
            if there in tensors:
                tensors.setdefault(missing, tensors[there])
        return tensors

    def _leave_at_random(self, tensors: dict[str, Tensor], policy: PreTrainedPolicy) -> None:
        """Put the network's own weights in the place of those that LeRobot does not load for another robot.

        fastwam: what turns actions and states into features and back. vla_jepa: modules that its config names.
        """
        self.at_random = set()
        if not self.new_robot or policy.name not in ("fastwam", "vla_jepa"):
            return
        own = policy.state_dict(keep_vars=True)
        loaded = {id(value) for name, value in own.items() if name in tensors}  # by any of its names, if it has several
        modules = tuple(getattr(policy.config, "reinit_modules", None) or ())
        for name, value in own.items():
            absent = name not in tensors and id(value) not in loaded
            other = name in tensors and tensors[name].shape != value.shape
            if (_FASTWAM_HEADS.search(name) and (absent or other)) or (name.startswith(modules) and other):
                tensors[name] = value.detach()
                self.at_random.add(name)


def _by_modules(tensors: dict[str, Tensor], network: nn.Module) -> None:
    """Rename in place as LeRobot's modules do while they are loaded, such as fastwam's of before its layers."""
    for name, module in network.named_modules():
        load = type(module)._load_from_state_dict
        if load.__module__.startswith("lerobot."):
            load(module, tensors, f"{name}." if name else "", {}, False, [], [], [])


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, what LeRobot logs at the root about single weights is not shown: it is said once, or refused."""
    root = logging.getLogger()
    kept = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(kept)
