"""A dry run on the terminal."""

from __future__ import annotations

from recipes.gpus import Gpu
from toolkit.reporting.generator_results import DryRun

PARTS = {
    "frozen_weights": "frozen weights",
    "trained_weights": "trained weights",
    "gradients": "gradients",
    "optimizer_moments": "moments of AdamW",
    "average": "average of the weights",
    "tokenizer": "tokenizer",
    "batch": "batch",
    "kept_activations": "activations that are kept",
    "working": "backward pass beside them, with the largest block that is computed again",
}


def gigabytes(number: float) -> str:
    """10^9 bytes, with as many decimals as tell something."""
    return f"{number / 1e9:.3g} GB" if number < 99.5e9 else f"{number / 1e9:.0f} GB"


def block(found: DryRun, gpu: Gpu) -> list[str]:
    """The lines that a dry run prints."""
    height, width = found.image_size
    whose = "" if found.model is None else f" on {found.model}"
    lines = [f"dry run: a generator{whose}, {found.num_frames} pictures of {height}x{width}, nothing is trained"]
    if found.published:
        lines.append("  the model is not on this disk: its sizes are the published ones")
    tokens = f", {found.tokens_per_clip:,} tokens of video a clip" if found.tokens_per_clip else ""
    lines += [
        f"  parameters: {found.trained_parameters:,} trained, {found.frozen_parameters:,} frozen, "
        f"{found.tokenizer_parameters:,} of the tokenizer{tokens}",
        f"  a pass of {found.clips} clips, {found.joint_clips} of them with video, takes:",
        *(f"    {gigabytes(found.memory[name]):>9}  {text}" for name, text in PARTS.items() if found.memory[name]),
        f"    {gigabytes(found.total_bytes):>9}  in all, of the {gigabytes(found.gpu_bytes)} of {found.gpu}; "
        f"{gigabytes(found.bytes_per_joint_clip)} for each further clip with video",
        f"  {advice(found)}",
        f"  a step of {found.clips_of_step} clips: {found.flop_per_step / 1e12:,.3g} TFLOP, "
        f"{seconds(found.seconds_per_step)} at {found.peak_share:.0%} of the {peak(found, gpu)}, which is assumed",
    ]
    for cost in found.sampling:
        guided = "with guidance" if cost.guided else "without"
        lines.append(
            f"  a pair in {cost.steps} steps, {guided}: {cost.evaluations} evaluations, {cost.flop / 1e12:,.3g} TFLOP, "
            f"{seconds(cost.seconds)}"
        )
    return lines


def advice(found: DryRun) -> str:
    """What fits, in one sentence."""
    if found.largest_batch_size >= found.clips:
        return f"it fits; the largest optim.batch_size that does is {found.largest_batch_size}"
    if found.largest_batch_size:
        return (
            f"it does not fit; optim.batch_size={found.largest_batch_size} does, and for the same step "
            f"optim.gradient_accumulation={found.gradient_accumulation} with the batch size that divides it"
        )
    return (
        "not even one clip fits: take generator.video.train=lora, gradient_checkpointing, fewer generator.num_frames "
        "or a smaller image_size; divided among 8 GPUs (FSDP, which no command does) each would need "
        f"{gigabytes(found.sharded_bytes)}"
    )


def peak(found: DryRun, gpu: Gpu) -> str:
    """The rate that is taken a share of."""
    return f"{gpu.bf16:g} TFLOP/s in bfloat16" if found.bf16 else f"{gpu.float32:g} TFLOP/s in float32"


def seconds(number: float) -> str:
    """With three digits."""
    return f"{number:.3g} s"


def dry_summary(found: DryRun) -> str:
    """The line that ends the command."""
    fits = "fits" if found.largest_batch_size >= found.clips else "does not fit"
    return (
        f"dry run, {found.trained_parameters:,} of {found.trained_parameters + found.frozen_parameters:,} parameters "
        f"trained, {gigabytes(found.total_bytes)} {fits} {found.gpu}, {seconds(found.seconds_per_step)} a step"
    )
