"""Typed configuration of every command: a wrong key or type fails before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from recipes.action_options import ABSOLUTE_DIMENSIONS, REPRESENTATION
from recipes.gpus import DryRunConfig
from recipes.parallel_options import ParallelConfig
from recipes.shard_options import EngineOptions, ShardConfig
from recipes.world_options import PICTURE_SIZE, POSITIONS, WorldConfig
from toolkit.base.options import option, part
from toolkit.training.config import MOST_BATCH, MOST_STEPS, OptimConfig, RuntimeConfig
from vag_core.config import MOST_PARAMETERS, REPRESENTATIONS, GeneratorConfig

MOST_SEED = 2**32 - 1
MOST_SCENE = 2**31  # and as many more may follow it
MOST_EPISODES = 1_000_000
MOST_LENGTH = 100_000  # steps or pictures of an episode
MOST_PIXELS = 2048
MOST_PROCESSES = 512

# Of modules that import torch or a simulator; a test compares them.
METHODS = ("euler", "heun", "adams_bashforth", "unipc")
ORDERS = ("synchronised", "video_first", "actions_once", "actions_first")
GIVEN = ("nothing", "video", "actions")
NORMALIZATIONS, COLOUR_ORDERS = ("shared", "per_source"), ("rgb", "bgr")
CODECS = ("h264", "hevc", "av1")
CUTS = ("jumps", "instructions")
ACTION_KINDS = ("absolute", "delta")
RESAMPLE = ": the rows nearest in time; absolute actions are picked, deltas added up, grippers held"
RESAMPLED_KIND = "of the actions that are resampled; null = taken as absolute, with a warning"
HELD = "dimensions that are held, by name or number; null = grippers by name"
LENGTHS = ("sampled", "window")
STORAGES = ("auto", "raw", "jpeg")


@dataclass
class CommonConfig:
    """What every command takes. Ranges keep out what cannot be, not what is large."""

    out: str | None = option(None, "directory that the run writes to; null = outputs/<command>/<time>")
    overwrite: bool = option(False, "replace a finished out")
    resume: bool = option(False, "go on with an unfinished out")
    strict: bool = option(
        False, "resume=true refuses another commit or other versions of packages, instead of saying so"
    )
    seed: int = option(0, "of all randomness that is not a scene; scenes have first_seed", least=0, most=MOST_SEED)


CAMERAS = "by their keys in the dataset; [] = those of the checkpoint, all of the data where there is none"
RENAME = "other names for cameras of the datasets, {their key: the key wanted}"
PICTURES = "height and width of each camera's picture, [h,w], or one number for both; null = those of the checkpoint"
FRAME_STORAGE = "of a clip file that is built: raw, jpeg, or auto = jpeg where raw frames are large and many"
NOTES = "run directories of replay and score, or datasets, that say more of these episodes; the last counts"


def text_encoder() -> Any:
    """The option that names the text encoder of a generator's checkpoint."""
    help = "directory of the text encoder that the generator was trained with; null = learned on bytes"
    return option(None, help)


def video_base() -> Any:
    """The option that says where the pretrained video model of a generator is."""
    help = "the pretrained video model that the generator was made on, if it is not where the checkpoint says"
    return option(None, help)


def max_parameters() -> Any:
    """The option that lifts the limit on the sizes of checkpoints."""
    return option(MOST_PARAMETERS, "numbers that a file of weights may hold", least=1, most=10**15)


@dataclass
class LoadingConfig:
    """What a policy checkpoint is trusted with, beyond what vag knows: see SECURITY.md."""

    allow: list[str] = option([], "policy types and processor steps of packages that you trust")
    allow_repo: list[str] = option([], "repositories and directories that a checkpoint may name")
    allow_remote_code: bool = option(
        False, "load types that run Python out of a repository (groot, pi0_fast, wall_x): you trust its author"
    )
    max_parameters: int = max_parameters()


