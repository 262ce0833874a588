"""Typed configuration of the generator and its parts; one dataclass per module, no behaviour.

The default is a planner from the first picture and a video that follows its actions (TransformerConfig). The joint
sampler of both streams is the published mode (UNetConfig).

The same dataclasses are the schema of the command line and the content of `config.json`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from vag_core.config_actions import (
    ACTIONS,
    ActionConfig,
    ActionOnlyConfig,
    BridgeConfig,
    ForwardDynamicsConfig,
    FramewiseConfig,
    TemporalConfig,
    TransformerConfig,
    TransformerSizes,
    UNetConfig,
)
from vag_core.config_checks import check_fields, shown
from vag_core.config_video import (
    ATTENTIONS,
    TOKENIZERS,
    VIDEOS,
    ConvTokenizerConfig,
    DiTConfig,
    PretrainedConfig,
    PretrainedTokenizerConfig,
    SceneConfig,
    TokenizerConfig,
    VideoConfig,
)
from vag_core.options import DIMENSIONS, PIXELS, WIDTHS, option, part

__all__ = [
    "ACTIONS",
    "MOST_PARAMETERS",
    "REPRESENTATIONS",
    "TOKENIZERS",
    "VIDEOS",
    "ActionConfig",
    "ActionOnlyConfig",
    "BridgeConfig",
    "ConvTokenizerConfig",
    "DiTConfig",
    "ForwardDynamicsConfig",
    "FramewiseConfig",
    "GeneratorConfig",
    "InstructionConfig",
    "PretrainedConfig",
    "PretrainedTokenizerConfig",
    "SceneConfig",
    "TemporalConfig",
    "TokenizerConfig",
    "TransformerConfig",
    "UNetConfig",
    "VideoConfig",
]

INSTRUCTIONS = ("bytes", "embedding", "tokens")
REPRESENTATIONS = ("absolute", "delta", "relative_to_first")  # of actions, see `representation`

# Of a config that somebody else wrote; what it takes in memory is compared with the weights' file, see `checkpoint`.
MOST_PARAMETERS = 6_000_000_000  # 24 GB in float32: pi0 and pi0.5 have 4.1 billion, Wan2.2 and our part 5.1


@dataclass
class InstructionConfig:
    """How the instruction enters: learned on bytes, a vector computed outside (`embedding`), or the tokens of a
    pretrained video model's own text encoder (`tokens`)."""

    kind: str = option(
        "bytes", "learned on bytes, an embedding computed outside, or tokens of the video model", choices=INSTRUCTIONS
    )
    length: int = option(64, "bytes read", least=1, most=10_000)
    embedding_width: int = option(384, "width of the outside embedding", **WIDTHS)
    dropout: float = option(0.1, "instructions dropped in training, for classifier-free guidance", least=0, most=1)


