"""What each command found: one dataclass per command, as `run.json` holds it under `result`.

`toolkit.base.typed_json` writes and reads them. Rates run from 0 to 1, times are in seconds, paths lie in the run's
directory. A field that is None by default is there only where the command measured it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.base.typed_json import rest
from toolkit.evaluation.rates import Rate, RolloutRates, TaskRates


def check_lengths(*lists: Sequence[Any]) -> None:
    """Raise ValueError unless all have the same number of values, and any at all."""
    if not lists[0] or len({len(values) for values in lists}) > 1:
        raise ValueError(f"lists of {', '.join(str(len(values)) for values in lists)} values; expected equally many")


@dataclass(frozen=True, kw_only=True)
class Media:
    """A video or picture of a run."""

    path: str
    caption: str = ""


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


# ------------------------------------------------------------------------------------------------------- generator


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    steps: int
    psnr: float | None  # [dB]; None for a reconstruction without any error


@dataclass(frozen=True, kw_only=True)
class StreamsTraining:
    steps: int
    parameters: int
    loss: float | None = None
    losses: dict[str, float] = rest()


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Of one process; empty where a training had no step left."""

    samples_per_second: float | None = None
    flop_per_second: float | None = None
    flop_per_sample: float | None = None
    bf16_peak_share: float | None = None
    tokens_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainGeneratorResult:
    tokenizer: TokenizerTraining | None = None
    generator: StreamsTraining
    throughput: Throughput
    episodes: list[int]  # of each dataset
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class SynthesizeResult:
    episodes: int
    seconds_per_episode: float
    function_evaluations: int
    generator_id: str
    seen_scenes: int | None  # None: the checkpoint does not say
    dataset: str
    media: list[Media]
    solved_by_draw: list[int] | None = None
    planning_seconds: float | None = None
    metrics: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class SuccessCurve:
    """Share of the pairs whose action distance is at most each threshold."""

    thresholds: list[float]
    success: list[float]

    def __post_init__(self) -> None:
        check_lengths(self.thresholds, self.success)


@dataclass(frozen=True, kw_only=True)
class PairScores:
    """Lists over the pairs, in the same order; metrics: name -> values."""

    task: list[str]
    seed: list[int | None]
    replay_success: list[bool] | None = None
    metrics: dict[str, list[float]] = rest()

    def __post_init__(self) -> None:
        replayed = [] if self.replay_success is None else [self.replay_success]
        check_lengths(self.task, self.seed, *replayed, *self.metrics.values())


@dataclass(frozen=True, kw_only=True)
class EvaluateGeneratorResult:
    checkpoint_id: str
    given: str
    seconds_per_pair: float
    function_evaluations: int
    seen_scenes: int | None
    dimension_errors: list[float] | None = None  # of each dimension of the actions
    success_curve: SuccessCurve | None = None
    replay: TaskRates | None = None
    scenes: PairScores
    metrics: dict[str, float]
    samples: str | None = None


@dataclass(frozen=True, kw_only=True)
class Spread:
    least: float
    median: float
    most: float


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    checkpoint_id: str | None = None
    scores: dict[str, Spread]


# ---------------------------------------------------------------------------------------------------------- policy


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    systems: dict[str, RolloutRates]


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
    pretrained_id: str | None = None  # of the checkpoint that a fine-tuning went on from
    losses: dict[str, float] = rest()


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
    n_action_steps: int


@dataclass(frozen=True, kw_only=True)
class OpenLoopResult:
    """Of `vag evaluate dataset=...`."""

    policy: str
    checkpoint_id: str
    arm: str
    open_loop: OpenLoop


# ------------------------------------------------------------------------------------------------------ benchmarks


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of a benchmark with its 95 % bounds, from n measurements. axes: the cell of a study, and the like."""

    system: str
    suite: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    seeds: int | None = None
    policy: str | None = None
    arm: str | None = None
    feed: str | None = None
    few: int | None = None
    synthetic_fraction: float | None = None
    synthetic_per_task: int | None = None
    weight_by: str | None = None
    more: dict[str, Any] = rest()  # other axes, and what the value is read beside

    @property
    def rate(self) -> Rate:
        """Of a row whose value is a share of n trials."""
        return Rate(successes=round(self.value * self.n), n=self.n, rate=self.value, low=self.low, high=self.high)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """System a minus system b on the same suite, with its 95 % bounds. arm, control: those of a and b."""

    a: str
    b: str
    policy: str | None = None
    suite: str
    arm: str | None = None
    control: str | None = None
    metric: str
    paired: bool
    seeds: int | None = None
    difference: float
    low: float
    high: float
    p: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """System a over system b on the same suite, with its quartiles."""

    a: str
    b: str
    policy: str | None = None
    suite: str
    metric: str
    value: float
    low: float
    high: float
    paired: bool


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """Distances of clips that were corrupted at several strengths."""

    corruption: str
    unit: str
    strengths: list[float]
    distances: list[float]
    monotone: bool

    def __post_init__(self) -> None:
        check_lengths(self.strengths, self.distances)


@dataclass(frozen=True, kw_only=True)
class ValidityCard:
    """What a distance of clips is worth; floor: that of uncorrupted clips."""

    encoder_id: str
    n: int
    floor: float
    rows: list[Corruption]


@dataclass(frozen=True, kw_only=True)
class Place:
    rank: int
    system: str


@dataclass(frozen=True, kw_only=True)
class Ranked(Rate, Place):
    seeds: int
    not_distinguishable_from: str | None


@dataclass(frozen=True, kw_only=True)
class CellRow:
    """One cell of a study on one suite. axes: what it is."""

    axes: dict[str, str | float] = rest()
    suite: str
    successes: int | None
    n: int | None
    rate: float | None
    low: float | None
    high: float | None
    status: str
    error: str | None


@dataclass(frozen=True, kw_only=True)
class BenchmarkRecord:
    """What a benchmark writes as `record.json`."""

    benchmark: str
    command: str
    git_sha: str
    hardware: str
    date: str
    versions: dict[str, str]
    notes: dict[str, str]
    rows: list[Row]
    comparisons: list[Difference | Ratio]
    leaderboards: dict[str, list[Ranked]] | None = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkDataResult:
    rows: list[Row]
    comparisons: list[Ratio]


@dataclass(frozen=True, kw_only=True)
class BenchmarkGeneratorsResult:
    rows: list[Row]
    comparisons: list[Difference]
    validity_cards: dict[str, ValidityCard] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BenchmarkPoliciesResult:
    rows: list[Row]
    comparisons: list[Difference]
    leaderboards: dict[str, list[Ranked]]
    notes: dict[str, str]
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class AblateResult:
    rows: list[Row]
    comparisons: list[Difference]
    notes: dict[str, str]
    failed: list[str] = field(default_factory=list)
    cells: list[CellRow] = field(default_factory=list)


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
    "replay": ReplayResult,
    "pretrain": PretrainResult,
    "finetune": PretrainResult,
    "evaluate": RolloutResult | OpenLoopResult,
    "report": ReportResult,
    "benchmark data": BenchmarkDataResult,
    "benchmark generators": BenchmarkGeneratorsResult,
    "benchmark policies": BenchmarkPoliciesResult,
    "ablate": AblateResult,
    "demo": DemoResult,
}
