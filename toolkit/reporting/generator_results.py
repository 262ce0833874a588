"""What the commands of a generator found: its training, its samples, their scores. See `results`."""

from __future__ import annotations

from dataclasses import dataclass, field

from toolkit.base.typed_json import check_lengths, rest
from toolkit.evaluation.rates import Rate, TaskRates


@dataclass(frozen=True, kw_only=True)
class Media:
    """A video or picture of a run."""

    path: str
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class TokenizerTraining:
    steps: int
    training_psnr: float | None  # [dB] of clips that it was trained on; None for a reconstruction without any error
    still_psnr: float | None = None  # the same of their first frame, repeated


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
class HeldOutLoss:
    """Loss of the averaged weights on whole recorded episodes that training has not seen, at some of its steps.

    episodes: how many of each dataset; checkpoint: the generator of the best step, a directory of the run.
    """

    episodes: list[int]
    steps: list[int]
    losses: list[float]
    last_loss: float
    best_loss: float
    best_step: int
    checkpoint: str

    def __post_init__(self) -> None:
        check_lengths(self.steps, self.losses)


@dataclass(frozen=True, kw_only=True)
class SamplingCost:
    """Of one pair. evaluations: of the network, twice as many where it is guided; seconds: with its decoding."""

    steps: int
    guided: bool
    evaluations: int
    flop: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What the training of a generator would take: computed without a weight, see `vag_core.estimate`.

    published: sizes of the video model are the published ones, since it is not here; peak_share: of the GPU's peak,
    assumed; clips, joint_clips: of one pass on one GPU; clips_of_step: of all passes; memory: bytes by part;
    bytes_per_joint_clip: what one more in a pass takes; largest_batch_size: that fits, 0 for none, with the
    accumulation that keeps the clips of a step; sharded_bytes: of each of eight GPUs if all that is trained were
    divided among them (FSDP), which no command does.
    """

    model: str | None
    published: bool
    gpu: str
    gpu_bytes: float
    peak_share: float
    bf16: bool
    trained_parameters: int
    frozen_parameters: int
    tokenizer_parameters: int
    image_size: list[int]
    num_frames: int
    tokens_per_clip: int
    clips: int
    joint_clips: int
    clips_of_step: int
    flop_per_sample: float
    flop_per_step: float
    seconds_per_step: float
    memory: dict[str, int]
    total_bytes: int
    bytes_per_joint_clip: int
    largest_batch_size: int
    gradient_accumulation: int
    sharded_bytes: int
    decoding_flop: int
    sampling: list[SamplingCost]


@dataclass(frozen=True, kw_only=True)
class TrainGeneratorResult:
    """With `dry_run` nothing was trained, and there is no checkpoint."""

    tokenizer: TokenizerTraining | None = None
    generator: StreamsTraining
    throughput: Throughput
    episodes: list[int]  # of each dataset, that were trained on
    checkpoint: str
    covered: float | None = None  # share of an episode that the window covers, on average
    padded: float | None = None  # share of the window past the end of episodes
    held_out: HeldOutLoss | None = None  # None where none was held out
    dry_run: DryRun | None = None


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
    still: dict[str, float] | None = None  # of first pictures that stay, under the recordings' mean action
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
    still: dict[str, float] = field(default_factory=dict)  # of first pictures that stay, under the mean action
    samples: str | None = None


@dataclass(frozen=True, kw_only=True)
class Spread:
    least: float
    median: float
    most: float


@dataclass(frozen=True, kw_only=True)
class ScoreSpread(Spread):
    """And the median that each baseline gets: see `Trust`."""

    recorded: float | None = None
    still: float | None = None
    other: float | None = None


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How many have no score worse than those of recorded episodes: see `episode_scores.trusted`.

    recorded: of those themselves; still: of first pictures and states that stay, under the mean action; other: of the
    episodes with the actions and states of another one, None where there is one alone. Intervals are over episodes.
    """

    episodes: Rate
    recorded: Rate
    still: Rate
    other: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreResult:
    checkpoint_id: str | None = None
    scores: dict[str, ScoreSpread]
    trust: Trust | None = None  # None without recorded episodes
