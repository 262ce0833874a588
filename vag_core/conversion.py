"""Generator checkpoints of older versions.

Configs of version 0.1 told systems apart by switches instead of by type; later ones did not say how many areas of a
picture are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from vag_core.config import ACTIONS, GeneratorConfig, TemporalConfig, TransformerConfig, UNetConfig

SWITCHES = {  # with what they were if a config left them out
    "kind": "transformer",
    "reads": "hidden",
    "detach": False,
    "prediction": "sample",
    "clocks": "independent",
    "plan_share": 0.0,
}
RENAMED = (
    (r"(mean|std|low|high)", r"trajectory.\1"),
    (r"action_(instruction|state|time|scene)\.(.*)", r"action.\1.\2"),
    (r"(video_time|bridge)\.(.*)", r"action.\1.\2"),
    (r"video\.(.*)", r"video.backbone.\1"),
    (r"video_(instruction|state|scene)\.(.*)", r"video.\1.\2"),
)
# What a system held and never looked at.
UNUSED = {
    "forward_dynamics": ("action.",),
    "action_only": ("tokenizer.", "video.", "action.video_time."),
    "framewise": ("action.instruction.", "action.state."),
}


def with_every_cell_read(config: GeneratorConfig, values: dict[str, Any]) -> GeneratorConfig:
    """The config of a checkpoint that does not say how many areas of a picture are read: weights for every cell."""
    side = max(config.latent_shape[2:])
    action, read = config.action, values.get("action", {})
    if "grid" not in values.get("scene", {}):
        config.scene.grid = max(config.scene.grid, max(config.image_size) // config.scene.stride // 2)
    if isinstance(action, TransformerConfig) and "read_grid" not in read:
        action.read_grid = max(action.read_grid, side // config.video.patch_size)
    if isinstance(action, TemporalConfig) and "read_grid" not in read:
        action.read_grid = max(action.read_grid, side)
    if isinstance(action, UNetConfig) and "first_frame_grid" not in read.get("bridge", {}):
        action.bridge.first_frame_grid = max(action.bridge.first_frame_grid, side)
    return config


def is_version_01(config: dict[str, Any]) -> bool:
    """Whether a config was written by version 0.1."""
    sections = (config, config.get("video"), config.get("action"))
    old = ({"makes_video", "bridge"}, {"hears_actions"}, {"reads", "prediction", "clocks"})
    return any(isinstance(one, dict) and bool(one.keys() & keys) for one, keys in zip(sections, old, strict=True))


def convert_config(config: dict[str, Any]) -> tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]:
    """A config of version 0.1 as it is written now, and what maps the weights by name, or their shapes.

    Raises ValueError for switches that no system of today has.
    """
    config = {name: dict(value) if isinstance(value, dict) else value for name, value in config.items()}
    makes_video, bridge = config.pop("makes_video", True), config.pop("bridge", {})
    action, video = config.setdefault("action", {}), config.setdefault("video", {})
    if not isinstance(action, dict) or not isinstance(video, dict):
        raise ValueError("action, video: expected mappings")
    hears = video.pop("hears_actions", False)
    switches = {name: action.pop(name, default) for name, default in SWITCHES.items()}
    kind = _kind(switches, hears, makes_video)
    if kind is None:
        said = ", ".join(f"action.{name} = {value!r:.40}" for name, value in switches.items())
        raise ValueError(
            f"a system of version 0.1 that is no longer made ({said}, video.hears_actions = {hears!r:.40}, "
            f"makes_video = {makes_video!r:.40}); train it again"
        )
    own = {one.name for one in fields(ACTIONS[kind])}
    options = {**action, **switches, "bridge": bridge, "kind": kind}
    config["action"] = {name: value for name, value in options.items() if name in own}
    unused = UNUSED.get(kind, ()) if switches["plan_share"] else (*UNUSED.get(kind, ()), "action.network.unread")

    def convert_weights(tensors: dict[str, Any]) -> dict[str, Any]:
        named = {_renamed(name, kind): tensor for name, tensor in tensors.items()}
        return {name: tensor for name, tensor in named.items() if not name.startswith(unused)}

    return config, convert_weights


def _kind(switches: dict[str, Any], hears: Any, makes_video: Any) -> str | None:
    match switches["kind"], switches["reads"], switches["prediction"], switches["clocks"], hears, makes_video:
        case "transformer", _, _, "given", True, True:
            return "forward_dynamics"
        case "transformer", "hidden", "sample", "independent", True, True:
            return "transformer"
        case "transformer", "nothing", "sample", "independent", False, False:
            return "action_only"
        case "unet", _, "velocity", "shared", False, True:
            return "unet"
        case "temporal" | "resnet" as kind, _, _, clocks, False, True if clocks != "given":
            return "framewise" if kind == "resnet" else "temporal"
    return None


def _renamed(name: str, kind: str) -> str:
    if kind not in ("temporal", "framewise"):
        name = re.sub(r"^action\.", "action.network.", name)
    for pattern, replacement in RENAMED:
        if re.fullmatch(pattern, name):
            name = re.sub(pattern, replacement, name)
            break
    # The adaLN blocks of the video have a layer of dropout now, and the norm at the end holds its own modulation.
    name = re.sub(r"^(video\.backbone\.blocks\.\d+\.mlp\.)2\.", r"\g<1>3.", name)
    return re.sub(r"^(video\.backbone|action\.(?:network\.)?transformer)\.modulation\.", r"\1.norm.modulation.", name)
