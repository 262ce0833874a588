"""Configs of the action branches. The type says what a system is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vag_core.options import DEPTHS, WIDTHS, option, part


@dataclass
class BridgeConfig:
    """Adaptive 3D average pooling of the predicted clean video, for the U-Net action branch."""

    grid: list[int] = option([4, 4, 4], "(t, h, w) cells; [1, 1, 1] as published", least=1, most=1024)
    first_frame: bool = option(True, "also hand the action branch the first-frame latent")
    first_frame_grid: int = option(
        8, "areas a side of that latent; a finer one is averaged over them", least=1, most=1024
    )
    width: int = option(256, "of the condition", **WIDTHS)


def _kind(name: str) -> Any:
    return option(name, "what the system is; chosen by the group generator/action")


@dataclass
class ActionConfig:
    """What all action branches have. The type of the branch says what the system is; ACTIONS holds one for each kind.

    makes_video: there is a video branch. video_follows_actions: it takes the noisy trajectory in. two_stage: actions
    are inferred from the finished video, not denoised beside it.
    """

    kind: str = _kind("")
    loss_weight: float = option(1.0, "of the action loss beside that of the video", least=0, most=1_000_000)

    makes_video: ClassVar[bool] = True
    video_follows_actions: ClassVar[bool] = False
    two_stage: ClassVar[bool] = False


@dataclass
class TransformerSizes(ActionConfig):
    width: int = option(256, "of the tokens", **WIDTHS)
    depth: int = option(4, "blocks", **DEPTHS)
    heads: int = option(4, "of the attention", least=1, most=1024)
    dropout: float = option(0.1, "in the blocks", least=0, below=1)


def _plan_share() -> Any:
    return option(
        0.8, "of a training batch: actions from the scene alone, at a tenth of the cost of a video", least=0, below=1
    )


@dataclass
class TransformerConfig(TransformerSizes):
    """Plans from the first picture, and a video that follows them: one token per latent frame, two clocks.

    With plan_share = 0 there are no plans: samples begin with the video, or make both streams together.
    """

    kind: str = _kind("transformer")
    plan_share: float = _plan_share()
    detach: bool = option(False, "no gradient from the action loss into the video branch")
    read_grid: int = option(
        4, "areas a side of the video that actions read; more of its tokens are averaged over them", least=1, most=1024
    )

    video_follows_actions: ClassVar[bool] = True


@dataclass
class UNetConfig(ActionConfig):
    """As published: the conditional 1D U-Net of Diffusion Policy (arXiv 2303.04137) behind the pooling bridge."""

    kind: str = _kind("unet")
    channels: list[int] = option([64, 128, 256], "of the levels", **WIDTHS)
    kernel_size: int = option(5, "action steps that a convolution sees", least=1, most=255)
    groups: int = option(8, "of the normalisation", least=1, most=1024)
    bridge: BridgeConfig = part(BridgeConfig, "from the video to the U-Net")


@dataclass
class TemporalConfig(TransformerSizes):
    """Two stages: inverse dynamics on all latents of the finished video at once."""

    kind: str = _kind("temporal")
    read_grid: int = option(
        8, "areas a side of the latents that are read; finer ones are averaged over them", least=1, most=1024
    )

    two_stage: ClassVar[bool] = True


@dataclass
class FramewiseConfig(ActionConfig):
    """Two stages: inverse dynamics on two frames of the finished video at a time."""

    kind: str = _kind("framewise")
    backbone: str = option("resnet18", "timm model that reads the frames")

    two_stage: ClassVar[bool] = True


@dataclass
class ActionOnlyConfig(TransformerSizes):
    """No video: actions from the first picture, the state and the instruction."""

    kind: str = _kind("action_only")
    plan_share: float = _plan_share()

    makes_video: ClassVar[bool] = False


@dataclass
class ForwardDynamicsConfig(ActionConfig):
    """No action branch: a video that follows given actions."""

    kind: str = _kind("forward_dynamics")

    video_follows_actions: ClassVar[bool] = True


ACTIONS: dict[str, type[ActionConfig]] = {
    "transformer": TransformerConfig,
    "unet": UNetConfig,
    "temporal": TemporalConfig,
    "framewise": FramewiseConfig,
    "action_only": ActionOnlyConfig,
    "forward_dynamics": ForwardDynamicsConfig,
}
