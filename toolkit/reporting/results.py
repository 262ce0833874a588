"""What each command found: one dataclass per command, as `run.json` holds it under `result`.

`toolkit.base.typed_json` writes and reads them. Rates run from 0 to 1, times are in seconds, paths lie in the run's
directory. A field that is None by default is there only where the command measured it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolkit.base.typed_json import check_lengths, rest
from toolkit.evaluation.rates import Rate, RolloutRates, TaskRates
from toolkit.reporting.benchmark_results import (
    AblateResult,
    BenchmarkDataResult,
    BenchmarkGeneratorsResult,
    BenchmarkPoliciesResult,
)


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


# ------------------------------------------------------------------------------------------------------- generator


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    steps: int
    training_psnr: float | None  # [dB] of clips that it was trained on; None for a reconstruction without any error


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
    covered: float | None = None  # share of an episode that the window covers, on average
    padded: float | None = None  # share of the window past the end of episodes


@dataclass(frozen=True, kw_only=True)
class SamplesDiffer:
    """Mean distance between neighbouring samples of one scene, and beside it between those of neighbouring scenes.

    actions: Euclidean, in raw units, a step; pictures: absolute difference of a colour, of 255.
    """

    actions: float
    pictures: float
    actions_of_scenes: float | None = None  # of one scene, none
    pictures_of_scenes: float | None = None


@dataclass(frozen=True, kw_only=True)
class EpisodeEnds:
    """How long the episodes are [steps]. rule: window, or sampled, of so many recorded lengths, which cut so many.

    off: mean distance to the recorded length of the same scene, where there is one; off_of_window: that of whole
    windows.
    """

    rule: str
    shortest: int
    longest: int
    cut: int | None = None
    recorded_lengths: int | None = None
    off: float | None = None
    off_of_window: float | None = None


@dataclass(frozen=True, kw_only=True)
class DriftOfClip:
    """Means over the `episodes` that reach a clip, the first of which is what the others are held against.

    at_limits: share of the numbers of states that are held at the least or largest value of the data; sharpness: mean
    difference of neighbouring pixels, and colour_shift: that of the mean colour from the first picture's, of 255. The
    others are of the `compared` episodes whose recording is long enough, each beside what the mean action of the data
    or the first picture repeated would have.
    """

    clip: int
    episodes: int
    at_limits: float
    sharpness: float
    sharpness_of_first_picture: float
    colour_shift: float
    compared: int | None = None
    action_distance: float | None = None
    action_distance_of_mean: float | None = None
    psnr: float | None = None
    psnr_of_first_picture: float | None = None


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
    samples_differ: SamplesDiffer | None = None
    ends: EpisodeEnds | None = None
    drift: list[DriftOfClip] | None = None  # of episodes of several clips


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
