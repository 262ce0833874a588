"""Checkpoints of version 0.1: the same generator under the names of today, or a refusal in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vag_core.config import (
    ActionConfig,
    ActionOnlyConfig,
    BridgeConfig,
    ConvTokenizerConfig,
    DiTConfig,
    ForwardDynamicsConfig,
    FramewiseConfig,
    GeneratorConfig,
    SceneConfig,
    TemporalConfig,
    TransformerConfig,
    UNetConfig,
)
from vag_core.generator import Generator

NAMES = (  # now, and in version 0.1
    ("action.network.transformer.norm.modulation.", "action.transformer.modulation."),
    ("action.transformer.norm.modulation.", "action.transformer.modulation."),
    ("action.network.", "action."),
    *((f"action.{name}.", f"action.{name}.") for name in ("read", "transformer", "backbone")),  # of two stages
    ("action.bridge.", "bridge."),
    ("action.video_time.", "video_time."),
    ("action.", "action_"),
    ("trajectory.", ""),
    ("video.backbone.norm.modulation.", "video.modulation."),
    ("video.backbone.blocks.0.mlp.3.", "video.blocks.0.mlp.2."),
    ("video.backbone.", "video."),
    ("video.", "video_"),
)
SIZES = {"width": 32, "depth": 1, "heads": 2, "dropout": 0.1}
OLD: dict[str, Any] = {  # the action branch of version 0.1, all fields
    **{"kind": "transformer", "reads": "hidden", "detach": False, "prediction": "sample", "clocks": "independent"},
    **{"plan_share": 0.0, "loss_weight": 1.0, **SIZES, "channels": [16, 32], "kernel_size": 3, "groups": 8},
    "backbone": "resnet10t",
}
BRIDGE = {"grid": [2, 2, 2], "first_frame": True, "width": 24}
FOLLOWS, ALONE = {"hears_actions": True}, {"hears_actions": False}
CASES: dict[str, tuple[ActionConfig, dict[str, Any], dict[str, Any], bool, list[str]]] = {
    # action branch of today; of then, what differs from OLD; of the video; whether it is made; weights never looked at
    "vag": (TransformerConfig(**SIZES, plan_share=0.8), {"plan_share": 0.8}, FOLLOWS, True, []),
    "without_plans": (TransformerConfig(**SIZES, plan_share=0.0), {}, FOLLOWS, True, ["action.unread"]),
    "unet": (
        UNetConfig(channels=[16, 32], kernel_size=3, bridge=BridgeConfig(**BRIDGE)),
        {"kind": "unet", "prediction": "velocity", "clocks": "shared"},
        ALONE,
        True,
        [],
    ),
    "temporal": (TemporalConfig(**SIZES), {"kind": "temporal"}, ALONE, True, []),
    "resnet": (
        FramewiseConfig(backbone="resnet10t"),
        {"kind": "resnet"},
        ALONE,
        True,
        ["action_instruction.null", "action_state.bias"],
    ),
    "action_only": (
        ActionOnlyConfig(**SIZES, plan_share=0.8),
        {"reads": "nothing", "plan_share": 0.8},
        ALONE,
        False,
        ["tokenizer.latent_mean", "video.out.bias", "video_scene.norm.bias", "video_time.mlp.0.bias"],
    ),
    "forward_dynamics": (
        ForwardDynamicsConfig(),
        {"clocks": "given"},
        FOLLOWS,
        True,
        ["action.embed.bias", "action_time.mlp.0.bias", "video_time.mlp.0.bias", "action.transformer.out.bias"],
    ),
}


def write_old(
    directory: Path, generator: Generator, action: dict[str, Any], video: dict[str, Any], made: bool, unused: list[str]
) -> None:
    """A generator as version 0.1 wrote it."""

    def named(name: str) -> str:
        return next((old + name.removeprefix(new) for new, old in NAMES if name.startswith(new)), name)

    weights = {named(name): value.clone() for name, value in generator.state_dict().items()}
    directory.mkdir(exist_ok=True)
    save_file({**weights, **{name: torch.ones(3) for name in unused}}, directory / "model.safetensors")
    config = generator.config.to_dict() | {"action": OLD | action, "makes_video": made, "bridge": BRIDGE}
    config["video"] |= video
    (directory / "config.json").write_text(json.dumps({"type": "vag_generator", **config}))


def small(action: ActionConfig) -> Generator:
    torch.manual_seed(0)
    generator = Generator(
        GeneratorConfig(
            image_size=[32, 32],
            num_frames=9,
            state_dim=2,
            action_dim=2,
            tokenizer=ConvTokenizerConfig(width=16, depth=1, latent_channels=4),
            scene=SceneConfig(width=16, depth=1, keypoints=8),
            video=DiTConfig(width=32, depth=1, heads=2),
            action=action,
        )
    )
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter)
    return generator


@pytest.mark.parametrize("case", CASES)
def test_the_same_generator_under_the_names_of_today(case: str, tmp_path: Path) -> None:
    action, *old = CASES[case]
    generator = small(action)
    write_old(tmp_path, generator, *old)
    again = Generator.from_pretrained(tmp_path)
    assert again.config == generator.config
    assert again.state_dict().keys() == generator.state_dict().keys()
    for name, value in generator.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    again.save_pretrained(tmp_path / "new")
    assert Generator.from_pretrained(tmp_path / "new").config == generator.config


def test_a_weight_that_was_looked_at_is_still_asked_for(tmp_path: Path) -> None:
    generator = small(TransformerConfig(**SIZES))
    for unused, message in (["action.evil"], "1 weights unexpected"), ([], ""):
        write_old(tmp_path, generator, {"plan_share": 0.8}, FOLLOWS, True, unused)
        if unused:
            with pytest.raises(ValueError, match=message):
                Generator.from_pretrained(tmp_path)
    Generator.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("action", "video", "made"),
    [
        ({"reads": "nothing"}, FOLLOWS, True),
        ({"prediction": "velocity"}, FOLLOWS, True),
        ({}, ALONE, True),
        ({"clocks": "shared"}, FOLLOWS, True),
        ({"kind": "unet"}, ALONE, True),
        ({"kind": "unet", "prediction": "velocity", "clocks": "shared"}, FOLLOWS, True),
        ({"kind": "temporal"}, FOLLOWS, True),
        ({"kind": ["unet"]}, FOLLOWS, True),
        ({"clocks": {"given": 1}}, FOLLOWS, True),
        ({"kind": "mlp" * 100}, FOLLOWS, True),
    ],
)
def test_what_is_no_longer_made_is_refused_in_one_line(
    action: dict[str, Any], video: dict[str, Any], made: bool, tmp_path: Path
) -> None:
    write_old(tmp_path, small(TransformerConfig(**SIZES)), action, video, made, [])
    with pytest.raises(ValueError, match="of version 0.1 that is no longer made") as refusal:
        Generator.from_pretrained(tmp_path)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 600
    assert str(tmp_path / "config.json") in str(refusal.value)


@pytest.mark.parametrize("part", ["action", "video", "bridge", "tokenizer"])
def test_a_config_of_version_01_is_checked_as_one_of_today(part: str, tmp_path: Path) -> None:
    write_old(
        tmp_path, small(UNetConfig(channels=[16, 32], kernel_size=3, bridge=BridgeConfig(**BRIDGE))), *CASES["unet"][1:]
    )
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for value, message in (("evil", "expected (a )?mapping"), ({"evil": 1}, "unknown key 'evil'|no longer made")):
        path.write_text(json.dumps({**config, part: value}))
        with pytest.raises(ValueError, match=message) as refusal:
            Generator.from_pretrained(tmp_path)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("action", [TransformerConfig(**SIZES), TemporalConfig(**SIZES), UNetConfig(channels=[16, 32])])
def test_a_checkpoint_that_does_not_say_how_many_areas_are_read_has_weights_for_all(
    action: ActionConfig, tmp_path: Path
) -> None:
    """As generators of large pictures were written before there was a limit."""
    torch.manual_seed(0)
    config = GeneratorConfig(
        image_size=[128, 128],
        num_frames=9,
        tokenizer=ConvTokenizerConfig(width=16, depth=1, latent_channels=4),
        scene=SceneConfig(width=16, depth=1, keypoints=8, grid=16),
        video=DiTConfig(width=32, depth=1, heads=2),
        action=action,
    )
    if isinstance(action, UNetConfig):
        action.bridge.first_frame_grid = 16
    elif isinstance(action, TransformerConfig | TemporalConfig):
        action.read_grid = 16 // (1 if isinstance(action, TemporalConfig) else config.video.patch_size)
    generator = Generator(config)
    generator.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    del values["scene"]["grid"]
    for part in (values["action"], values["action"].get("bridge", {})):
        part.pop("read_grid", None)
        part.pop("first_frame_grid", None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert Generator.from_pretrained(tmp_path).config == config