@dataclass
class CollectConfig(CommonConfig, WorldConfig, EngineOptions):
    tasks: list[str] = option(MISSING, "names of the simulator's tasks, such as push")
    episodes_per_task: int = option(50, "successful episodes recorded of each task", least=1, most=MOST_EPISODES)
    num_steps: int = option(100, "steps of an episode", least=1, most=MOST_LENGTH)
    image_size: Any = option(64, PICTURE_SIZE, least=4, most=MOST_PIXELS, numbers=True, none=True)
    demonstrator: str = option("scripted", "who shows the tasks: scripted, or policy:DIR, a checkpoint's successes")
    noise_scale: float = option(0.1, "operator noise, deviation of the Ornstein-Uhlenbeck process", least=0, most=10)
    render_every: int = option(
        1,
        "steps from one picture to the next; those between repeat the last, as with a slow camera",
        least=1,
        most=MOST_LENGTH,
    )
    hide_robot: bool = option(False, "leave the robot out of the pictures")
    positions: str = option(
        "all", "scenes by their object's place, which the suite `position` is made of", choices=POSITIONS
    )
    first_seed: int = option(0, "initial scenes are first_seed, first_seed + 1, ...", least=0, most=MOST_SCENE)
    workers: int = option(2, "processes side by side", least=1, most=MOST_PROCESSES)


@dataclass
class ImportConfig(CommonConfig):
    source: str = option(MISSING, "HDF5 file, directory of them, LeRobotDataset directory or repo id on the hub")
    layout: str = option("auto", "robomimic, libero, isaaclab, aloha, droid, lerobot, hdf5 ...; auto = by structure")
    task: str | None = option(None, "instruction of episodes that carry none")
    task_key: str | None = option(
        None, "where the instructions are: an attribute, a dataset, a key of JSON; null = found"
    )
    episodes: str | None = option(None, "part of them: first:last as in Python, or a list [0,5,8:20]")
    filter_key: str | None = option(None, "robomimic's mask of the episodes to take, such as train")
    skip_bad: bool = option(False, "leave out episodes that are damaged or show nothing, with a list of them")
    split_at: list[str] = option([], "cut episodes where time stamps jump or the instruction changes", choices=CUTS)
    image_keys: dict[str, str] = option({}, "feature: camera in the source; {} = all of them")
    state_keys: list[str] = option([], "put side by side in this order; [] = known by the layout, or found by name")
    action_key: str | None = option(None, "where the actions are, several as a,b; null = known by the layout, or found")
    state_names: list[str] = option([], "names of the numbers of a state; [] = those of the source")
    action_names: list[str] = option([], "names of the numbers of an action; [] = those of the source")
    colour_order: str | None = option(
        None, "bgr where red and blue are swapped, as cv2 leaves them; null = rgb", choices=COLOUR_ORDERS
    )
    image_size: Any = option(
        None,
        "[h,w] that pictures are letterboxed into, or one number for both; null keeps them",
        least=4,
        most=MOST_PIXELS,
        numbers=True,
    )
    flip_vertical: bool = option(False, "for pictures stored upside down, as LIBERO's are")
    fps: int | None = option(None, "of a source that names none", least=1, most=10_000)
    resample_fps: int | None = option(None, f"lower rate to resample to{RESAMPLE}", least=1, most=10_000)
    action_kind: str | None = option(
        None, "of the actions that are resampled; null = as the layout has them", choices=ACTION_KINDS
    )
    absolute_dimensions: list[str] | None = option(None, "of deltas that are resampled, " + HELD)
    robot_type: str = option("unknown", "name of the robot")
    codec: str | None = option(
        None, "of the video; null = copied where nothing changes, else h264 without loss", choices=CODECS
    )
    crf: int | None = option(None, "quality of the video, less is better; null = lossless in h264", least=0, most=63)