@dataclass
class GeneratorConfig:
    """Everything that decides the generator's weights and shapes."""

    image_size: list[int] = option(
        [64, 64], "(height, width) of what the network sees; train-generator lays it out from the cameras", **PIXELS
    )
    views: list[int] = option(
        [1, 1], "rows and columns of cameras that it shows; areas and positions are counted in each", **PIXELS
    )
    num_frames: int = option(
        81, "the first frame and whole groups of `tokenizer.temporal_stride` frames", least=2, most=10_000
    )
    frame_stride: int = option(1, "actions from one frame to the next", least=1, most=10_000)
    state_dim: int = option(4, "numbers of a state; train-generator takes it from the data", **DIMENSIONS)
    action_dim: int = option(4, "numbers of an action; train-generator takes it from the data", **DIMENSIONS)
    action_representation: str = option(
        "absolute", "of actions inside; train-generator's action_representation says it", choices=REPRESENTATIONS
    )
    tokenizer: TokenizerConfig = part(ConvTokenizerConfig, "video tokenizer", kinds=tuple(TOKENIZERS.values()))
    scene: SceneConfig = part(SceneConfig, "encoder of the first frame")
    video: VideoConfig = part(DiTConfig, "video branch", kinds=tuple(VIDEOS.values()))
    action: ActionConfig = part(TransformerConfig, "action branch", kinds=tuple(ACTIONS.values()))
    instruction: InstructionConfig = part(InstructionConfig, "how the instruction enters")

    @property
    def action_horizon(self) -> int:
        """Actions per clip: `frame_stride` from each frame to the next."""
        return (self.num_frames - 1) * self.frame_stride

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w) of one clip's latents."""
        height, width = (pixels // self.tokenizer.spatial_stride for pixels in self.image_size)
        frames = 1 + (self.num_frames - 1) // self.tokenizer.temporal_stride
        return self.tokenizer.latent_channels, frames, height, width

    @property
    def patches(self) -> tuple[int, int]:
        """Rows and columns of the video's patches in one latent frame."""
        _, _, height, width = self.latent_shape
        return height // self.video.patch_size, width // self.video.patch_size

    def areas(self, grid: int) -> tuple[int, int]:
        """Rows and columns of areas of a whole picture, `grid` a side in each of its views."""
        return grid * self.views[0], grid * self.views[1]

    @property
    def group_width(self) -> int:
        """Numbers of the trajectory that belong to one latent frame."""
        return self.action_horizon // (self.latent_shape[1] - 1) * (self.action_dim + self.state_dim)

    def validate(self) -> None:
        """Raise ValueError that names the field whose value no network can have, or does not fit the others."""
        check_fields(self, "")
        tokenizer = self.tokenizer
        if self.num_frames < 2 or (self.num_frames - 1) % tokenizer.temporal_stride:
            raise ValueError(
                f"num_frames = {self.num_frames}: expected 1 + a multiple of "
                f"tokenizer.temporal_stride = {tokenizer.temporal_stride}"
            )
        if self.frame_stride < 1:
            raise ValueError(f"frame_stride = {self.frame_stride}: expected at least 1")
        self._check_sizes()
        self._check_video()
        for field_name, value, choices in (
            ("instruction.kind", self.instruction.kind, INSTRUCTIONS),
            ("action_representation", self.action_representation, REPRESENTATIONS),
        ):
            if value not in choices:
                raise ValueError(f"{field_name} = {value!r}: expected one of {', '.join(choices)}")
        self._check_action()

    def _check_sizes(self) -> None:
        """Raise ValueError unless both sides of every view are whole patches and whole cells of the scene's map."""
        for name, sizes in (("image_size", self.image_size), ("views", self.views)):
            if len(sizes) != 2:
                raise ValueError(f"{name} = {list(sizes)}: expected two numbers, of rows and of columns")
        step = self.tokenizer.spatial_stride * self.video.patch_size
        for side, views in zip(self.image_size, self.views, strict=True):
            if side % (views * step):
                views_text = f" in each of {views} views" if views > 1 else ""
                raise ValueError(
                    f"image_size = {list(self.image_size)}: expected multiples of tokenizer.spatial_stride x "
                    f"video.patch_size = {self.tokenizer.spatial_stride} x {self.video.patch_size}{views_text}"
                )
            patches = side // step
            if side % (2 * views * self.scene.stride) or (side // self.scene.stride) % patches:
                raise ValueError(
                    f"scene.stride = {self.scene.stride}: expected a map of image_size = {list(self.image_size)} "
                    f"whose sides are even in every view and multiples of {patches}, the video's patches a side"
                )

    def _check_video(self) -> None:
        video = self.video
        for name, one in (("tokenizer", self.tokenizer), ("video", video), ("action", self.action)):
            _check_kind(name, one)
        if isinstance(video, DiTConfig):
            if video.attention not in ATTENTIONS:
                raise ValueError(f"video.attention = {video.attention!r}: expected one of {', '.join(ATTENTIONS)}")
            _check_heads("video", video.width, video.heads)
        if isinstance(video, PretrainedConfig):
            video.check()
        pretrained = video.kind == "pretrained"
        if (self.tokenizer.kind == "pretrained", self.instruction.kind == "tokens") != (pretrained, pretrained):
            raise ValueError(
                f"video.kind = {video.kind}, tokenizer.kind = {self.tokenizer.kind}, instruction.kind = "
                f"{self.instruction.kind}: a pretrained video comes with its tokenizer and its tokens of text; see the "
                "configs generator=vag_cosmos, vag_cosmos25, vag_wan"
            )

    def _check_action(self) -> None:
        action = self.action
        if isinstance(action, TransformerSizes):
            _check_heads("action", action.width, action.heads)
        share = getattr(action, "plan_share", 0.0)
        if not 0 <= share < 1:
            raise ValueError(f"action.plan_share = {share}: expected at least 0 and less than 1")
        if isinstance(action, UNetConfig):
            halvings, grid = 2 ** (len(action.channels) - 1), action.bridge.grid
            if self.action_horizon % halvings:
                raise ValueError(
                    f"num_frames = {self.num_frames}: expected (num_frames - 1) x frame_stride to be a multiple of "
                    f"{halvings}, since action.channels = {list(action.channels)} halves the time axis"
                )
            if len(grid) != 3 or min(grid) < 1:
                raise ValueError(f"action.bridge.grid = {grid}: expected three positive numbers (t, h, w)")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, as stored in `config.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GeneratorConfig:
        """Inverse of `to_dict`. Raises ValueError on a key that no field has, or a value that no field can have.

        image_size may be one number, as it was when pictures were squares.
        """
        if isinstance(values, dict) and isinstance(side := values.get("image_size"), int):
            values = {**values, "image_size": [side, side]}
        return _build(cls, values, "generator")


def _kinds(cls: type) -> dict[str, Any] | None:
    """Where a part of a config is one of several types, these by their kinds."""
    families: Any = ((TokenizerConfig, TOKENIZERS), (VideoConfig, VIDEOS), (ActionConfig, ACTIONS))
    return next((kinds for base, kinds in families if issubclass(cls, base)), None)


def _check_kind(name: str, config: Any) -> None:
    kinds = _kinds(type(config))
    assert kinds is not None
    if kinds.get(config.kind) is not type(config):
        own = type(config)().kind
        raise ValueError(
            f"{name}.kind = {shown(config.kind)}: the other fields are those of {own or 'none'}; see generator/{name}"
        )


def _check_heads(name: str, width: int, heads: int) -> None:
    if width % (2 * heads):
        raise ValueError(f"{name}.width = {width}: expected a multiple of 2 x {name}.heads")


def _build(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where} = {shown(values)}: expected a mapping")
    if (kinds := _kinds(cls)) is not None:
        kind = values.get("kind", cls().kind)
        if kind not in tuple(kinds):
            raise ValueError(f"{where}.kind = {shown(kind)}: expected one of {', '.join(kinds)}")
        cls = kinds[kind]
    unknown = sorted(set(map(str, values)) - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"{where}: unknown key '{unknown[0][:80]}'")
    default = cls()
    converted = {}
    for name, value in values.items():
        current = getattr(default, name)
        converted[name] = _build(type(current), value, f"{where}.{name}") if is_dataclass(current) else value
    result = cls(**converted)
    check_fields(result, f"{where}.")
    return result
