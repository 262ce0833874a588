"""Settings of `vag_policy`: which generator acts, how it is sampled, and how many steps of a sample are executed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.utils.constants import ACTION, OBS_STATE

from toolkit.data.canvas import Canvas
from vag_core.clocks import Mode, clocks_of, sampling_modes
from vag_core.config import GeneratorConfig
from vag_core.sampling import METHODS

SAMPLES = ("plan", "joint")
UNTRAINED = "a vag_policy is not trained as a policy: train its generator with vag train-generator"


@PreTrainedConfig.register_subclass("vag_policy")
@dataclass
class VagConfig(PreTrainedConfig):
    """The config of a generator, and how it is used as a policy; None = what suits the generator.

    generator: `config.json` of a generator. canvas: its cameras and where its pictures show them, see
        `toolkit.data.canvas`. name_views: instructions say which camera is seen where. random_start: whether it was
        trained on windows from anywhere in an episode; None = nobody knows.
    sample: `plan` = the actions alone, as their mean given the scene; `joint` = a whole sample, actions and video.
        None = a plan, where the generator has plans and no video is to be kept.
    n_action_steps: steps of a sample that are executed before the next one; None = all of them.
    num_inference_steps, guidance_scale, method, order, negative_prompt: of a sample, see `Generator.sample`; a plan
        takes one evaluation, whatever these say.
    instruction_encoder: directory of the text encoder that the generator was trained with.
    save_predicted_video: keep the pictures of samples, which `lerobot-eval` and `vag evaluate` then write.
    """

    generator: dict[str, Any] = field(default_factory=dict)
    canvas: dict[str, Any] = field(default_factory=dict)
    name_views: bool = False
    random_start: bool | None = None
    sample: str | None = None
    n_action_steps: int | None = None
    num_inference_steps: int = 10
    guidance_scale: float = 1.0
    method: str | None = None
    order: str | None = None
    negative_prompt: str | None = None
    instruction_encoder: str | None = None
    save_predicted_video: bool = False

    normalization_mapping: dict[str, NormalizationMode] = field(  # the generator normalises by itself
        default_factory=lambda: dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_obs_steps != 1:
            raise ValueError(f"n_obs_steps is {self.n_obs_steps}; a generator starts from one picture")
        if not self.generator:
            return  # as LeRobot makes it by the type's name alone
        shape, clocks = self.shape, clocks_of(self.shape.action)
        if self.sample is None:
            self.sample = "plan" if Mode.PLAN in clocks.modes and not self.save_predicted_video else "joint"
        if self.n_action_steps is None:
            self.n_action_steps = self.chunk_size
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(
                f"n_action_steps is {self.n_action_steps}; expected 1 to {self.chunk_size}, the generator's steps"
            )
        self._check_sample(shape)
        self._check_text(shape)
        self.pictures  # noqa: B018  (raises)
        own: Any = self  # of whose features mypy knows no type here
        own.input_features = own.input_features or self.own_features()
        own.output_features = own.output_features or {ACTION: PolicyFeature(FeatureType.ACTION, (shape.action_dim,))}

    def _check_sample(self, shape: GeneratorConfig) -> None:
        """Raise ValueError for a way to sample that the generator was never trained for."""
        if self.sample not in SAMPLES:
            raise ValueError(f"sample is '{str(self.sample)[:40]}'; expected one of {', '.join(SAMPLES)}")
        if self.num_inference_steps < 1 or self.guidance_scale < 0:
            raise ValueError("num_inference_steps must be at least 1, guidance_scale at least 0")
        if self.method is not None and self.method not in METHODS:
            raise ValueError(f"method is '{self.method[:40]}'; expected one of {', '.join(METHODS)}")
        if self.method == "unipc" and shape.video.kind != "pretrained":
            raise ValueError("method is 'unipc', which a pretrained video model alone has; take heun, or leave it out")
        makes_video, clocks = shape.action.makes_video, clocks_of(shape.action)
        modes = [Mode.PLAN]
        if self.sample == "joint":
            modes = sampling_modes(self.order or clocks.order, False, False, makes_video)
        for mode in modes:
            try:
                clocks.check(mode)
            except ValueError as error:
                raise ValueError(f"sample is '{self.sample}', order '{self.order or clocks.order}': {error}") from error
        if self.save_predicted_video and (self.sample == "plan" or not makes_video):
            reason = "the generator makes none" if not makes_video else "a plan has none, sample=joint has"
            raise ValueError(f"save_predicted_video is true, but there is no video: {reason}")

    def _check_text(self, shape: GeneratorConfig) -> None:
        """Raise ValueError for a text encoder that the generator does not read with, or one that is missing."""
        kind, given = shape.instruction.kind, self.instruction_encoder is not None
        if kind == "embedding" and not given:
            raise ValueError(
                "instruction_encoder is missing: name the text encoder that the generator was trained with"
            )
        if kind != "embedding" and given:
            raise ValueError(f"instruction_encoder is set, but the generator reads {kind}; leave it out")
        if self.negative_prompt is not None and (kind != "tokens" or self.guidance_scale <= 1):
            raise ValueError(
                "negative_prompt: it counts with a pretrained video model and guidance_scale above 1; leave it out"
            )

    # ------------------------------------------------------------------------------------------------- generator

    @property
    def shape(self) -> GeneratorConfig:
        """The generator's own config. Raises ValueError for one that no generator can have."""
        values = {key: value for key, value in self.generator.items() if key != "type"}
        config = GeneratorConfig.from_dict(values)
        config.validate()
        return config

    @property
    def pictures(self) -> Canvas:
        """Where the generator sees which camera. Raises ValueError if that is not the size that it sees."""
        canvas = Canvas.from_dict(self.canvas)
        if list(canvas.size) != list(self.shape.image_size):
            raise ValueError(f"canvas is {list(canvas.size)}; the generator sees {list(self.shape.image_size)}")
        return canvas

    @property
    def views(self) -> str:
        """What is said after each instruction of the cameras, if anything."""
        return self.pictures.description if self.name_views else ""

    @property
    def chunk_size(self) -> int:
        """Action steps of a sample."""
        return self.shape.action_horizon if self.generator else 1

    @property
    def picture_size(self) -> tuple[int, int]:
        """(height, width) that pictures are expected in: as recorded, or one cell where cameras differ."""
        canvas = self.pictures
        sizes = set(canvas.cameras.values())
        return sizes.pop() if len(sizes) == 1 else canvas.cell

    def own_features(self) -> dict[str, PolicyFeature]:
        """A picture of each camera, and the state."""
        size, state = (3, *self.picture_size), (self.shape.state_dim,)
        cameras = {camera: PolicyFeature(FeatureType.VISUAL, size) for camera in self.pictures.cameras}
        return {**cameras, OBS_STATE: PolicyFeature(FeatureType.STATE, state)}

    # --------------------------------------------------------------------------------------------------- LeRobot

    def validate_features(self) -> None:
        """Raise ValueError unless the features are the cameras, state and actions of the generator."""
        if not self.generator:
            raise ValueError("generator is missing: vag generator-policy makes such a checkpoint of a generator")
        cameras, shape = set(self.image_features), self.shape
        if cameras != set(self.pictures.cameras):
            raise ValueError(
                f"the features have the cameras {sorted(cameras)}; the generator sees {sorted(self.pictures.cameras)}"
            )
        for name, feature, width in (
            (OBS_STATE, self.robot_state_feature, shape.state_dim),
            (ACTION, self.action_feature, shape.action_dim),
        ):
            if feature is None or tuple(feature.shape) != (width,):
                raise ValueError(f"expected the feature '{name}' with {width} numbers, as the generator has")

    def get_optimizer_preset(self) -> NoReturn:
        raise NotImplementedError(UNTRAINED)

    def get_scheduler_preset(self) -> None:
        return None

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None
