"""Typed configuration of the commands that are made of others: benchmarks, studies, the demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from recipes.engine_options import StageEngineOptions
from recipes.exchange_schema import MixConfig, PushConfig
from recipes.generator_policy_schema import GeneratorPolicyCommandConfig
from recipes.policy_schema import EvaluateConfig, FinetuneConfig, PretrainConfig
from recipes.schema import (
    MOST_EPISODES,
    MOST_LENGTH,
    MOST_PIXELS,
    MOST_PROCESSES,
    MOST_SCENE,
    MOST_SEED,
    CollectConfig,
    CommonConfig,
    EvaluateGeneratorConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    ReplayConfig,
    ReportConfig,
    ScoreConfig,
    SynthesizeConfig,
    TrainGeneratorConfig,
)
from recipes.trial_schema import TrialConfig
from recipes.world_options import SUITES, WHICH_SUITES, WorldConfig
from toolkit.base.options import option
from toolkit.training.config import MOST_BATCH, MOST_STEPS, MOST_THREADS


@dataclass
class BenchmarkDataConfig(CommonConfig):
    dataset: str | None = option(None, "LeRobotDataset v3 directory; null = a generated one")
    num_frames: int = option(16, "pictures of a clip", least=1, most=MOST_LENGTH)
    image_size: int = option(64, "pixels a side of the pictures", least=4, most=MOST_PIXELS)
    batch_size: int = option(16, "clips of a batch", least=1, most=MOST_BATCH)
    repeats: int = option(7, "rounds in which every reader takes its turn", least=1, most=10_000)
    camera_episodes: int = option(
        4, "of the generated dataset with three cameras of 480x640", least=1, most=MOST_EPISODES
    )
    camera_steps: int = option(100, "of each of these", least=2, most=MOST_LENGTH)
    large_gigabytes: int = option(30, "size of the sparse file that memory is watched with", least=1, most=1000)


@dataclass
class BenchmarkLerobotConfig(CommonConfig):
    dataset: str | None = option(None, "LeRobotDataset v3 directory that is trained on; null = episodes of collect")
    task: str = option("plate-slide", "of the simulator, collected and evaluated")
    episodes: int = option(10, "that are collected", least=1, most=MOST_EPISODES)
    policies: list[str] = option(["pi05_compact", "diffusion"], "configs of the group `policy`")
    batch_size: int = option(16, "clips of a batch", least=1, most=MOST_BATCH)
    steps: int = option(30, "gradient steps of a turn", least=2, most=MOST_STEPS)
    log_every: int = option(10, "steps of a timed part; the first part of a turn is left out", least=1, most=MOST_STEPS)
    workers: list[int] = option([0, 1, 2], "processes that load LeRobot's data; the best is used", least=0, most=64)
    repeats: int = option(3, "rounds in which each takes its turn", least=1, most=10_000)
    first_seed: int = option(500_000, "first scene; the others follow it", least=0, most=MOST_SCENE)
    scenes: int = option(4, "scenes of a turn of evaluation", least=1, most=10)
    max_steps: int = option(100, "steps after which an episode has failed", least=1, most=MOST_LENGTH)
    stock_steps: int = option(30, "that LeRobot's own Meta-World is timed for; 0 = leave it out", least=0, most=400)
    threads: int = option(2, "CPU threads of torch in each process", least=1, most=MOST_THREADS)


@dataclass
class SuiteConfig:
    """Overrides that make a way of looking at the same tasks."""

    collect: list[str] = option([], "overrides of collect")
    train: list[str] = option([], "overrides of train-generator")


@dataclass
class VariantConfig:
    """Another evaluation of a trained system: another sampler, or with one stream given."""

    system: str = option(MISSING, "config of the group `generator`")
    overrides: list[str] = option([], "overrides of evaluate-generator")
    against: str | None = option(None, "variant or system that it is compared with; null = the reference is, with it")


@dataclass
class BenchmarkGeneratorsConfig(CommonConfig, WorldConfig, StageEngineOptions):
    suites: list[str] = option(MISSING, "ways of looking at the tasks, of `conditions`")
    conditions: dict[str, SuiteConfig] = option({}, "what each suite is")
    systems: list[str] = option(MISSING, "configs of the group `generator`")
    reference: str = option("vag", "that all others are compared with")
    helpers: list[str] = option(MISSING, "systems that only take part in the variants")
    variants: dict[str, VariantConfig] = option({}, "further evaluations: another sampler, or one stream given")
    variants_suite: str = option(MISSING, "the one suite that they are evaluated in")
    seeds: list[int] = option(MISSING, "of training", least=0, most=MOST_SEED)
    tasks: list[str] = option(MISSING, "names of the simulator's tasks, such as push")
    episodes_per_task: int = option(
        300, "episodes of each task that generators learn from", least=1, most=MOST_EPISODES
    )
    scenes_per_task: int = option(50, "scenes of each task that are evaluated", least=1, most=MOST_EPISODES)
    first_seed: int = option(0, "first scene; the others follow it", least=0, most=MOST_SCENE)
    held_out_seed: int = option(250_000, "first scene of the evaluation", least=0, most=MOST_SCENE)
    metric_seed: int = option(
        300_000, "scenes that only the encoder of the clip distances learns from", least=0, most=MOST_SCENE
    )
    encoder_steps: int = option(150, "gradient steps of the encoder of the clip distances", least=1, most=MOST_STEPS)
    svd: str | None = option(
        None, "Stable Video Diffusion beside them: directory, name on the Hugging Face hub or tiny:svd; null = no row"
    )
    i3d: str | None = option(None, "TorchScript file of I3D, for the metric fvd: code, so only one you trust")
    collect: list[str] = option([], "overrides for every collect")
    train: list[str] = option([], "overrides for every train-generator")
    system_train: dict[str, list[str]] = option({}, "before them, overrides for single systems")
    evaluate: list[str] = option([], "overrides for every evaluation")
    svd_evaluate: list[str] = option([], "after them, overrides for that of svd, such as svd.num_inference_steps=30")
    lanes: int = option(2, "processes side by side; 0 = everything in this one", least=0, most=MOST_PROCESSES)
    evaluation_lanes: int = option(
        0,
        "evaluations side by side, after all trainings; 0 = each after its own, in its lane",
        least=0,
        most=MOST_PROCESSES,
    )
    threads: int = option(1, "of each; 0 = torch's default", least=0, most=MOST_THREADS)


@dataclass
class DemoConfig(CommonConfig, WorldConfig, StageEngineOptions):
    """Overrides handed to each command of the story."""

    source: str | None = option(None, "recorded data to import, instead of tasks to collect in the simulator")
    tasks: list[str] = option(MISSING, "names of the simulator's tasks, such as push")
    policies: list[str] = option(MISSING, "configs of the group `policy`")
    collect: list[str] = option(MISSING, "overrides of import, where there is a source")
    collect_held_out: list[str] = option(MISSING, "overrides of collect, or import, for the held-out episodes")
    train_generator: list[str] = option(MISSING, "overrides of train-generator")
    synthesize: list[str] = option(MISSING, "overrides of synthesize")
    few: int | None = option(
        MISSING, "real episodes per task that the policies get; null = all", least=1, most=MOST_EPISODES
    )
    real_only: list[str] = option(MISSING, "overrides of pretrain, on real episodes alone")
    pretrain: list[str] = option(MISSING, "overrides of pretrain, on synthetic episodes")
    finetune: list[str] = option(MISSING, "overrides of finetune")
    evaluate: list[str] = option(MISSING, "overrides of evaluate")


@dataclass
class GateConfig(CommonConfig, StageEngineOptions):
    dataset: str = option(MISSING, "episodes written by synthesize: LeRobotDataset v3 directory")
    checkpoint: str | None = option(None, "the generator behind them, for the cycle error")
    real: list[str] = option(MISSING, "recorded episodes that policies learn from")
    held_out: str = option(MISSING, "recorded episodes that neither the generator nor a policy has seen")
    policy: str = option("pi05_compact", "config of the group `policy`")
    synthetic_fraction: float = option(0.5, "of all sampled clips, with synthetic data", least=0, most=1)
    seeds: list[int] = option([0, 1, 2], "of training, one policy of each arm for each", least=0, most=MOST_SEED)
    score: list[str] = option([], "overrides of score")
    pretrain: list[str] = option([], "overrides of every pretrain")
    evaluate: list[str] = option([], "overrides of every evaluate")
    lanes: int = option(2, "processes side by side; 0 = everything in this one", least=0, most=MOST_PROCESSES)
    threads: int = option(1, "of each; 0 = torch's default", least=0, most=MOST_THREADS)


@dataclass
class BenchmarkPoliciesConfig(CommonConfig, WorldConfig, StageEngineOptions):
    checkpoints: dict[str, Any] = option(
        {}, "name: directory of a policy or generator, or one for each training seed", paths=True
    )
    results: str | None = option(
        None, "instead of rollouts: .csv or .parquet of outcomes judged elsewhere, with columns policy, scene, success"
    )
    tasks: list[str] = option(MISSING, "names of the simulator's tasks, such as push")
    new_tasks: list[str] = option([], "of the suite `task`")
    suites: list[str] = option(["unseen"], WHICH_SUITES, choices=SUITES)
    episodes_per_task: int = option(50, "rollouts of each task and suite", least=1, most=MOST_EPISODES)
    first_seed: int = option(500_000, "first scene; the others follow it", least=0, most=MOST_SCENE)
    evaluate: list[str] = option([], "overrides of every evaluation")
    evaluate_generators: list[str] = option(
        [], "after them, overrides for generators, such as generator_policy.n_action_steps=16"
    )
    lanes: int = option(2, "processes side by side; 0 = everything in this one", least=0, most=MOST_PROCESSES)
    threads: int = option(1, "of each; 0 = torch's default", least=0, most=MOST_THREADS)


@dataclass
class AblateConfig(CommonConfig, WorldConfig, StageEngineOptions):
    """The study: see `recipes/study.py` for arms, axes and how a line of the grid is read."""

    grid: list[str] = option(MISSING, "Hydra multirun lines: 'arm=real_few,cotrain policy=diffusion seed=0,1,2'")
    tasks: list[str] = option(MISSING, "names of the simulator's tasks, such as push")
    new_tasks: list[str] = option([], "suite `task`: real episodes of them are in real_all alone")
    other_tasks: list[str] = option([], "more of what the generator of generator_data=other_tasks sees")
    real_per_task: int = option(50, "real episodes recorded of each task", least=1, most=MOST_EPISODES)
    generator_few: int = option(
        5,
        "of each task, what the generator of generator_data=other_tasks sees; the policy gets the same ones",
        least=1,
        most=MOST_EPISODES,
    )
    first_seed: int = option(0, "first scene; the others follow it", least=0, most=MOST_SCENE)
    synthetic_seed: int = option(100_000, "first scene of the synthetic episodes", least=0, most=MOST_SCENE)
    held_out_seed: int = option(500_000, "first scene of the evaluation", least=0, most=MOST_SCENE)
    generator_seeds: list[int] = option([0, 1, 2], "a policy's seed k has the k-th, in turn", least=0, most=MOST_SEED)
    steps: int = option(MISSING, "gradient steps of the policy, in every arm", least=1, most=MOST_STEPS)
    policy_steps: dict[str, int] = option({}, "of single policies, in every arm", least=1, most=MOST_STEPS)
    suites: list[str] = option(["unseen", "position"], WHICH_SUITES, choices=SUITES)
    scenes_per_task: int = option(50, "scenes of each task that are evaluated", least=1, most=MOST_EPISODES)
    filters: dict[str, list[str]] = option({}, "name: rules of `vag pretrain select=`")
    finetunes: dict[str, list[str]] = option({}, "name: overrides of `vag finetune`")
    collect: list[str] = option([], "overrides for every collect")
    train_generator: list[str] = option([], "overrides for every train-generator")
    synthesize: list[str] = option([], "overrides for every synthesize")
    synthesize_by_generator_data: dict[str, list[str]] = option(
        {}, "after them, overrides for single values of generator_data"
    )
    rounds: dict[str, int] = option(
        {},
        "by generator_data, how often its generators learn, from the second time on of their own episodes too",
        least=1,
        most=100,
    )
    round_select: list[str] = option(["replay_success==1"], "which of their own episodes they learn from then")
    train: list[str] = option([], "overrides for every pretrain")
    policy_train: dict[str, list[str]] = option({}, "after them, overrides for single policies")
    finetune: list[str] = option([], "overrides for every finetune")
    policy_finetune: dict[str, list[str]] = option({}, "after them, overrides for single policies")
    evaluate: list[str] = option([], "overrides for every evaluation")
    generator_policies: dict[str, list[str]] = option(
        {}, "name: overrides of `vag evaluate` of a generator, such as generator_policy.n_action_steps=16"
    )
    gap: list[float] = option([0.35, 0.55], "success rates that shall be told apart", above=0, below=1)
    power: float = option(0.8, "chance to see that gap, for the count of scenes that is told", above=0, below=1)
    seed_deviation: float = option(
        0.05, "of the success rate from one training seed to the next, as far as is known", least=0, below=1
    )
    lanes: int = option(2, "processes side by side; 0 = everything in this one", least=0, most=MOST_PROCESSES)
    threads: int = option(1, "of each; 0 = torch's default", least=0, most=MOST_THREADS)
    workers: int = option(
        1, "of each, processes that execute the episodes of a generator; 1 = itself", least=1, most=MOST_PROCESSES
    )


SCHEMAS: dict[str, type[CommonConfig]] = {
    "collect": CollectConfig,
    "import": ImportConfig,
    "export": ExportConfig,
    "inspect": InspectConfig,
    "train-generator": TrainGeneratorConfig,
    "synthesize": SynthesizeConfig,
    "evaluate-generator": EvaluateGeneratorConfig,
    "score": ScoreConfig,
    "gate": GateConfig,
    "replay": ReplayConfig,
    "mix": MixConfig,
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "generator-policy": GeneratorPolicyCommandConfig,
    "evaluate": EvaluateConfig,
    "push": PushConfig,
    "trial": TrialConfig,
    "report": ReportConfig,
    "benchmark data": BenchmarkDataConfig,
    "benchmark lerobot": BenchmarkLerobotConfig,
    "benchmark generators": BenchmarkGeneratorsConfig,
    "benchmark policies": BenchmarkPoliciesConfig,
    "ablate": AblateConfig,
    "demo": DemoConfig,
}
