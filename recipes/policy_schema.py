"""Typed configuration of the commands that train and evaluate policies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from recipes.engine_options import EngineOptions
from recipes.generator_policy_schema import GeneratorPolicyConfig
from recipes.gpus import GPUS
from recipes.parallel_options import ParallelConfig
from recipes.schema import (
    ABSOLUTE_DIMENSIONS,
    ACTION_KINDS,
    CAMERAS,
    FRAME_STORAGE,
    MOST_EPISODES,
    MOST_LENGTH,
    MOST_PIXELS,
    MOST_SCENE,
    NORMALIZATIONS,
    NOTES,
    PICTURES,
    RENAME,
    REPRESENTATION,
    REPRESENTATIONS,
    RESAMPLE,
    RESAMPLED_KIND,
    STORAGES,
    CommonConfig,
    LoadingConfig,
)
from recipes.shard_options import MOST_WORKERS
from recipes.world_options import POSITIONS, SUITES, WHICH_SUITES, WorldConfig
from toolkit.base.options import option, part
from toolkit.training.config import OptimConfig, RuntimeConfig


@dataclass
class AdaptersConfig:
    lora_rank: int | None = option(
        None, "of adapters, which alone are trained, and merged in the end; null = all weights", least=1, most=1024
    )


@dataclass
class PolicyConfig(AdaptersConfig):
    type: str = option(
        MISSING, "pi05_compact, diffusion, diffusion_compact, or any type of LeRobot: act, smolvla, pi05"
    )
    path: str | None = option(
        None, "go on from the weights of this checkpoint: directory, or owner/name on the hub; null = from scratch"
    )
    options: dict[str, Any] = option({}, "fields of the policy's own config")


@dataclass
class PolicyTrainingConfig(CommonConfig, ParallelConfig):
    real: list[str] = option([], "recorded datasets")
    synthetic: list[str] = option([], "datasets written by synthesize")
    notes: list[str] = option([], NOTES)
    synthetic_fraction: float | None = option(
        None, "of all sampled clips; null = in proportion to the frames", least=0, most=1
    )
    real_shares: list[float] | None = option(
        None, "of the real clips, for each dataset; null = in proportion to the frames", least=0, most=1_000_000_000
    )
    normalization: str = option(
        "shared", "shared, or per_source: each dataset's range onto that of the first one", choices=NORMALIZATIONS
    )
    pad_widths: bool = option(False, "let robots with fewer state or action dimensions take part")
    episodes_per_task: int | None = option(
        None, "use only the first so many real episodes of each task", least=1, most=MOST_EPISODES
    )
    synthetic_per_task: int | None = option(
        None, "the same for synthetic ones, before any are selected", least=1, most=MOST_EPISODES
    )
    augment: bool = option(False, "pictures in random colours and sharpness")
    select: list[str] = option([], "synthetic episodes by score: score_cycle_error<=0.2, or <=50%")
    weight_by: str | None = option(None, "score whose best synthetic episodes are drawn most often")
    shuffle_actions: bool = option(False, "synthetic episodes get the actions of others of their task: a control")
    cameras: list[str] = option([], CAMERAS)
    rename: dict[str, str] = option({}, RENAME)
    frame_storage: str = option("auto", FRAME_STORAGE, choices=STORAGES)
    image_size: Any = option(None, PICTURES, least=4, most=MOST_PIXELS, numbers=True)
    resample_fps: float | None = option(None, f"lower rate that all are resampled to{RESAMPLE}", above=0, most=10_000)
    action_kind: str | None = option(None, RESAMPLED_KIND, choices=ACTION_KINDS)
    freeze_vision_encoder: bool = option(False, "keep the weights that see")
    optim: OptimConfig = part(OptimConfig, "training")
    runtime: RuntimeConfig = part(RuntimeConfig, "where and how to compute")


@dataclass
class PretrainConfig(PolicyTrainingConfig, LoadingConfig):
    dry_run: bool = option(
        False, "train nothing: say how many weights the policy has, and what they take of a GPU's memory in training"
    )
    gpu: str = option("h100", "what a dry run estimates for", choices=tuple(GPUS))
    text_encoder: str | None = option(
        None, "directory of a sentence-transformer or T5, for diffusion policies; null = hashed words"
    )
    own_sizes: bool = option(
        False, "each camera at its recorded size for the policies of this project too, which else see 64x64"
    )
    action_representation: str = option("absolute", REPRESENTATION, choices=REPRESENTATIONS)
    absolute_dimensions: list[str] | None = option(None, ABSOLUTE_DIMENSIONS)
    policy: PolicyConfig = part(PolicyConfig, "the policy; see the group `policy`")


@dataclass
class FinetuneConfig(PolicyTrainingConfig, LoadingConfig):
    checkpoint: str = option(MISSING, "pretrained_model directory, or owner/name of a LeRobot policy on the hub")
    refit_statistics: bool = option(False, "replace pretraining's; then its rate and names do not bind either")
    policy: AdaptersConfig = part(AdaptersConfig, "which weights are trained")


@dataclass
class EvaluateConfig(CommonConfig, LoadingConfig, WorldConfig, EngineOptions):
    checkpoint: str = option(
        MISSING, "pretrained_model directory, owner/name of a LeRobot policy on the hub, or a generator's directory"
    )
    generator_policy: GeneratorPolicyConfig = part(GeneratorPolicyConfig, "how a generator acts, where it is one")
    dataset: str | None = option(
        None, "instead of rollouts: open-loop error on these episodes (LeRobotDataset, clip file)"
    )
    cameras: list[str] = option([], CAMERAS)
    rename: dict[str, str] = option({}, RENAME)
    frame_storage: str = option("auto", FRAME_STORAGE, choices=STORAGES)
    tasks: list[str] = option(MISSING, "names of the simulator's tasks, such as push")
    suites: list[str] = option(["unseen"], WHICH_SUITES, choices=SUITES)
    positions: str = option(
        "all",
        "inner = in all suites but `position`, only scenes of positions that it does not hold out",
        choices=POSITIONS,
    )
    new_tasks: list[str] = option([], "of the suite `task`")
    arm: str = option("policy", "the name in tables")
    episodes_per_task: int = option(20, "rollouts of each task and suite", least=1, most=MOST_EPISODES)
    first_seed: int = option(500_000, "first scene; the others follow it", least=0, most=MOST_SCENE)
    allow_seen: bool = option(False, "roll out on scenes that the policy was trained on")
    batch_size: int | None = option(
        None, "scenes, or steps of a dataset, that share a prediction; null = 20 scenes, 32 steps", least=1, most=65_536
    )
    max_steps: int = option(100, "steps after which a rollout has failed", least=1, most=MOST_LENGTH)
    image_size: Any = option(None, PICTURES, least=4, most=MOST_PIXELS, numbers=True)
    workers: int | None = option(
        None,
        "processes that roll out parts of the suites side by side; null = one for each GPU, and on CPUs one with all "
        "threads",
        least=1,
        most=MOST_WORKERS,
    )
    runtime: RuntimeConfig = part(RuntimeConfig, "where and how to compute")