@dataclass
class ExportConfig(CommonConfig):
    dataset: str = option(MISSING, "LeRobotDataset v3 directory")
    jpeg_quality: int | None = option(None, "null = raw frames", least=1, most=100)
    compress: bool = option(True, "lossless, inside the HDF5 file")


@dataclass
class InspectConfig(CommonConfig):
    dataset: str = option(MISSING, "LeRobotDataset v3 directory")
    fix: bool = option(False, "write a repaired copy to out/dataset; the original stays as it is")


@dataclass
class TokenizerTraining(OptimConfig):
    groups: int = option(3, "frame groups per clip in a batch", least=1, most=1000)


@dataclass
class TrainGeneratorConfig(CommonConfig, DryRunConfig, ParallelConfig):
    dataset: Any = option(MISSING, "LeRobotDataset v3 directory or clip file, or several: [a,b]", paths=True)
    synthetic: list[str] = option([], "episodes of an earlier generator beside them")
    notes: list[str] = option([], NOTES)
    select: list[str] = option([], "of these by score: replay_success==1, or score_flow_loss<=50%")
    dataset_shares: list[float] | None = option(
        None, "of the clips, for each of all these; null = by number of episodes", least=0, most=1_000_000_000
    )
    cameras: list[str] = option([], "by their keys in the dataset; [] = all of the data")
    rename: dict[str, str] = option({}, RENAME)
    frame_storage: str = option("auto", FRAME_STORAGE, choices=STORAGES)
    image_size: Any = option(
        None,
        "height and width of each camera's picture, [h,w], or one number for both; letterboxed, never stretched; "
        "null = as a pretrained model wants them, 432x768 for all cameras together",
        least=4,
        most=MOST_PIXELS,
        numbers=True,
    )
    resample_fps: float | None = option(None, f"lower rate that all are resampled to{RESAMPLE}", above=0, most=10_000)
    action_kind: str | None = option(None, RESAMPLED_KIND, choices=ACTION_KINDS)
    clip_seconds: float | None = option(
        None, "length of a window, in place of generator.num_frames; rounded to whole groups", above=0, most=10_000
    )
    frame_rate: float | None = option(
        None, "pictures a second in a window, in place of generator.frame_stride", above=0, most=10_000
    )
    random_start: bool | None = option(
        None, "windows from anywhere in the episode; null = where one covers less than the median episode"
    )
    name_views: bool = option(
        False, "say in each instruction which camera is seen where, for text encoders that know such words"
    )
    labelled_fraction: Any = option(
        1.0,
        "of the episodes of each instruction keep their actions, the rest is video alone; a number, or [a,b] for each "
        "of dataset=[...], synthetic=[...]",
        least=0,
        most=1,
        numbers=True,
    )
    held_out_fraction: float = option(
        0.1,
        "of the recorded episodes, whole ones, that training does not see: their loss is measured, and the best "
        "generator by it kept in best/; 0 = none",
        least=0,
        below=1,
    )
    held_out_every: int | None = option(
        None,
        "steps between measurements of it, with preview videos and a checkpoint; null = optim.checkpoint_every",
        least=1,
        most=MOST_STEPS,
    )
    action_representation: str = option("absolute", REPRESENTATION, choices=REPRESENTATIONS)
    absolute_dimensions: list[str] | None = option(None, ABSOLUTE_DIMENSIONS)
    generator: GeneratorConfig = part(
        lambda: GeneratorConfig(action=MISSING, video=MISSING, tokenizer=MISSING),
        "the network; see the groups `generator` and `generator/action`, `video`, `tokenizer`",
    )
    tokenizer_from: str | None = option(None, "generator directory whose tokenizer is taken as it is")
    video_from: str | None = option(None, "the same for the tokenizer and the whole video branch")
    instruction_encoder: str | None = option(None, "directory of a sentence-transformer or T5; null = learned on bytes")
    tokenizer_optim: TokenizerTraining = part(TokenizerTraining, "training of the video tokenizer")
    optim: OptimConfig = part(OptimConfig, "training")
    max_parameters: int = max_parameters()
    runtime: RuntimeConfig = part(RuntimeConfig, "where and how to compute")


