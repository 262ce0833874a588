"""Typed configuration of the generator and its parts; one dataclass per module, no behaviour.

The default is a planner from the first picture and a video that follows its actions (TransformerConfig). The joint
sampler of both streams is the published mode (UNetConfig).

The same dataclasses are the schema of the command line and the content of `config.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

from vag_core.config_checks import check_fields, shown

ATTENTIONS = ("full", "factorised")
INSTRUCTIONS = ("bytes", "embedding")
REPRESENTATIONS = ("absolute", "delta", "relative_to_first")  # of actions, see `representation`


def _option(default: Any, help: str, *, choices: Sequence[str] = (), **bounds: float) -> Any:
    """A field whose metadata states its help and its range: least, most (both allowed), above, below (neither).

    Of a list they are those of each element.
    """
    metadata: dict[str, Any] = {"help": help, **bounds}
    if choices:
        metadata["choices"] = tuple(choices)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def _part(kind: type, help: str, **metadata: Any) -> Any:
    return field(default_factory=kind, metadata={"help": help, **metadata})


WIDTHS: dict[str, Any] = {"least": 1, "most": 16_384}
DEPTHS: dict[str, Any] = {"least": 1, "most": 512}
DIMENSIONS: dict[str, Any] = {"least": 1, "most": 4096}
PIXELS: dict[str, Any] = {"least": 1, "most": 8192}

# Of a config that somebody else wrote; what it takes in memory is compared with the weights' file, see `checkpoint`.
MOST_PARAMETERS = 5_000_000_000  # 20 GB in float32: pi0 and pi0.5 have 4.1 billion, the encoder of T5-XXL 4.8


@dataclass
class TokenizerConfig:
    """Causal video tokenizer: the first frame alone, then groups of `temporal_stride` frames."""

    kind: str = _option("conv", "of `video_branch.TOKENIZERS`")
    latent_channels: int = _option(16, "channels of a latent cell", least=1, most=1024)
    temporal_stride: int = _option(
        8, "frames per latent frame after the first; 1 = per-frame tokenizer", least=1, most=1024
    )
    spatial_stride: int = _option(8, "pixels per latent cell", least=1, most=256)
    width: int = _option(192, "channels inside", **WIDTHS)
    depth: int = _option(3, "residual blocks in the encoder and in the decoder", **DEPTHS)
    kl_weight: float = _option(1e-5, "of the latents' distance from a normal distribution", least=0, most=1000)


@dataclass
class SceneConfig:
    """Encoder of the first frame at full resolution: where things are, more precisely than the latents say."""

    width: int = _option(96, "channels of the map", **WIDTHS)
    depth: int = _option(3, "residual blocks", **DEPTHS)
    stride: int = _option(4, "pixels per cell of the map", least=1, most=256)
    keypoints: int = _option(64, "positions that spatial softmax reads off", least=1, most=4096)
    grid: int = _option(8, "areas a side of the summary; a finer map is averaged over them", least=1, most=1024)


@dataclass
class VideoConfig:
    """Latent video diffusion transformer (adaLN-Zero)."""

    kind: str = _option("dit", "of `video_branch.BACKBONES`")
    width: int = _option(192, "of the tokens", **WIDTHS)
    depth: int = _option(6, "blocks", **DEPTHS)
    heads: int = _option(6, "of the attention", least=1, most=1024)
    patch_size: int = _option(2, "latent cells per token, in height and in width", least=1, most=256)
    attention: str = _option(
        "full", "full: all space-time tokens at once; factorised: space and time in turn", choices=ATTENTIONS
    )


@dataclass
class BridgeConfig:
    """Adaptive 3D average pooling of the predicted clean video, for the U-Net action branch."""

    grid: list[int] = _option([4, 4, 4], "(t, h, w) cells; [1, 1, 1] as published", least=1, most=1024)
    first_frame: bool = _option(True, "also hand the action branch the first-frame latent")
    first_frame_grid: int = _option(
        8, "areas a side of that latent; a finer one is averaged over them", least=1, most=1024
    )
    width: int = _option(256, "of the condition", **WIDTHS)


def _kind(name: str) -> Any:
    return _option(name, "what the system is; chosen by the group generator/action")


@dataclass
class ActionConfig:
    """What all action branches have. The type of the branch says what the system is; ACTIONS holds one for each kind.

    makes_video: there is a video branch. video_follows_actions: it takes the noisy trajectory in. two_stage: actions
    are inferred from the finished video, not denoised beside it.
    """

    kind: str = _kind("")
    loss_weight: float = _option(1.0, "of the action loss beside that of the video", least=0, most=1_000_000)

    makes_video: ClassVar[bool] = True
    video_follows_actions: ClassVar[bool] = False
    two_stage: ClassVar[bool] = False


@dataclass
class _TransformerSizes(ActionConfig):
    width: int = _option(256, "of the tokens", **WIDTHS)
    depth: int = _option(4, "blocks", **DEPTHS)
    heads: int = _option(4, "of the attention", least=1, most=1024)
    dropout: float = _option(0.1, "in the blocks", least=0, below=1)


def _plan_share() -> Any:
    return _option(
        0.8, "of a training batch: actions from the scene alone, at a tenth of the cost of a video", least=0, below=1
    )


@dataclass
class TransformerConfig(_TransformerSizes):
    """Plans from the first picture, and a video that follows them: one token per latent frame, two clocks.

    With plan_share = 0 there are no plans: samples begin with the video, or make both streams together.
    """

    kind: str = _kind("transformer")
    plan_share: float = _plan_share()
    detach: bool = _option(False, "no gradient from the action loss into the video branch")
    read_grid: int = _option(
        4, "areas a side of the video that actions read; more of its tokens are averaged over them", least=1, most=1024
    )

    video_follows_actions: ClassVar[bool] = True


@dataclass
class UNetConfig(ActionConfig):
    """As published: the conditional 1D U-Net of Diffusion Policy (arXiv 2303.04137) behind the pooling bridge."""

    kind: str = _kind("unet")
    channels: list[int] = _option([64, 128, 256], "of the levels", **WIDTHS)
    kernel_size: int = _option(5, "action steps that a convolution sees", least=1, most=255)
    groups: int = _option(8, "of the normalisation", least=1, most=1024)
    bridge: BridgeConfig = _part(BridgeConfig, "from the video to the U-Net")


@dataclass
class TemporalConfig(_TransformerSizes):
    """Two stages: inverse dynamics on all latents of the finished video at once."""

    kind: str = _kind("temporal")
    read_grid: int = _option(
        8, "areas a side of the latents that are read; finer ones are averaged over them", least=1, most=1024
    )

    two_stage: ClassVar[bool] = True


@dataclass
class FramewiseConfig(ActionConfig):
    """Two stages: inverse dynamics on two frames of the finished video at a time."""

    kind: str = _kind("framewise")
    backbone: str = _option("resnet18", "timm model that reads the frames")

    two_stage: ClassVar[bool] = True


@dataclass
class ActionOnlyConfig(_TransformerSizes):
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


@dataclass
class InstructionConfig:
    """How the instruction enters: learned on bytes, or a vector computed outside (`embedding`)."""

    kind: str = _option("bytes", "learned on bytes, or an embedding computed outside", choices=INSTRUCTIONS)
    length: int = _option(64, "bytes read", least=1, most=10_000)
    embedding_width: int = _option(384, "width of the outside embedding", **WIDTHS)
    dropout: float = _option(0.1, "instructions dropped in training, for classifier-free guidance", least=0, most=1)


@dataclass
class GeneratorConfig:
    """Everything that decides the generator's weights and shapes."""

    image_size: list[int] = _option(
        [64, 64], "(height, width) of what the network sees; train-generator lays it out from the cameras", **PIXELS
    )
    views: list[int] = _option(
        [1, 1], "rows and columns of cameras that it shows; areas and positions are counted in each", **PIXELS
    )
    num_frames: int = _option(
        81, "the first frame and whole groups of `tokenizer.temporal_stride` frames", least=2, most=10_000
    )
    frame_stride: int = _option(1, "actions from one frame to the next", least=1, most=10_000)
    state_dim: int = _option(4, "numbers of a state; train-generator takes it from the data", **DIMENSIONS)
    action_dim: int = _option(4, "numbers of an action; train-generator takes it from the data", **DIMENSIONS)
    action_representation: str = _option(
        "absolute", "of actions inside; train-generator's action_representation says it", choices=REPRESENTATIONS
    )
    tokenizer: TokenizerConfig = _part(TokenizerConfig, "video tokenizer")
    scene: SceneConfig = _part(SceneConfig, "encoder of the first frame")
    video: VideoConfig = _part(VideoConfig, "video branch")
    action: ActionConfig = _part(TransformerConfig, "action branch", kinds=tuple(ACTIONS.values()))
    instruction: InstructionConfig = _part(InstructionConfig, "how the instruction enters")

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
        for field_name, value, choices in (
            ("video.attention", self.video.attention, ATTENTIONS),
            ("instruction.kind", self.instruction.kind, INSTRUCTIONS),
            ("action_representation", self.action_representation, REPRESENTATIONS),
        ):
            if value not in choices:
                raise ValueError(f"{field_name} = {value!r}: expected one of {', '.join(choices)}")
        _check_heads("video", self.video.width, self.video.heads)
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

    def _check_action(self) -> None:
        action = self.action
        if ACTIONS.get(action.kind) is not type(action):
            own = type(action)().kind
            raise ValueError(
                f"action.kind = {shown(action.kind)}: the other fields are those of {own}; see generator/action"
            )
        if isinstance(action, _TransformerSizes):
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


def _check_heads(name: str, width: int, heads: int) -> None:
    if width % (2 * heads):
        raise ValueError(f"{name}.width = {width}: expected a multiple of 2 x {name}.heads")


def _build(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{where} = {shown(values)}: expected a mapping")
    if issubclass(cls, ActionConfig):
        kind = values.get("kind", cls().kind)
        if kind not in tuple(ACTIONS):
            raise ValueError(f"{where}.kind = {shown(kind)}: expected one of {', '.join(ACTIONS)}")
        cls = ACTIONS[kind]
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
