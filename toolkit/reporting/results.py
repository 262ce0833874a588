"""What each command found: one dataclass per command, as `run.json` holds it under `result`.

`toolkit.base.typed_json` writes and reads them. Rates run from 0 to 1, times are in seconds, paths lie in the run's
directory. A field that is None by default is there only where the command measured it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolkit.base.typed_json import rest
from toolkit.evaluation.rates import Rate, RolloutRates
from toolkit.reporting.benchmark_results import (
    AblateResult,
    BenchmarkDataResult,
    BenchmarkEngineResult,
    BenchmarkGeneratorsResult,
    BenchmarkLerobotResult,
    BenchmarkPoliciesResult,
    Difference,
    Row,
)
from toolkit.reporting.exchange_results import MixResult, PushResult
from toolkit.reporting.generator_results import (
    EvaluateGeneratorResult,
    Media,
    ScoreResult,
    ScoreSpread,
    SynthesizeResult,
    Throughput,
    TrainGeneratorResult,
    Trust,
)
from toolkit.reporting.trial_results import TrialResult


@dataclass(frozen=True, kw_only=True)
class DataEntry:
    """A dataset or checkpoint (without episodes) that a run read."""

    path: str
    id: str
    episodes: int | None = None


# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Episodes of one task, and the attempts that it took."""

    episodes: int
    attempts: int


@dataclass(frozen=True, kw_only=True)
class CollectResult(Collected):
    frames: int
    episodes_per_minute: float
    tasks: dict[str, Collected]
    dataset: str


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    layout: str
    episodes: int
    frames: int
    tasks: int
    fps: float
    fps_from: str
    cameras: dict[str, str]  # feature: where it came from
    state_keys: list[str]
    state_names: list[str]
    action_key: str
    action_names: list[str]
    robot_type: str | None
    left_out: list[str] = field(default_factory=list)  # keys of the source that were not taken, with their shapes
    skipped: list[str] = field(default_factory=list)  # episodes that skip_bad left out, and why
    video: str = "encoded"  # or copied
    colour_order: str = "rgb"  # that the source's pictures were taken to have
    dataset: str


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    episodes: int
    frames: int
    fps: float
    cameras: dict[str, str]
    megabytes: float
    file: str


@dataclass(frozen=True, kw_only=True)
class InspectResult:
    """problems: of the dataset, or of the repaired copy; then `found` are those before, `fixed` what was done."""

    problems: list[str]
    warnings: list[str]
    episodes: int
    frames: int
    features: list[dict[str, str]]  # key, dtype, shape, names
    media: list[Media]
    found: list[str] | None = None
    fixed: list[str] | None = None
    dataset: str | None = None


# ---------------------------------------------------------------------------------------------------------- policy


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    systems: dict[str, RolloutRates]


@dataclass(frozen=True, kw_only=True)
class PolicyMemory:
    """What the weights of a policy take of a GPU in training [byte]; activations, which grow with the batch, come on
    top."""

    parameters: int
    trained_parameters: int
    weights: int
    gradients: int
    optimizer: int
    average: int
    total: int
    gpu: str
    gpu_memory: int


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    policy: str
    steps: int
    loss: float | None = None
    parameters: int
    throughput: Throughput
    checkpoint: str
    synthetic_fraction: float
    episodes: list[int]  # of each dataset
    pretrained_id: str | None = None  # of the checkpoint that a training went on from
    dry_run: PolicyMemory | None = None  # then nothing was trained
    losses: dict[str, float] = rest()


@dataclass(frozen=True, kw_only=True)
class GeneratorPolicyResult:
    """A generator written as a policy. horizon: steps of a sample; random_start: None where nobody knows."""

    checkpoint: str
    generator_id: str
    sample: str
    n_action_steps: int
    horizon: int
    random_start: bool | None = None


@dataclass(frozen=True, kw_only=True)
class RolloutResult:
    """Of `vag evaluate` in simulation."""

    policy: str
    checkpoint_id: str
    arm: str
    seen_scenes: int | None
    suites: dict[str, RolloutRates]
    media: list[Media]


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Mean distance of predicted to recorded actions over n episodes; `mean`: that of their own mean action."""

    action_distance: float
    low: float
    high: float
    n: int
    mean: float


@dataclass(frozen=True, kw_only=True)
class OpenLoop(Distance):
    per_dimension: list[float]
    per_episode: list[float] = field(default_factory=list)
    n_action_steps: int


@dataclass(frozen=True, kw_only=True)
class OpenLoopResult:
    """Of `vag evaluate dataset=...`."""

    policy: str
    checkpoint_id: str
    arm: str
    open_loop: OpenLoop


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """trust and scores: see `ScoreResult`. rows: open-loop errors of policies on held-out episodes, by arm; beside them
    those of the episodes' own mean action, and of what was recorded from the nearest state."""

    trust: Trust | None
    scores: dict[str, ScoreSpread]
    rows: list[Row]
    comparisons: list[Difference]
    mean_action: float
    nearest_recorded: float
    verdict: str
    runs: list[str]


# ------------------------------------------------------------------------------------------------------------ demo


@dataclass(frozen=True, kw_only=True)
class StageTime:
    name: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class GeneratedSystem:
    system: str
    replay_success: Rate | None = None  # None without a simulator
    metrics: dict[str, float] = rest()


@dataclass(frozen=True, kw_only=True)
class GeneratedSystems:
    systems: list[GeneratedSystem]


@dataclass(frozen=True, kw_only=True)
class PolicyArm:
    policy: str
    arm: str


@dataclass(frozen=True, kw_only=True)
class PolicyRate(Rate, PolicyArm):
    """Of the rollouts of a policy."""


@dataclass(frozen=True, kw_only=True)
class PolicyDistance(Distance, PolicyArm):
    """Of the predictions of a policy."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    stages: list[StageTime]
    generator: GeneratedSystems
    policies: list[PolicyRate | PolicyDistance]
    runs: list[str]


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    page: str


RESULTS: dict[str, Any] = {
    "collect": CollectResult,
    "import": ImportResult,
    "export": ExportResult,
    "inspect": InspectResult,
    "train-generator": TrainGeneratorResult,
    "synthesize": SynthesizeResult,
    "evaluate-generator": EvaluateGeneratorResult,
    "score": ScoreResult,
    "gate": GateResult,
    "replay": ReplayResult,
    "mix": MixResult,
    "pretrain": PretrainResult,
    "finetune": PretrainResult,
    "generator-policy": GeneratorPolicyResult,
    "evaluate": RolloutResult | OpenLoopResult,
    "push": PushResult,
    "trial": TrialResult,
    "report": ReportResult,
    "benchmark data": BenchmarkDataResult,
    "benchmark lerobot": BenchmarkLerobotResult,
    "benchmark engine": BenchmarkEngineResult,
    "benchmark generators": BenchmarkGeneratorsResult,
    "benchmark policies": BenchmarkPoliciesResult,
    "ablate": AblateResult,
    "demo": DemoResult,
}