@dataclass
class SamplerConfig:
    num_inference_steps: int = option(10, "steps of the solver", least=1, most=10_000)
    guidance_scale: float = option(1.0, "classifier-free guidance; 1 = none", least=0, most=100)
    method: str | None = option(
        None,
        "solver; null = euler, or the own one of a pretrained video model, which alone can have unipc",
        choices=METHODS,
    )
    order: str | None = option(None, "which stream is sampled first; null = what suits the generator", choices=ORDERS)
    negative_prompt: str | None = option(
        None, "what guidance leads away from, with a pretrained video model; null = its pipeline's own"
    )


@dataclass
class SvdConfig:
    """Stable Video Diffusion in the place of a generator's video."""

    path: str | None = option(
        None, "directory, name on the Hugging Face hub or tiny:svd, judged instead of the checkpoint; null = none"
    )
    image_size: Any = option(
        None,
        "height and width that it makes, multiples of 64, letterboxed; null = [576,1024], of tiny:svd [64,64]",
        least=2,
        most=MOST_PIXELS,
        numbers=True,
    )
    num_inference_steps: int = option(25, "steps of the solver", least=1, most=10_000)
    fps: int | None = option(
        None, "pictures a second that it is told; null = those that fill the window, 6 to 31", least=1, most=1000
    )
    motion_bucket_id: int = option(127, "how much it shall move; more is more", least=0, most=255)
    decode_chunk_size: int | None = option(
        None, "frames decoded at once, fewer take less memory; null = all", least=1, most=1000
    )


@dataclass
class SynthesizeConfig(CommonConfig, WorldConfig, ShardConfig):
    checkpoint: str = option(MISSING, "generator directory written by train-generator")
    base: str | None = video_base()
    tasks: list[str] = option(MISSING, "names of the simulator's tasks, such as push")
    episodes_per_task: int = option(50, "episodes made of each task", least=1, most=MOST_EPISODES)
    first_seed: int = option(100_000, "first scene; the others follow it", least=0, most=MOST_SCENE)
    allow_seen: bool = option(False, "generate from scenes that the generator was trained on")
    scenes_from: str | None = option(
        None,
        "take first pictures from this dataset, or from a folder of photographs with a table (scenes.csv or .jsonl)",
    )
    states_from: str | None = option(
        None, "dataset whose episode of the nearest first picture lends its first state to photographs without one"
    )
    instructions: list[str] = option([], "each scene with each of these in place of its own; [] = its own")
    samples_per_scene: int = option(
        1, "episodes of each scene and instruction; how much they differ is reported", least=1, most=10_000
    )
    clips: int = option(
        1,
        "windows of an episode, each going on from the last picture and state of the one before; the drift is reported",
        least=1,
        most=1000,
    )
    episode_lengths: str | None = option(
        None,
        "where episodes end: as long as a recorded one of the instruction, drawn for each, or with the window; null = "
        "sampled, if the checkpoint holds lengths and no draws are asked for",
        choices=LENGTHS,
    )
    notes: list[str] = option([], NOTES)
    cameras: list[str] = option([], CAMERAS)
    rename: dict[str, str] = option({}, RENAME)
    frame_storage: str = option("auto", FRAME_STORAGE, choices=STORAGES)
    instruction_encoder: str | None = text_encoder()
    codec: str | None = option(
        None, "of the videos; null = that of the data the generator learned from", choices=CODECS
    )
    crf: int | None = option(
        None,
        "quality of the videos, less is better; null = 2 in h264 (0 is lossless), LeRobot's in others",
        least=0,
        most=63,
    )
    draws: int = option(
        1,
        "plans of each scene, the first that solves it in the simulator is taken; 1 = it is not asked",
        least=1,
        most=10_000,
    )
    draw_shift: int = option(
        2,
        "pixels: each plan but the first is made for the picture moved by up to so many, at random",
        least=0,
        most=MOST_PIXELS,
    )
    workers: int = option(2, "processes that execute plans", least=1, most=MOST_PROCESSES)
    batch_size: int = option(20, "samples drawn at once", least=1, most=MOST_BATCH)
    score: bool | None = option(
        None,
        "note each pair's own loss, score_flow_loss, for five more evaluations; null = unless the video model is a "
        "pretrained one",
    )
    sampler: SamplerConfig = part(SamplerConfig, "how samples are drawn")
    max_parameters: int = max_parameters()
    runtime: RuntimeConfig = part(RuntimeConfig, "where and how to compute")


