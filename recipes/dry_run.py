"""`vag train-generator dry_run=true`: what the training of a generator takes, before anything is decoded or downloaded.

Only `meta/` of the first dataset is read, or the head of a clip file; without a dataset widths are those of
`generator.state_dim` and `generator.action_dim`, and there is one camera unless `cameras` names more.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.common import user_errors
from recipes.dry_run_text import block
from recipes.fit_to_data import fit_pictures, fit_window
from recipes.generator_batches import reads_latents
from recipes.gpus import GPUS, Gpu
from recipes.parallel_options import warn_of_dry_run
from recipes.schema import TrainGeneratorConfig
from recipes.video_model import cell_size, check_reader, fit_rate, is_pretrained
from toolkit.base.errors import UserError
from toolkit.base.processes import processes
from toolkit.data.canvas import Canvas
from toolkit.data.clips import ClipStore
from toolkit.data.episode import ACTION, IMAGE, STATE
from toolkit.data.formats.lerobot_layout import camera_keys, check_features, read_info
from toolkit.data.images import as_size
from toolkit.reporting.generator_results import (
    DryRun,
    SamplingCost,
    StreamsTraining,
    Throughput,
    TrainGeneratorResult,
)
from toolkit.training.loop import count_flop
from toolkit.training.out_of_memory import divided
from vag_core import Generator, estimate
from vag_core.config import FramewiseConfig, PretrainedConfig

STEPS = (10, 35)  # of a sample
SHARDS = 8
TRAINED_COPIES = 5  # of what is trained: itself, its gradient, two moments of AdamW, the average
MOST = 1 << 16  # clips of a pass that are tried


@dataclass
class Facts:
    """Of the data: what `fit_window` and `fit_rate` ask of a `ClipStore`."""

    fps: float
    episode_lengths: np.ndarray
    canvas: Canvas
    tasks: int = 1


def dry_run(config: TrainGeneratorConfig) -> TrainGeneratorResult:
    """Say what a step takes; nothing is trained or written. Raises UserError as the training itself would."""
    warn_of_dry_run(config.parallelism)
    sizes = fit_model(config)
    facts = read_facts(config)
    with user_errors():
        fit_pictures(config.generator, facts.canvas)
        fit_window(config, facts)
        fit_rate(config, facts)
        with warnings.catch_warnings(action="ignore"):  # of libraries, on a device that they do not know
            found = estimated(config, sizes, facts.tasks)
    if processes().is_main:
        print("\n".join(block(found, GPUS[config.gpu])), flush=True)
    parameters = found.trained_parameters + found.frozen_parameters + found.tokenizer_parameters
    return TrainGeneratorResult(
        generator=StreamsTraining(steps=0, parameters=parameters),
        throughput=Throughput(),
        episodes=[],
        checkpoint="",
        dry_run=found,
    )


# --- what the config leaves open ---


def fit_model(config: TrainGeneratorConfig) -> Any:
    """Give the generator the sizes of its video model, which are returned; None where there is no model."""
    if not is_pretrained(config.generator):
        config.image_size = 64 if config.image_size is None else config.image_size
        fit_text(config)
        return None
    check_reader(config)
    from vag_core.backbones.planned import ModelSizes

    video = config.generator.video
    assert isinstance(video, PretrainedConfig)
    with user_errors():
        sizes = ModelSizes.of(video)
        sizes.fit(config.generator)
    return sizes


def fit_text(config: TrainGeneratorConfig) -> None:
    """The width of the vectors of `instruction_encoder`, by its config.json."""
    if config.instruction_encoder is None:
        return
    file = Path(config.instruction_encoder) / "config.json"
    try:
        said = json.loads(file.read_text())
        width = next(said[key] for key in ("hidden_size", "d_model", "dim") if key in said)
        config.generator.instruction.kind, config.generator.instruction.embedding_width = "embedding", int(width)
    except (OSError, ValueError, StopIteration, TypeError) as error:
        raise UserError(f"{file}: says no hidden_size or d_model; expected the config of a text encoder") from error


def read_facts(config: TrainGeneratorConfig) -> Any:
    """Of the first dataset; sets the widths of states and actions, and the size of pictures where it is open."""
    shape, sources = config.generator, config.dataset
    first = sources if isinstance(sources, str) else next(iter(sources), None)
    if first is not None and Path(first).is_file():
        store = ClipStore.open(first)
        shape.state_dim, shape.action_dim = store.states.shape[1], store.actions.shape[1]
        if config.image_size is None:
            config.image_size = list(store.canvas.cell)
        return Facts(store.fps, store.episode_lengths, store.canvas, len(store.tasks))
    cameras, fps, length, tasks = list(config.cameras) or [IMAGE], 10.0, math.inf, 1
    if first is not None:
        info = read_info(Path(first))
        check_features(Path(first), info, None)
        shape.state_dim, shape.action_dim = (math.prod(info["features"][key]["shape"]) for key in (STATE, ACTION))
        cameras = list(config.cameras) or camera_keys(info)
        fps, length = float(info["fps"]), info["total_frames"] / max(1, info["total_episodes"])
        tasks = max(1, int(info.get("total_tasks", 1)))
    if config.resample_fps is not None and config.resample_fps < fps:
        fps, length = config.resample_fps, length * config.resample_fps / fps
    if config.image_size is None:
        config.image_size = cell_size(config, len(cameras))
    cell = as_size(config.image_size, "image_size")
    return Facts(fps, np.array([min(length, 1e9)]), Canvas(dict.fromkeys(cameras, cell), cell), tasks)


# --- the estimate ---


def estimated(config: TrainGeneratorConfig, sizes: Any, tasks: int = 1) -> DryRun:
    """Build the generator without weights and measure its passes."""
    shape, optim, gpu = config.generator, config.optim, GPUS[config.gpu]
    half = config.runtime.mixed_precision != "no"  # auto: the GPU has bfloat16
    generator, formulas, batch_of = planned(config, sizes), count_flop().flop_registry, batches(config, tasks)
    parts = optim.gradient_accumulation * processes().size
    size = optim.batch_size * parts
    one = estimate.measure_pass(generator, batch_of(size, parts), half, formulas)
    larger = size if parts > 1 else 2 * size
    whole = estimate.measure_pass(generator, batch_of(larger, 1), half, formulas)
    joint = generator.clocks.num_joint_clips
    own = joint_of_part(joint, optim.batch_size, parts)
    per_clip = max(1, one.further(whole) // max(1, joint(larger) - own))
    memory = memory_parts(generator, batch_of(size, parts), one)
    room = gpu.bytes - sum(memory.values())
    largest = largest_batch(lambda batch: per_clip * (joint_of_part(joint, batch, parts) - own) <= room)
    accumulation = divided(size // processes().size, largest)[1] if largest else parts
    flop, rate = whole.flop * size / larger, speed_of(gpu, half) * config.peak_share
    trained, frozen, tokenizer = parameters(generator)
    decoding, sampling = sampling_costs(generator, config, gpu, half, formulas)
    return DryRun(
        model=None if sizes is None else sizes.name,
        published=sizes is not None and sizes.is_published,
        gpu=config.gpu,
        gpu_bytes=gpu.bytes,
        peak_share=config.peak_share,
        bf16=half,
        trained_parameters=trained,
        frozen_parameters=frozen,
        tokenizer_parameters=tokenizer,
        image_size=list(shape.image_size),
        num_frames=shape.num_frames,
        tokens_per_clip=math.prod([shape.latent_shape[1], *shape.patches]) if generator.video is not None else 0,
        clips=optim.batch_size,
        joint_clips=own,
        clips_of_step=size,
        flop_per_sample=one.flop / optim.batch_size,
        flop_per_step=flop,
        seconds_per_step=flop / processes().size / rate,
        memory=memory,
        total_bytes=sum(memory.values()),
        bytes_per_joint_clip=per_clip,
        largest_batch_size=largest,
        gradient_accumulation=accumulation,
        sharded_bytes=sharded(generator, memory),
        decoding_flop=decoding,
        sampling=sampling,
    )


def planned(config: TrainGeneratorConfig, sizes: Any) -> Generator:
    """The generator on the `meta` device, with what is trained of it."""
    model, video = None, config.generator.video
    if sizes is not None:
        from vag_core.backbones.planned import planned_model

        assert isinstance(video, PretrainedConfig)
        whole = video.dtype == "float32" or (video.dtype == "auto" and video.train == "full")
        model = planned_model(sizes, torch.float32 if whole else torch.bfloat16)
    generator = estimate.planned_generator(config.generator, model)
    if config.video_from is not None and generator.video is not None:
        generator.video.requires_grad_(False)
        generator.video_is_taken = True
    return generator


def batches(config: TrainGeneratorConfig, tasks: int = 1) -> Callable[[int, int], dict[str, Any]]:
    """(clips of a step, parts) -> the first part, as this training would read it."""
    text = 0
    if is_pretrained(config.generator):
        from vag_core.backbones.text import MAX_LENGTH

        text = MAX_LENGTH
    latents, frames = reads_latents(config), isinstance(config.generator.action, FramewiseConfig)
    return lambda size, parts: estimate.planned_batch(config.generator, size, parts, latents, frames, text, tasks)


def joint_of_part(joint: Callable[[int], int], batch: int, parts: int) -> int:
    """Joint clips in the first part of a step's batch."""
    return -(-joint(batch * parts) // parts)


def parameters(generator: Generator) -> tuple[int, int, int]:
    """Trained, frozen beside the tokenizer, of the tokenizer."""
    tokenizer = [] if generator.tokenizer is None else list(generator.tokenizer.parameters())
    trained = sum(weight.numel() for weight in generator.parameters() if weight.requires_grad)
    own = sum(weight.numel() for weight in tokenizer)
    return trained, sum(weight.numel() for weight in generator.parameters()) - trained - own, own


def memory_parts(generator: Generator, batch: dict[str, Any], one: estimate.PassCost) -> dict[str, int]:
    """Bytes by part, at the largest moment of a step."""
    weights = estimate.weight_bytes(generator)
    return {
        "frozen_weights": weights.frozen,
        "trained_weights": weights.trained,
        "gradients": weights.trained,
        "optimizer_moments": 2 * weights.trained,
        "average": weights.average,
        "tokenizer": weights.tokenizer,
        "batch": estimate.batch_bytes(batch),
        "kept_activations": one.kept,
        "working": one.working,
    }


def largest_batch(fits: Callable[[int], bool]) -> int:
    """The largest number of clips of a pass that fits, 0 for none; what fits for one fits for fewer."""
    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def speed_of(gpu: Gpu, half: bool) -> float:
    """FLOP/s at the peak."""
    return 1e12 * (gpu.bf16 if half else gpu.float32)


def sharded(generator: Generator, memory: dict[str, int]) -> int:
    """Bytes on each of `SHARDS` GPUs if weights, gradients, moments and average were divided among them, with the
    weights of the largest block gathered."""
    divided_ones = ("frozen_weights", "trained_weights", "gradients", "optimizer_moments", "average")
    rest = sum(size for name, size in memory.items() if name not in divided_ones)
    blocks = [generator] if not is_pretrained(generator.config) else list(generator.video.network.blocks)
    gathered = max(sum(weight.numel() * weight.element_size() for weight in block.parameters()) for block in blocks)
    return sum(memory[name] for name in divided_ones) // SHARDS + gathered + rest


def sampling_costs(
    generator: Generator, config: TrainGeneratorConfig, gpu: Gpu, half: bool, formulas: Any
) -> tuple[int, list[SamplingCost]]:
    """FLOP of decoding, and what a pair takes at several numbers of steps, with and without guidance.

    Pictures are decoded in float32, whose convolutions run as TF32 at half the bf16 rate.
    """
    costs = list[SamplingCost]()
    text = batches(config)(2, 1)["instruction"]
    length = text.shape[1] if isinstance(text, torch.Tensor) and text.ndim == 3 else 0
    decoding, rate = estimate.decoding_flop(generator, formulas), speed_of(gpu, half) * config.peak_share
    once, before = estimate.sampling_flop(generator, length, formulas)
    for steps in STEPS:
        evaluations = estimate.evaluations(generator, steps)
        for guided in (False, True):
            number = evaluations * (1 + guided)
            flop = before + number * once
            seconds = flop / rate + decoding / (0.5 * gpu.bf16 * 1e12 * config.peak_share)
            costs.append(
                SamplingCost(
                    steps=steps, guided=guided, evaluations=number, flop=flop + decoding, seconds=round(seconds, 6)
                )
            )
    return decoding, costs
