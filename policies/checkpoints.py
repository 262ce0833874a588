"""The one door for policy checkpoints: this project's and LeRobot's, from a directory or from the hub.

LeRobot's own loaders do what a checkpoint's JSON says: import a class by its dotted path, download and run what a field
names, build a network of any size. So the JSON is read here first and checked against what is known
(`known_types.py`), the weights' file is compared with the network before that is built, and only then is LeRobot asked.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from torch import Tensor

from policies.checkpoint_config import CONFIG, STRICT, WEIGHTS, Loading, first_words, read_config
from policies.checkpoint_processors import remote_code
from policies.weight_layouts import PARTS, Layout, check_parts
from toolkit.base.errors import UserError
from toolkit.base.randomness import isolated_randomness
from vag_core.checkpoint import check_finite, load_network

# -------------------------------------------------------------------------------------------------------------- weights


def load_weights(
    config: PreTrainedConfig, directory: Path, loading: Loading = STRICT, new_robot: bool = False
) -> PreTrainedPolicy:
    """The policy of a config with the weights of its directory, on the CPU.

    Names are those of LeRobot now, or older ones that LeRobot renames, see `policies.weight_layouts`. new_robot: it is
    going to be trained for data of its own. Raises UserError if the file is missing, in parts, damaged or above
    `max_parameters`, if the config asks for another network than the file holds, before that is built, or if a weight
    is missing, unexpected, of another shape or not finite.
    """
    layout = Layout(new_robot)
    try:
        check_parts(directory, WEIGHTS)
        policy_class = get_policy_class(config.type)
        with remote_code(loading.allow_remote_code, directory):
            policy = load_network(
                lambda: policy_class(copy.deepcopy(config)),
                directory / WEIGHTS,
                loading.max_parameters,
                f"{config.type} policy",
                layout,
            )
    except Exception as error:  # every policy type has requirements of its own
        text = str(error) if isinstance(error, UserError) else first_words(error)
        if not text.startswith(str(directory)):
            text = f"{directory}: LeRobot cannot build this '{config.type}' policy ({text})"
        raise UserError(text) from error
    layout.say(directory / WEIGHTS)
    return policy


# ----------------------------------------------------------------------------------------------------------- processors


def try_out(directory: Path, predict: Callable[[], Tensor], shape: tuple[int, ...]) -> None:
    """Raise UserError unless `predict`, of one blank observation, gives finite actions of `shape`; 0 fits any size.

    Steps that are known one by one may still make no sense in a row. The random state stays as it is.
    """
    try:
        with isolated_randomness():
            actions = predict()
        got = tuple(actions.shape)
        fits = len(got) == len(shape) and all(want in (0, side) for want, side in zip(shape, got, strict=True))
        finite = bool(torch.isfinite(actions).all())
    except UserError:
        raise
    except Exception as error:  # every step and network has requirements of its own
        raise UserError(
            f"{directory}: its network and processors do not fit each other ({first_words(error)})"
        ) from error
    if not fits:
        raise UserError(f"{directory}: its processors give actions of shape {got}; expected {shape}, as in config.json")
    if not finite:
        raise UserError(f"{directory}: gives actions that are not finite")


# -------------------------------------------------------------------------------------------------------------- the hub


def checkpoint_directory(checkpoint: str, loading: Loading = STRICT) -> Path:
    """A directory as it is, or a policy downloaded from the Hugging Face hub: JSON and safetensors at its top alone.

    Its config is read and checked before the rest is downloaded. Raises UserError if it is neither, is refused, or its
    weights are not one file.
    """
    if Path(checkpoint).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint):
        folder = Path(checkpoint)
    else:
        folder = _download(checkpoint, allow_patterns=[CONFIG])
        read_config(folder, loading)
        # The folder's name is the commit, so that the rest is of the same one.
        folder = _download(
            checkpoint,
            revision=folder.name,
            allow_patterns=["*.json", "*.safetensors"],
            ignore_patterns=["*/*", *PARTS],
        )
    check_parts(folder, WEIGHTS)
    return folder


def _download(checkpoint: str, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(checkpoint, **options))
    except Exception as error:  # offline, not there, not allowed: the hub client has a class for each
        text = " ".join((str(error) or type(error).__name__).split())[:160]
        raise UserError(
            f"{checkpoint}: no such directory here, and the Hugging Face hub does not give it "
            f"({type(error).__name__}: {text})"
        ) from error


# --------------------------------------------------------------------------------------------------------------- saving

_WRITTEN = re.compile(
    r"README\.md|config\.json|train_config\.json|model\.safetensors|seen_scenes\.json|conventions\.json|windows\.json"
    r"|policy_(pre|post)processor(_step_\d+_\w+)?\.(json|safetensors)"
)


def is_written(name: Path) -> bool:
    """If a file of a checkpoint's directory is one that this project and LeRobot write there."""
    return _WRITTEN.fullmatch(str(name)) is not None


def check_savable(policy: PreTrainedPolicy, *processors: PolicyProcessorPipeline) -> None:
    """Raise UserError if a weight or a statistic is not finite, so that a good checkpoint is not replaced by it."""
    try:
        check_finite(policy.state_dict(), f"the {policy.name} policy is not written: weight ")
        for pipeline in processors:
            for state in pipeline.state_dict().values():
                check_finite(state, f"the {policy.name} policy is not written: statistic ")
    except ValueError as error:
        raise UserError(str(error)) from error
