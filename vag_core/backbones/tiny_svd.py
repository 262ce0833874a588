"""A random Stable Video Diffusion of the real classes, under 1 MB: for tests, documents and a first try.

Its UNet has 32 channels, the least that its normalisation in 32 groups allows. With one channel a group that takes the
clock, the rate and the amount of motion out again, so its frames do not depend on them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from vag_core.backbones.models import import_diffusers, import_library
from vag_core.backbones.svd import PARTS, PIPELINE, TEXT_WEIGHTS
from vag_core.backbones.tiny import INDEX, fill

UNET: dict[str, Any] = {  # cross-attention in the middle alone
    "block_out_channels": (32,),
    "down_block_types": ("DownBlockSpatioTemporal",),
    "up_block_types": ("UpBlockSpatioTemporal",),
    "layers_per_block": 0,  # one on the way up, whatever is said
    "cross_attention_dim": 8,
    "num_attention_heads": 2,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
    "num_frames": 5,
}
VAE: dict[str, Any] = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "layers_per_block": 1,
}
ENCODER: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "projection_dim": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 224,  # the pipeline gives it no other
    "patch_size": 28,
}
SCHEDULER: dict[str, Any] = {  # as published
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "steps_offset": 1,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "use_karras_sigmas": True,
}


def tiny_svd_directory(kind: str, cache: Path) -> Path:
    """The directory of the tiny model in `cache`, written if it is not there. Raises ValueError for another kind."""
    if kind != "svd":
        raise ValueError(f"tiny:{kind}: expected tiny:svd")
    path = cache / "tiny-models" / "svd-1"
    if not (path / INDEX).is_file():
        write_tiny_svd(path)
    return path


def write_tiny_svd(path: Path) -> None:
    """Write a random model of the real classes in float16, `INDEX` last; the same weights each time."""
    diffusers, transformers = import_diffusers(), import_library("transformers")
    with torch.random.fork_rng(devices=[]):
        unet = diffusers.UNetSpatioTemporalConditionModel(**UNET)
        vae = diffusers.AutoencoderKLTemporalDecoder(**VAE)
        encoder = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**ENCODER))
    rng = torch.Generator().manual_seed(0)
    summary = encoder.vision_model.embeddings.class_embedding  # the one vector that is drawn
    summary.data = torch.randn(summary.shape, generator=rng)
    for part in (unet, vae, encoder):
        fill(part, rng)
        for values in part.parameters():
            values.data = values.data.half()
    unet.save_pretrained(path / "unet")
    vae.save_pretrained(path / "vae")
    encoder.config.save_pretrained(path / "image_encoder")
    save_file(encoder.state_dict(), path / "image_encoder" / TEXT_WEIGHTS, {"format": "pt"})
    diffusers.EulerDiscreteScheduler(**SCHEDULER).save_pretrained(path / "scheduler")
    transformers.CLIPImageProcessor().save_pretrained(path / "feature_extractor")
    index = {"_class_name": PIPELINE, "_diffusers_version": diffusers.__version__}
    (path / INDEX).write_text(json.dumps({**index, **{part: list(kind) for part, kind in PARTS.items()}}, indent=2))