@dataclass
class EvaluateGeneratorConfig(CommonConfig, WorldConfig):
    checkpoint: str = option(MISSING, "generator directory written by train-generator")
    base: str | None = video_base()
    dataset: str = option(MISSING, "held-out episodes: LeRobotDataset v3 directory or clip file")
    notes: list[str] = option([], NOTES)
    given: str = option("nothing", "nothing, or video (inverse dynamics), or actions (forward dynamics)", choices=GIVEN)
    replay: bool = option(True, "execute the actions where the episodes name a scene of the simulator")
    keep_samples: bool = option(False, "write the pairs to samples.npz")
    allow_seen: bool = option(False, "evaluate on scenes that the generator was trained on")
    cameras: list[str] = option([], CAMERAS)
    rename: dict[str, str] = option({}, RENAME)
    frame_storage: str = option("auto", FRAME_STORAGE, choices=STORAGES)
    instruction_encoder: str | None = text_encoder()
    batch_size: int = option(20, "samples drawn at once", least=1, most=MOST_BATCH)
    workers: int = option(2, "processes side by side", least=1, most=MOST_PROCESSES)
    sampler: SamplerConfig = part(SamplerConfig, "how samples are drawn")
    svd: SvdConfig = part(SvdConfig, "another video model on the same scenes, sizes and windows")
    max_parameters: int = max_parameters()
    runtime: RuntimeConfig = part(RuntimeConfig, "where and how to compute")


@dataclass
class ScoreConfig(CommonConfig, ShardConfig):
    dataset: str = option(MISSING, "episodes written by synthesize: LeRobotDataset v3 directory or clip file")
    checkpoint: str | None = option(None, "generator, for score_cycle_error")
    base: str | None = video_base()
    real: list[str] = option([], "what the generator learned from, for limits and copies")
    held_out: list[str] = option([], "recorded episodes that it has not seen, as a baseline; [] = those of real")
    cameras: list[str] = option([], CAMERAS)
    rename: dict[str, str] = option({}, RENAME)
    frame_storage: str = option("auto", FRAME_STORAGE, choices=STORAGES)
    image_size: Any = option(None, PICTURES, least=4, most=MOST_PIXELS, numbers=True)
    instruction_encoder: str | None = text_encoder()
    batch_size: int = option(20, "samples drawn at once", least=1, most=MOST_BATCH)
    max_parameters: int = max_parameters()
    runtime: RuntimeConfig = part(RuntimeConfig, "where and how to compute")


@dataclass
class ReplayConfig(CommonConfig, WorldConfig, EngineOptions):
    dataset: str = option(MISSING, "LeRobotDataset directory")
    notes: list[str] = option([], NOTES)
    system: str = option("vag", "the name in tables")
    max_steps: int | None = option(None, "actions executed of each episode; null = all", least=1, most=MOST_LENGTH)
    workers: int = option(2, "processes side by side", least=1, most=MOST_PROCESSES)


@dataclass
class ReportConfig(CommonConfig):
    runs: list[str] = option(MISSING, "directories of runs")
