"""Typed configuration of every command: a wrong key or type fails before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from toolkit.training.loop import OptimConfig
from toolkit.training.runtime import RuntimeConfig
from vag_core.checkpoint import MOST_PARAMETERS
from vag_core.config import GeneratorConfig


@dataclass
class CommonConfig:
    """What every command takes."""

    out: str | None = None  # default outputs/<command>/<timestamp>
    overwrite: bool = False  # replace a finished out
    resume: bool = False  # go on with an unfinished out
    seed: int = 0  # of all randomness that is not a scene; scenes have first_seed


@dataclass
class LoadingConfig:
    """What a policy checkpoint is trusted with, beyond what vag knows: see SECURITY.md."""

    allow: list[str] = field(default_factory=list)  # policy types and processor steps of packages that you trust
    allow_repo: list[str] = field(default_factory=list)  # repositories and directories that a checkpoint may name
    allow_remote_code: bool = False  # load types that run Python out of a repository (groot, pi0_fast, wall_x)
    max_parameters: int = MOST_PARAMETERS  # numbers that the file of weights may hold


@dataclass
class CollectConfig(CommonConfig):
    tasks: list[str] = MISSING
    episodes_per_task: int = 50
    num_steps: int = 100
    image_size: int = 64
    noise_scale: float = 0.1  # operator noise, deviation of the Ornstein-Uhlenbeck process
    render_every: int = 1  # steps from one picture to the next; those between repeat the last, as with a slow camera
    hide_robot: bool = False  # leave the robot out of the pictures
    positions: str = "all"  # scenes by their object's place: all | inner | outer, which the suite `position` is made of
    first_seed: int = 0  # initial scenes are first_seed, first_seed + 1, ...
    workers: int = 2


@dataclass
class ImportConfig(CommonConfig):
    source: str = MISSING  # HDF5 file, directory of them, LeRobotDataset directory or repo id on the hub
    layout: str = "auto"  # robomimic, libero, aloha, bridge, lerobot
    task: str | None = None  # instruction of episodes that carry none
    episodes: str | None = None  # part of them, "first:last" as in Python
    image_keys: dict[str, str] = field(default_factory=dict)  # feature: camera in the source; {} = all of them
    state_keys: list[str] = field(default_factory=list)  # put side by side in this order; [] = the layout's own
    action_key: str | None = None
    state_names: list[str] = field(default_factory=list)
    action_names: list[str] = field(default_factory=list)
    image_size: int | None = None  # pictures become squares of this size; null keeps them
    flip_vertical: bool = False  # for pictures stored upside down, as LIBERO's are
    fps: int | None = None  # of a source that names none
    robot_type: str = "unknown"


@dataclass
class ExportConfig(CommonConfig):
    dataset: str = MISSING  # LeRobotDataset v3 directory
    jpeg_quality: int | None = None  # null = raw frames
    compress: bool = True  # lossless, inside the HDF5 file


@dataclass
class InspectConfig(CommonConfig):
    dataset: str = MISSING  # LeRobotDataset v3 directory
    fix: bool = False  # write a repaired copy to out/dataset; the original stays as it is


@dataclass
class BenchmarkDataConfig(CommonConfig):
    dataset: str | None = None  # LeRobotDataset v3 directory; null = a generated one
    num_frames: int = 16
    image_size: int = 64
    batch_size: int = 16
    repeats: int = 7  # rounds in which every reader takes its turn
    large_gigabytes: int = 30  # size of the sparse file that memory is watched with


@dataclass
class SuiteConfig:
    """Overrides that make a way of looking at the same tasks."""

    collect: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)


@dataclass
class VariantConfig:
    """Another evaluation of a trained system: another sampler, or with one stream given."""

    system: str = MISSING
    overrides: list[str] = field(default_factory=list)
    against: str | None = None  # variant or system that it is compared with; null = the reference is, with it


@dataclass
class BenchmarkGeneratorsConfig(CommonConfig):
    suites: list[str] = MISSING
    conditions: dict[str, SuiteConfig] = field(default_factory=dict)  # what each suite is
    systems: list[str] = MISSING  # configs of the group `generator`
    reference: str = "vag"  # that all others are compared with
    helpers: list[str] = MISSING  # systems that only take part in the variants
    variants: dict[str, VariantConfig] = field(default_factory=dict)
    variants_suite: str = MISSING  # the one suite that they are evaluated in
    seeds: list[int] = MISSING  # of training
    tasks: list[str] = MISSING
    episodes_per_task: int = 300
    scenes_per_task: int = 50
    first_seed: int = 0
    held_out_seed: int = 250_000
    metric_seed: int = 300_000  # scenes that only the encoder of the clip distances learns from
    encoder_steps: int = 150
    i3d: str | None = None  # TorchScript file of I3D, for the metric fvd: code, so only one you trust
    collect: list[str] = field(default_factory=list)  # overrides for every collect, train-generator, ...
    train: list[str] = field(default_factory=list)
    system_train: dict[str, list[str]] = field(default_factory=dict)  # before them, for single systems
    evaluate: list[str] = field(default_factory=list)
    lanes: int = 2  # processes side by side; 0 = everything in this one
    evaluation_lanes: int = 0  # evaluations side by side, after all trainings; 0 = each after its own, in its lane
    threads: int = 1  # of each; 0 = torch's default


@dataclass
class TokenizerTraining(OptimConfig):
    groups: int = 3  # frame groups per clip in a batch


@dataclass
class TrainGeneratorConfig(CommonConfig):
    dataset: Any = MISSING  # LeRobotDataset v3 directory or clip file, or several: [a,b]
    synthetic: list[str] = field(default_factory=list)  # episodes of an earlier generator beside them
    select: list[str] = field(default_factory=list)  # of these by score: replay_success==1, or score_flow_loss<=50%
    dataset_shares: list[float] | None = None  # of the clips, for each of all these; null = by number of episodes
    image_key: str = "observation.image"
    random_start: bool = False  # windows from anywhere in the episode, not only from its start
    labelled_fraction: float = 1.0  # of the episodes of each instruction keep their actions; the rest is video alone
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    max_parameters: int = MOST_PARAMETERS  # numbers that a file of weights may hold
    tokenizer_from: str | None = None  # generator directory whose tokenizer is taken as it is
    video_from: str | None = None  # the same for the tokenizer and the whole video branch
    instruction_encoder: str | None = None  # directory of a sentence-transformer or T5; null = learned on bytes
    tokenizer_optim: TokenizerTraining = field(default_factory=TokenizerTraining)
    optim: OptimConfig = field(default_factory=OptimConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class SamplerConfig:
    num_inference_steps: int = 10
    guidance_scale: float = 1.0
    method: str = "euler"  # euler | heun | adams_bashforth
    order: str | None = (
        None  # synchronised | video_first | actions_once | actions_first; null = what suits the generator
    )


@dataclass
class SynthesizeConfig(CommonConfig):
    checkpoint: str = MISSING  # generator directory written by train-generator
    tasks: list[str] = MISSING
    episodes_per_task: int = 50
    first_seed: int = 100_000
    allow_seen: bool = False  # generate from scenes that the generator was trained on
    scenes_from: str | None = None  # take first pictures from this dataset instead of the simulator
    image_key: str = "observation.image"
    instruction_encoder: str | None = None
    draws: int = 1  # plans of each scene, the first that solves it in the simulator is taken; 1 = it is not asked
    draw_shift: int = 2  # pixels: each plan but the first is made for the picture moved by up to so many, at random
    workers: int = 2  # processes that execute plans
    max_parameters: int = MOST_PARAMETERS  # numbers that a file of weights may hold
    batch_size: int = 20
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class EvaluateGeneratorConfig(CommonConfig):
    checkpoint: str = MISSING  # generator directory written by train-generator
    dataset: str = MISSING  # held-out episodes: LeRobotDataset v3 directory or clip file
    given: str = "nothing"  # or video (inverse dynamics) or actions (forward dynamics)
    replay: bool = True  # execute the actions where the episodes name a scene of the simulator
    keep_samples: bool = False  # write the pairs to samples.npz
    allow_seen: bool = False  # evaluate on scenes that the generator was trained on
    image_key: str = "observation.image"
    instruction_encoder: str | None = None
    max_parameters: int = MOST_PARAMETERS  # numbers that a file of weights may hold
    batch_size: int = 20
    workers: int = 2
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class ScoreConfig(CommonConfig):
    dataset: str = MISSING  # LeRobotDataset directory written by synthesize
    checkpoint: str | None = None  # generator, for score_cycle_error
    real: list[str] = field(default_factory=list)  # what the generator learned from, for limits and copies
    image_key: str = "observation.image"
    image_size: int = 64
    instruction_encoder: str | None = None
    max_parameters: int = MOST_PARAMETERS  # numbers that a file of weights may hold
    batch_size: int = 20
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class ReplayConfig(CommonConfig):
    dataset: str = MISSING
    system: str = "vag"  # the name in tables
    max_steps: int | None = None  # actions executed of each episode; null = all
    workers: int = 2


@dataclass
class PolicyConfig:
    type: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class PolicyTrainingConfig(CommonConfig):
    real: list[str] = field(default_factory=list)
    synthetic: list[str] = field(default_factory=list)
    synthetic_fraction: float | None = None  # of all sampled clips; null = in proportion to the frames
    real_shares: list[float] | None = None  # of the real clips, for each dataset; null = in proportion to the frames
    normalization: str = "shared"  # or per_source: each dataset's range onto that of the first one
    pad_widths: bool = False  # let robots with fewer state or action dimensions take part
    episodes_per_task: int | None = None  # use only the first so many real episodes of each task
    synthetic_per_task: int | None = None  # the same for synthetic ones, before any are selected
    augment: bool = False  # pictures in random colours and sharpness
    select: list[str] = field(default_factory=list)  # synthetic episodes by score: score_cycle_error<=0.2, or <=50%
    weight_by: str | None = None  # score whose best synthetic episodes are drawn most often
    shuffle_actions: bool = False  # synthetic episodes get the actions of others of their task: a control
    image_key: str = "observation.image"
    image_size: int = 64
    optim: OptimConfig = field(default_factory=OptimConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class PretrainConfig(PolicyTrainingConfig):
    text_encoder: str | None = (
        None  # directory of a sentence-transformer or T5, for diffusion policies; null = hashed words
    )
    policy: PolicyConfig = field(default_factory=PolicyConfig)


@dataclass
class FinetuneConfig(PolicyTrainingConfig, LoadingConfig):
    checkpoint: str = MISSING  # pretrained_model directory
    refit_statistics: bool = False  # replace pretraining's; then its rate and names do not bind either
    freeze_vision_encoder: bool = False


@dataclass
class EvaluateConfig(CommonConfig, LoadingConfig):
    checkpoint: str = MISSING  # pretrained_model directory, or owner/name of a LeRobot policy on the hub
    dataset: str | None = None  # instead of rollouts: open-loop error on these episodes (LeRobotDataset, clip file)
    image_key: str = "observation.image"
    tasks: list[str] = MISSING
    suites: list[str] = field(default_factory=lambda: ["unseen"])  # unseen, position, visual, language, task
    positions: str = "all"  # inner = in all suites but `position`, only scenes of positions that it does not hold out
    new_tasks: list[str] = field(default_factory=list)  # of the suite `task`
    arm: str = "policy"  # the name in tables
    episodes_per_task: int = 20
    first_seed: int = 500_000
    allow_seen: bool = False  # roll out on scenes that the policy was trained on
    max_steps: int = 100
    image_size: int = 64
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


@dataclass
class ReportConfig(CommonConfig):
    runs: list[str] = MISSING


@dataclass
class DemoConfig(CommonConfig):
    """Overrides handed to each command of the story."""

    source: str | None = None  # recorded data to import, instead of tasks to collect in the simulator
    tasks: list[str] = MISSING
    policies: list[str] = MISSING
    collect: list[str] = MISSING  # overrides of import, where there is a source
    collect_held_out: list[str] = MISSING
    train_generator: list[str] = MISSING
    synthesize: list[str] = MISSING
    few: int | None = MISSING  # real episodes per task that the policies get; null = all
    real_only: list[str] = MISSING
    pretrain: list[str] = MISSING
    finetune: list[str] = MISSING
    evaluate: list[str] = MISSING


@dataclass
class BenchmarkPoliciesConfig(CommonConfig):
    checkpoints: dict[str, Any] = field(default_factory=dict)  # name: directory, or one for each training seed
    tasks: list[str] = MISSING
    new_tasks: list[str] = field(default_factory=list)
    suites: list[str] = field(default_factory=lambda: ["unseen"])
    episodes_per_task: int = 50
    first_seed: int = 500_000
    evaluate: list[str] = field(default_factory=list)  # overrides of every evaluation
    lanes: int = 2  # processes side by side; 0 = everything in this one
    threads: int = 1  # of each; 0 = torch's default


@dataclass
class AblateConfig(CommonConfig):
    """The study: see `recipes/study.py` for arms, axes and how a line of the grid is read."""

    grid: list[str] = MISSING  # Hydra multirun lines: 'arm=real_few,cotrain policy=diffusion seed=0,1,2'
    tasks: list[str] = MISSING
    new_tasks: list[str] = field(default_factory=list)  # suite `task`: real episodes of them are in real_all alone
    other_tasks: list[str] = field(default_factory=list)  # more of what the generator of the feed `fair` sees
    real_per_task: int = 50
    fed_few: int = 5  # of each task, what the generator of the feed `fair` sees; the policy gets the same ones
    first_seed: int = 0
    synthetic_seed: int = 100_000
    held_out_seed: int = 500_000
    generator_seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # a policy's seed k has the k-th, in turn
    steps: int = MISSING  # gradient steps of the policy, in every arm
    policy_steps: dict[str, int] = field(default_factory=dict)  # of single policies, in every arm
    suites: list[str] = field(default_factory=lambda: ["unseen", "position"])
    scenes_per_task: int = 50
    filters: dict[str, list[str]] = field(default_factory=dict)  # name: rules of `vag pretrain select=`
    finetunes: dict[str, list[str]] = field(default_factory=dict)  # name: overrides of `vag finetune`
    collect: list[str] = field(default_factory=list)  # overrides for every collect, train-generator, ...
    train_generator: list[str] = field(default_factory=list)
    synthesize: list[str] = field(default_factory=list)
    feed_synthesize: dict[str, list[str]] = field(default_factory=dict)  # after them, for single feeds
    rounds: dict[str, int] = field(default_factory=dict)  # how often generators of a feed learn; from the second on
    round_select: list[str] = field(default_factory=lambda: ["replay_success==1"])  # of their own episodes too: these
    train: list[str] = field(default_factory=list)
    policy_train: dict[str, list[str]] = field(default_factory=dict)  # after them, for single policies
    finetune: list[str] = field(default_factory=list)
    policy_finetune: dict[str, list[str]] = field(default_factory=dict)
    evaluate: list[str] = field(default_factory=list)
    gap: list[float] = field(default_factory=lambda: [0.35, 0.55])  # success rates that shall be told apart
    power: float = 0.8
    seed_deviation: float = 0.05  # of the success rate from one training seed to the next, as far as is known
    lanes: int = 2  # processes side by side; 0 = everything in this one
    threads: int = 1  # of each; 0 = torch's default
    workers: int = 1  # of each, processes that execute the episodes of a generator; 1 = itself


SCHEMAS: dict[str, type[CommonConfig]] = {
    "collect": CollectConfig,
    "import": ImportConfig,
    "export": ExportConfig,
    "inspect": InspectConfig,
    "train-generator": TrainGeneratorConfig,
    "synthesize": SynthesizeConfig,
    "evaluate-generator": EvaluateGeneratorConfig,
    "score": ScoreConfig,
    "replay": ReplayConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "benchmark data": BenchmarkDataConfig,
    "benchmark generators": BenchmarkGeneratorsConfig,
    "benchmark policies": BenchmarkPoliciesConfig,
    "ablate": AblateConfig,
    "demo": DemoConfig,
}
