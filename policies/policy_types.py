"""What training has to know of LeRobot's policy types beside their configs: packages, downloads, names of networks."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from lerobot.configs import FeatureType, PreTrainedConfig
from packaging.requirements import Requirement

from policies.known_types import PALIGEMMA, POLICY_TYPES
from toolkit.base.errors import UserError, first_line

OURS = ("pi05_compact", "diffusion", "diffusion_compact")  # told the instruction and built at CPU size, see `factory`


@dataclass(frozen=True)
class PolicyTraits:
    """extra: of LeRobot, whose packages the type needs. words: it reads the instruction. vision: modules that turn
    pictures into features. downloads: files that building a new one reads, as (field of the config or repository,
    file). resizes: it brings pictures to its own size, which its features name. chunks: it predicts a chunk from one
    observation, so that scenes can share a prediction. blocks: classes of its large blocks, where LeRobot's code does
    not name them; calls_layers: it calls the layers of its blocks one by one.
    """

    extra: str = ""
    words: bool = False
    vision: Sequence[str] = ()
    downloads: Sequence[tuple[str, str]] = ()
    resizes: bool = False
    chunks: bool = False
    blocks: Sequence[str] = ()
    calls_layers: bool = False


_PI: dict[str, Any] = {
    "extra": "pi",
    "words": True,
    "vision": ("model.paligemma_with_expert.paligemma.model.vision_tower",),
    "downloads": ((PALIGEMMA, "tokenizer.json"),),
    "chunks": True,
    "blocks": ("_PiGemmaDecoderLayerBase",),
}
_WAN = ("vae/config.json", "text_encoder/config.json")
TRAITS: Mapping[str, PolicyTraits] = MappingProxyType(
    {
        "pi05_compact": PolicyTraits(words=True, vision=("model.image_encoder",), chunks=True),
        "diffusion": PolicyTraits(words=True, vision=("diffusion.rgb_encoder",), chunks=True),
        "diffusion_compact": PolicyTraits(words=True, vision=("diffusion.rgb_encoder",), chunks=True),
        "act": PolicyTraits(vision=("model.backbone",), chunks=True),
        "vqbet": PolicyTraits(vision=("vqbet.rgb_encoder",)),
        "smolvla": PolicyTraits(
            extra="smolvla",
            words=True,
            vision=("model.vlm_with_expert.vlm.model.vision_model",),
            downloads=(("vlm_model_name", "config.json"), ("vlm_model_name", "tokenizer.json")),
            chunks=True,
            calls_layers=True,
        ),
        "pi0": PolicyTraits(**_PI, calls_layers=True),
        "pi05": PolicyTraits(**_PI, calls_layers=True),
        "pi0_fast": PolicyTraits(**_PI),
        "xvla": PolicyTraits(
            extra="xvla",
            words=True,
            vision=("model.vlm.vision_tower",),
            downloads=(("tokenizer_name", "tokenizer.json"),),
            chunks=True,
        ),
        "groot": PolicyTraits(extra="groot", words=True, downloads=(("base_model_path", "config.json"),)),
        # Its VAE, which sees, is never trained; beside it there is an expert of the video, see `freeze_vision`.
        "fastwam": PolicyTraits(
            extra="fastwam",
            words=True,
            downloads=(
                ("tokenizer_model_id", "tokenizer.json"),
                *(("text_encoder_model_id", name) for name in _WAN),
            ),
            resizes=True,
            chunks=True,
            blocks=("MoTLayer",),
        ),
        "lingbot_va": PolicyTraits(
            extra="lingbot-va",
            words=True,
            downloads=tuple(("wan_pretrained_path", name) for name in _WAN),
            resizes=True,
        ),
        "multi_task_dit": PolicyTraits(extra="multi_task_dit", words=True),
        "eo1": PolicyTraits(extra="eo1", words=True),
        "evo1": PolicyTraits(extra="evo1", words=True),
        "molmoact2": PolicyTraits(extra="molmoact2", words=True),
        "vla_jepa": PolicyTraits(extra="vla_jepa", words=True),
        "wall_x": PolicyTraits(extra="wallx", words=True),
    }
)


def traits_of(policy_type: str) -> PolicyTraits:
    """Those of a type; of one that is not listed, the most careful ones."""
    return TRAITS.get(policy_type, PolicyTraits())


def check_packages(policy_type: str) -> None:
    """Raise UserError that names the extra of LeRobot if a package that the type needs is not installed."""
    extra = traits_of(policy_type).extra
    missing = [name for name in packages_of(extra) if not _installed(name)] if extra else []
    if missing:
        raise UserError(
            f"policy={policy_type}: the package {missing[0]} is not installed; pip install 'lerobot[{extra}]' brings it"
        )


def packages_of(extra: str) -> Iterator[str]:
    """Names of the packages that an extra of LeRobot asks for on this machine."""
    for text in importlib.metadata.requires("lerobot") or []:
        wanted = Requirement(text)
        if (
            wanted.marker is None
            or not wanted.marker.evaluate({"extra": extra})
            or wanted.marker.evaluate({"extra": ""})
        ):
            continue
        if wanted.name == "lerobot":
            for inner in wanted.extras:
                yield from packages_of(inner)
        else:
            yield wanted.name


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def check_downloads(config: PreTrainedConfig) -> None:
    """Fetch the small files that building such a policy reads first, and weights of torchvision.

    Raises UserError that names the repository where it is neither in the hub's cache nor within reach.
    """
    weights = getattr(config, "pretrained_backbone_weights", None)
    if weights is not None:
        _check_torchvision(config.type, weights)
    for name, file in traits_of(config.type).downloads:
        repository = name if "/" in name else getattr(config, name, None)
        if repository and not Path(repository).is_dir():
            _check_file(config.type, repository, file, "" if "/" in name else name)


def _check_torchvision(policy_type: str, name: str) -> None:
    import torchvision

    try:
        torchvision.models.get_weight(name).get_state_dict(progress=False)
    except Exception as error:  # of urllib, of the disk, or no such name
        raise UserError(
            f"policy={policy_type}: torchvision's weights {name} are not here and cannot be downloaded "
            f"({first_line(error, 100)}); copy them into ~/.cache/torch/hub/checkpoints, or train the backbone from "
            "scratch: policy.options.pretrained_backbone_weights=null"
        ) from error


def _check_file(policy_type: str, repository: str, file: str, option: str) -> None:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(repository, file)
    except Exception as error:  # offline, not there, not allowed: the hub client has a class for each
        own = f", or name a directory: policy.options.{option}=DIR" if option else ""
        text = re.sub(r"\s+", " ", str(error))[:100]
        raise UserError(
            f"policy={policy_type}: needs {file} of {repository}, which is not in the hub's cache and cannot be "
            f"downloaded ({type(error).__name__}: {text}); with a network: hf download {repository}{own}"
        ) from error


def from_data(policy_type: str, cameras: Sequence[str], state_dim: int, action_dim: int) -> dict[str, Any]:
    """Fields of a config that say what the data are, where they are not its features."""
    if policy_type == "fastwam":
        return {"action_dim": action_dim, "proprio_dim": state_dim}
    if policy_type == "lingbot_va":
        return {"obs_cam_keys": list(cameras), "used_action_channel_ids": list(range(action_dim))}
    return {}


def set_features(config: Any, features: dict[str, Any], action_names: Sequence[str]) -> None:
    """Tell a config of the dataset what LeRobot's `make_policy` tells it. features: as in `meta/info.json`."""
    if action_names and hasattr(config, "action_feature_names"):
        config.action_feature_names = list(action_names)
    if callable(tell := getattr(config, "set_dataset_feature_metadata", None)):
        tell(features)


