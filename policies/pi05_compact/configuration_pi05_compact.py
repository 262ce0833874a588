"""Sizes and settings of the pi0.5-style policy `pi05_compact`."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig
from lerobot.utils.constants import ACTION, OBS_STATE


@PreTrainedConfig.register_subclass("pi05_compact")
@dataclass
class Pi05CompactConfig(PreTrainedConfig):
    """Names follow LeRobot's `PI05Config`; defaults are sized for training on one CPU thread at 64x64.

    chunk_size: predicted action steps; the first n_action_steps of them are executed. action_patch: consecutive steps
        that share a token of the action expert, as the pixels of a patch do.
    max_state_dim, max_action_dim: widths the weights are allocated for, so that a checkpoint can be fine-tuned
        on another robot; narrower vectors are padded, and the padding never reaches the loss.
    vision_backbone: `compact` or a timm name with features at stride 8; vision_weights: safetensors file for it.
    tokenizer_max_length, tokenizer_buckets: words kept of an instruction, and ids they are hashed to.
    width, mlp_width: of the prefix stream; expert_width, expert_mlp_width: of the action expert. Both streams
        have `depth` layers and share num_heads, num_kv_heads and head_dim, since they meet in one attention.
    sampling_temperature: standard deviation of the noise that a chunk is sampled from; below 1 a chunk is nearer to the
        mean of what was demonstrated, with less of the operator's noise. Noise that a caller passes is taken as it is.
    flow_samples: noise and time draws per observation and training step; the prefix is computed once for all.
    """

    n_obs_steps: int = 1
    chunk_size: int = 16
    n_action_steps: int = 8
    action_patch: int = 4
    max_state_dim: int = 32
    max_action_dim: int = 32
    state_bins: int = 256

    vision_backbone: str = "compact"
    vision_weights: str | None = None
    tokenizer_max_length: int = 16
    tokenizer_buckets: int = 4096

    depth: int = 2
    width: int = 128
    mlp_width: int = 256
    expert_width: int = 128
    expert_mlp_width: int = 256
    num_heads: int = 4
    num_kv_heads: int = 1
    head_dim: int = 32

    num_inference_steps: int = 10
    sampling_temperature: float = 1.0
    flow_samples: int = 4
    time_sampling_beta_alpha: float = 1.5
    time_sampling_beta_beta: float = 1.0
    time_sampling_scale: float = 0.999
    time_sampling_offset: float = 0.001
    min_period: float = 4e-3
    max_period: float = 4.0

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.QUANTILES,
            "ACTION": NormalizationMode.QUANTILES,
        }
    )

    optimizer_lr: float = 5e-4
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_eps: float = 1e-8
    optimizer_weight_decay: float = 0.01
    optimizer_grad_clip_norm: float = 1.0
    scheduler_warmup_steps: int = 100
    scheduler_decay_steps: int = 10_000
    scheduler_decay_lr: float = 2.5e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_obs_steps != 1:
            raise ValueError(f"n_obs_steps is {self.n_obs_steps}; pi05_compact sees one observation")
        if not 1 <= self.n_action_steps <= self.chunk_size:
            raise ValueError(f"n_action_steps is {self.n_action_steps}; expected 1 to chunk_size ({self.chunk_size})")
        if self.action_patch < 1 or self.chunk_size % self.action_patch:
            raise ValueError(
                f"chunk_size is {self.chunk_size}; expected a multiple of action_patch ({self.action_patch})"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.expert_width % 2:
            raise ValueError(f"expert_width is {self.expert_width}; the sine-cosine time features need an even width")
        if self.sampling_temperature < 0:
            raise ValueError(f"sampling_temperature is {self.sampling_temperature}; expected 0 or more")
        if self.flow_samples < 1 or self.depth < 1 or self.num_inference_steps < 1:
            raise ValueError("flow_samples, depth and num_inference_steps must be at least 1")

    def validate_features(self) -> None:
        """At least one camera, one state and one action, none wider than what the weights are allocated for."""
        if not self.image_features:
            raise ValueError("expected at least one image feature")
        state, action = self.robot_state_feature, self.action_feature
        if state is None or action is None:
            raise ValueError(f"expected the features '{OBS_STATE}' and '{ACTION}'")
        for name, feature, limit in (
            ("max_state_dim", state, self.max_state_dim),
            ("max_action_dim", action, self.max_action_dim),
        ):
            if feature.shape[0] > limit:
                raise ValueError(f"{name} is {limit}, but the data is {feature.shape[0]} wide")

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            betas=self.optimizer_betas,
            eps=self.optimizer_eps,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )

    @property
    def observation_delta_indices(self) -> None:
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None
