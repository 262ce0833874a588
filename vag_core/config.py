"""Typed configuration of the generator and its parts; one dataclass per module, no behaviour.

The same dataclasses are the schema of the command line and the content of `config.json`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

# Of a config that somebody else wrote; what it takes in memory is compared with the weights' file, see `checkpoint`.
LARGEST = 1_000_000  # of every size
MOST_LEVELS = 16  # of a U-Net
LONGEST = 100  # letters of a name


@dataclass
class TokenizerConfig:
    """Causal video tokenizer: the first frame alone, then groups of `temporal_stride` frames."""

    kind: str = "conv"  # of `video_branch.TOKENIZERS`
    latent_channels: int = 16
    temporal_stride: int = 8  # frames per latent frame after the first; 1 = per-frame tokenizer
    spatial_stride: int = 8  # pixels per latent cell
    width: int = 192
    depth: int = 3  # residual blocks in the encoder and in the decoder
    kl_weight: float = 1e-5


@dataclass
class SceneConfig:
    """Encoder of the first frame at full resolution: where things are, more precisely than the latents say."""

    width: int = 96  # channels of the map
    depth: int = 3  # residual blocks
    stride: int = 4  # pixels per cell of the map
    keypoints: int = 64  # places that spatial softmax reads off


@dataclass
class VideoConfig:
    """Latent video diffusion transformer (adaLN-Zero)."""

    kind: str = "dit"  # of `video_branch.BACKBONES`
    width: int = 192
    depth: int = 6
    heads: int = 6
    patch_size: int = 2
    attention: str = "full"  # full: all space-time tokens at once; factorised: space and time in turn
    hears_actions: bool = False  # noisy actions of the same time enter the video tokens: the bridge in both ways


@dataclass
class BridgeConfig:
    """Adaptive 3D average pooling of the predicted clean video, for the U-Net action branch."""

    grid: list[int] = field(default_factory=lambda: [4, 4, 4])  # (t, h, w) cells; [1, 1, 1] as published
    first_frame: bool = True  # also hand the action branch the unpooled first-frame latent
    width: int = 256


@dataclass
class ActionConfig:
    """The action branch.

    unet: the conditional 1D U-Net of Diffusion Policy (arXiv 2303.04137) behind the pooling bridge.
    transformer: one token per latent frame, which holds the actions that lead to it.
    temporal, resnet: inverse dynamics of two-stage systems; no noise, read from the finished video.
    """

    kind: str = "transformer"  # unet | transformer | temporal | resnet
    reads: str = "hidden"  # what a transformer reads of its frame: hidden (tokens of the video branch) | nothing
    detach: bool = False  # no gradient from the action loss into the video branch
    prediction: str = "sample"  # the network gives: velocity | sample (the clean trajectory)
    clocks: str = "independent"  # shared: t_action = t_video, as published | independent | given: t_action = 0
    plan_share: float = 0.0  # of a training batch: actions from the scene alone, at a tenth of the cost of a video
    loss_weight: float = 1.0
    width: int = 256  # of the transformers
    depth: int = 4
    heads: int = 4
    dropout: float = 0.1
    channels: list[int] = field(default_factory=lambda: [64, 128, 256])  # of the U-Net
    kernel_size: int = 5
    groups: int = 8
    backbone: str = "resnet18"  # timm model of the frame-wise inverse dynamics


@dataclass
class InstructionConfig:
    """How the instruction enters: learned on bytes, or a vector computed outside (`embedding`)."""

    kind: str = "bytes"  # bytes | embedding
    length: int = 64  # bytes read
    embedding_width: int = 384  # width of the outside embedding
    dropout: float = 0.1  # instructions dropped in training, for classifier-free guidance


@dataclass
class GeneratorConfig:
    """Everything that decides the generator's weights and shapes."""

    image_size: int = 64
    num_frames: int = 81  # the first frame and whole groups of `tokenizer.temporal_stride` frames
    frame_stride: int = 1  # actions from one frame to the next
    state_dim: int = 4
    action_dim: int = 4
    makes_video: bool = True  # False: actions alone
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    scene: SceneConfig = field(default_factory=SceneConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    bridge: BridgeConfig = field(default_factory=BridgeConfig)
    action: ActionConfig = field(default_factory=ActionConfig)
    instruction: InstructionConfig = field(default_factory=InstructionConfig)

    @property
    def action_horizon(self) -> int:
        """Actions per clip: `frame_stride` from each frame to the next."""
        return (self.num_frames - 1) * self.frame_stride

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one clip's latents."""
        size = self.image_size // self.tokenizer.spatial_stride
        frames = 1 + (self.num_frames - 1) // self.tokenizer.temporal_stride
        return self.tokenizer.latent_channels, frames, size, size

    @property
    def chunk(self) -> int:
        """Numbers of the trajectory that belong to one latent frame."""
        return self.action_horizon // (self.latent_shape[1] - 1) * (self.action_dim + self.state_dim)

    @property
    def two_stage(self) -> bool:
        """Actions are inferred from the finished video, not denoised beside it."""
        return self.action.kind in ("temporal", "resnet")

    def validate(self) -> None:
        """Raise ValueError that names the field whose value no network can have, or does not fit the others."""
        _check_fields(self, "")
        tokenizer, _, size, _ = self.tokenizer, *self.latent_shape[1:]
        if self.num_frames < 2 or (self.num_frames - 1) % tokenizer.temporal_stride:
            raise ValueError(
                f"num_frames = {self.num_frames}: expected 1 + a multiple of "
                f"tokenizer.temporal_stride = {tokenizer.temporal_stride}"
            )
        if self.frame_stride < 1:
            raise ValueError(f"frame_stride = {self.frame_stride}: expected at least 1")
        if self.image_size % tokenizer.spatial_stride or size % self.video.patch_size:
            raise ValueError(
                f"image_size = {self.image_size}: expected a multiple of tokenizer.spatial_stride x "
                f"video.patch_size = {tokenizer.spatial_stride} x {self.video.patch_size}"
            )
        if self.image_size % (2 * self.scene.stride) or (self.image_size // self.scene.stride) % (
            size // self.video.patch_size
        ):
            raise ValueError(
                f"scene.stride = {self.scene.stride}: expected a map of image_size = {self.image_size} whose side "
                f"is even and a multiple of {size // self.video.patch_size}, the video's patches a side"
            )
        halvings = 2 ** (len(self.action.channels) - 1)
        if self.action.kind == "unet" and self.action_horizon % halvings:
            raise ValueError(
                f"num_frames = {self.num_frames}: expected (num_frames - 1) x frame_stride to be a multiple of "
                f"{halvings}, since action.channels = {list(self.action.channels)} halves the time axis"
            )
        for name, part in (("video", self.video), ("action", self.action)):
            if part.width % (2 * part.heads):
                raise ValueError(f"{name}.width = {part.width}: expected a multiple of 2 x {name}.heads")
        for field_name, value, known in (
            ("video.attention", self.video.attention, ("full", "factorised")),
            ("instruction.kind", self.instruction.kind, ("bytes", "embedding")),
            ("action.kind", self.action.kind, ("unet", "transformer", "temporal", "resnet")),
            ("action.reads", self.action.reads, ("hidden", "nothing")),
            ("action.prediction", self.action.prediction, ("velocity", "sample")),
            ("action.clocks", self.action.clocks, ("shared", "independent", "given")),
        ):
            if value not in known:
                raise ValueError(f"{field_name} = {value!r}: expected one of {', '.join(known)}")
        if not self.makes_video and (self.action.kind, self.action.reads) != ("transformer", "nothing"):
            raise ValueError("makes_video = False: expected action.kind = transformer with action.reads = nothing")
        if not 0 <= self.action.plan_share < 1 or (
            self.action.plan_share and (self.action.kind, self.action.clocks) != ("transformer", "independent")
        ):
            raise ValueError(
                f"action.plan_share = {self.action.plan_share}: expected at least 0 and less than 1, and more than 0 "
                "for action.kind = transformer with action.clocks = independent alone"
            )
        if self.action.clocks == "given" and not (self.makes_video and self.video.hears_actions):
            raise ValueError("action.clocks = given: expected makes_video = True and video.hears_actions = True")
        if len(self.bridge.grid) != 3 or min(self.bridge.grid) < 1:
            raise ValueError(f"bridge.grid = {self.bridge.grid}: expected three positive numbers (t, h, w)")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, as stored in `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeneratorConfig:
        """Inverse of `to_dict`. Raises ValueError on a key that no field has, or a value that no field can have."""
        return _build(cls, values, "generator")


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where} = {_shown(values)}: expected a mapping")
    unknown = sorted(set(map(str, values)) - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"{where}: unknown key '{unknown[0][:80]}'")
    default = cls()
    parts = {}
    for name, value in values.items():
        current = getattr(default, name)
        parts[name] = _build(type(current), value, f"{where}.{name}") if is_dataclass(current) else value
    result = cls(**parts)
    _check_fields(result, f"{where}.")
    return result


def _check_fields(part: Any, where: str) -> None:
    default = type(part)()
    for one in fields(part):
        value, expected = getattr(part, one.name), getattr(default, one.name)
        if is_dataclass(expected):
            _check_fields(value, f"{where}{one.name}.")
        else:
            _check_value(f"{where}{one.name}", value, expected)


def _check_value(where: str, value: Any, default: Any) -> None:
    """Raise ValueError unless a value has the type of the default, and a size that a network can have."""
    if isinstance(default, list):
        if not isinstance(value, list) or not 1 <= len(value) <= MOST_LEVELS:
            raise ValueError(f"{where} = {_shown(value)}: expected a list of 1 to {MOST_LEVELS} numbers")
        for item in value:
            _check_value(where, item, default[0])
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{where} = {_shown(value)}: expected true or false")
    elif isinstance(default, int):
        least = 0 if where.endswith("depth") else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            raise ValueError(f"{where} = {_shown(value)}: expected a whole number from {least} to {LARGEST}")
    elif isinstance(default, float):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
            raise ValueError(f"{where} = {_shown(value)}: expected a finite number")
    elif not isinstance(value, str) or len(value) > LONGEST:
        raise ValueError(f"{where} = {_shown(value)}: expected a word of at most {LONGEST} letters")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
