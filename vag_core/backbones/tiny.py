"""Random models of the real classes, under 1 MB each: for tests, documents and a first try."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from vag_core.backbones.published import SCHEDULERS, TEXT_PARTS, TRANSFORMERS
from vag_core.backbones.tiny_text import tiny_text_encoder, tiny_tokenizer

INDEX = "model_index.json"  # a directory that has one is complete
CHANNELS = {"cosmos": 4, "cosmos25": 4, "wan": 8}
NAMES = {"cosmos": "Cosmos2VideoToWorldPipeline", "cosmos25": "Cosmos2_5_PredictBasePipeline", "wan": "WanPipeline"}
_SMALL: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3}
_COSMOS: dict[str, Any] = {**_SMALL, "in_channels": 5, "out_channels": 4, "text_embed_dim": 16, "adaln_lora_dim": 8}
TINY: dict[str, dict[str, Any]] = {
    "cosmos": {**TRANSFORMERS["cosmos"], **_COSMOS, "mlp_ratio": 2.0},
    "cosmos25": {
        **TRANSFORMERS["cosmos25"],
        **_COSMOS,
        "mlp_ratio": 2.0,
        "crossattn_proj_in_channels": 32,
        "encoder_hidden_states_channels": 16,
    },
    "wan": {
        **TRANSFORMERS["wan"],
        **_SMALL,
        "in_channels": 8,
        "out_channels": 8,
        "ffn_dim": 64,
        "freq_dim": 32,
        "text_dim": 16,
    },
}


def tiny_directory(kind: str, cache: Path) -> Path:
    """The directory of a tiny model in `cache`, written if it is not there: cosmos, cosmos25 or wan.

    Raises ValueError for another kind.
    """
    if kind not in TINY:
        raise ValueError(f"tiny:{kind}: expected one of {', '.join('tiny:' + name for name in TINY)}")
    path = cache / "tiny-models" / f"{kind}-2"
    if not (path / INDEX).is_file():
        write_tiny(kind, path)
    return path


def tiny_vae(kind: str) -> dict[str, Any]:
    """The sizes of a kind's tokenizer."""
    channels = CHANNELS[kind]
    vae: dict[str, Any] = {
        "base_dim": 4,
        "z_dim": channels,
        "dim_mult": [1, 1, 2, 2],
        "num_res_blocks": 1,
        "latents_mean": torch.linspace(-0.5, 0.5, channels).tolist(),
        "latents_std": torch.linspace(0.5, 1.5, channels).tolist(),
    }
    if kind == "wan":  # the second tokenizer: patches of 2 pixels, 16 pixels a latent cell
        vae |= {"is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
    return vae


def write_tiny(kind: str, path: Path) -> None:
    """Write a random model of the real classes, `INDEX` last; the same weights each time."""
    from vag_core.backbones.models import import_diffusers

    diffusers = import_diffusers()
    network = "WanTransformer3DModel" if kind == "wan" else "CosmosTransformer3DModel"
    scheduler, options = SCHEDULERS[kind]
    with torch.random.fork_rng(devices=[]):
        parts = {"transformer": getattr(diffusers, network)(**TINY[kind])}
        parts["vae"] = diffusers.AutoencoderKLWan(**tiny_vae(kind))
        parts["text_encoder"] = tiny_text_encoder(kind)
    rng = torch.Generator().manual_seed(0)
    for name, part in parts.items():
        fill(part, rng)
        part.save_pretrained(path / name)
    tiny_tokenizer(kind).save_pretrained(path / "tokenizer")
    getattr(diffusers, scheduler)(**options).save_pretrained(path / "scheduler")
    index = {
        "_class_name": NAMES[kind],
        "_diffusers_version": diffusers.__version__,
        "transformer": ["diffusers", network],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "scheduler": ["diffusers", scheduler],
        **{part: ["transformers", names[0]] for part, names in TEXT_PARTS[kind].items()},
        **({"expand_timesteps": True} if kind == "wan" else {}),
    }
    (path / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def fill(part: torch.nn.Module, rng: torch.Generator) -> None:
    """Random weights of a size that keeps that of what goes through, and no biases."""
    for key, values in part.named_parameters():
        if values.ndim > 1:
            values.data = torch.randn(values.shape, generator=rng) * values[0].numel() ** -0.5
        elif key.endswith("bias"):
            values.data.zero_()
