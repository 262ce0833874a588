"""Typed configuration of the generator and its parts; one dataclass per module, no behaviour.

The same dataclasses are the schema of the command line and the content of `config.json`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any


@dataclass
class TokenizerConfig:
    """Causal video tokenizer: the first frame alone, then groups of `temporal_stride` frames."""

    latent_channels: int = 16
    temporal_stride: int = 8  # frames per latent frame after the first; 1 = per-frame tokenizer
    spatial_stride: int = 8  # pixels per latent cell
    width: int = 192
    depth: int = 3  # residual blocks in the encoder and in the decoder
    kl_weight: float = 1e-5


@dataclass
class VideoConfig:
    """Latent video diffusion transformer (adaLN-Zero)."""

    width: int = 192
    depth: int = 6
    heads: int = 6
    patch_size: int = 2
    attention: str = "full"  # full: all space-time tokens at once; factorised: space and time in turn


@dataclass
class BridgeConfig:
    """Adaptive 3D average pooling of the predicted clean video for the action branch."""

    grid: list[int] = field(default_factory=lambda: [4, 4, 4])  # (t, h, w) cells; [1, 1, 1] as published
    first_frame: bool = True  # also hand the action branch the unpooled first-frame latent
    width: int = 256


@dataclass
class ActionConfig:
    """Conditional 1D U-Net of Diffusion Policy (arXiv 2303.04137)."""

    channels: list[int] = field(default_factory=lambda: [64, 128, 256])
    kernel_size: int = 5
    groups: int = 8


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
    state_dim: int = 4
    action_dim: int = 4
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    bridge: BridgeConfig = field(default_factory=BridgeConfig)
    action: ActionConfig = field(default_factory=ActionConfig)
    instruction: InstructionConfig = field(default_factory=InstructionConfig)

    @property
    def action_horizon(self) -> int:
        """Actions per clip: one between each two frames."""
        return self.num_frames - 1

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one clip's latents."""
        size = self.image_size // self.tokenizer.spatial_stride
        return (
            self.tokenizer.latent_channels,
            1 + self.action_horizon // self.tokenizer.temporal_stride,
            size,
            size,
        )

    def validate(self) -> None:
        """Raise ValueError that names the field whose value does not fit the others."""
        tokenizer, _, size, _ = self.tokenizer, *self.latent_shape[1:]
        if self.action_horizon < 1 or self.action_horizon % tokenizer.temporal_stride:
            raise ValueError(
                f"num_frames = {self.num_frames}: expected 1 + a multiple of "
                f"tokenizer.temporal_stride = {tokenizer.temporal_stride}"
            )
        if self.image_size % tokenizer.spatial_stride or size % self.video.patch_size:
            raise ValueError(
                f"image_size = {self.image_size}: expected a multiple of tokenizer.spatial_stride x "
                f"video.patch_size = {tokenizer.spatial_stride} x {self.video.patch_size}"
            )
        halvings = 2 ** (len(self.action.channels) - 1)
        if self.action_horizon % halvings:
            raise ValueError(
                f"num_frames = {self.num_frames}: expected num_frames - 1 to be a multiple of {halvings}, "
                f"since action.channels = {list(self.action.channels)} halves the time axis"
            )
        if self.video.width % (2 * self.video.heads):
            raise ValueError(f"video.width = {self.video.width}: expected a multiple of 2 x video.heads")
        if self.video.attention not in ("full", "factorised"):
            raise ValueError(f"video.attention = {self.video.attention!r}: expected 'full' or 'factorised'")
        if self.instruction.kind not in ("bytes", "embedding"):
            raise ValueError(f"instruction.kind = {self.instruction.kind!r}: expected 'bytes' or 'embedding'")
        if len(self.bridge.grid) != 3 or min(self.bridge.grid) < 1:
            raise ValueError(f"bridge.grid = {self.bridge.grid}: expected three positive numbers (t, h, w)")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, as stored in `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeneratorConfig:
        """Inverse of `to_dict`. Raises ValueError on a key that no field has."""
        return _build(cls, values, "generator")


def _build(cls: type, values: dict[str, Any], where: str) -> Any:
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"{where}: unknown key '{unknown[0]}'")
    default = cls()
    parts = {}
    for name, value in values.items():
        current = getattr(default, name)
        parts[name] = _build(type(current), value, f"{where}.{name}") if is_dataclass(current) else value
    return cls(**parts)