def check_trainable(config: PreTrainedConfig) -> None:
    """Raise UserError for a type that does not learn by imitating actions."""
    if config.action_delta_indices is None or config.reward_delta_indices is not None:
        raise UserError(
            f"policy={config.type}: learns from rewards, which these datasets do not have; choose a type that imitates "
            f"actions, such as {', '.join(('act', 'smolvla', 'pi05'))}"
        )
    if getattr(config, "use_relative_actions", False):
        raise UserError(
            f"policy={config.type}: use_relative_actions expects statistics of relative actions; "
            "action_representation=relative is this project's way, with statistics of its own"
        )


def kept_in_checkpoints(policy_type: str) -> dict[str, Any]:
    """Fields that a finished checkpoint must not have, since what they download is in its own file."""
    fixed = POLICY_TYPES[policy_type].fixed if policy_type in POLICY_TYPES else {}
    return {"pretrained_backbone_weights": None, **fixed}


def valid_options(policy_type: str) -> set[str]:
    """Names of the fields of a type's config that a user may set."""
    config_class = PreTrainedConfig.get_choice_class(policy_type)
    own = {one.name for one in fields(cast(Any, config_class)) if one.init}
    return own - {"input_features", "output_features", "pretrained_path"}


def visual(config: PreTrainedConfig) -> list[str]:
    """Cameras of a config; those that LeRobot adds and leaves empty do not count."""
    return [
        key
        for key, feature in (config.input_features or {}).items()
        if feature.type is FeatureType.VISUAL and "empty_camera" not in key
    ]
