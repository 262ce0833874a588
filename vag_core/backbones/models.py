"""Loading a pretrained video model: its tokenizer and its network."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from vag_core.backbones.directory import ModelDirectory, locate
from vag_core.backbones.networks import NETWORKS
from vag_core.backbones.wan_tokenizer import WanTokenizer
from vag_core.checkpoint import first_line


@dataclass
class VideoModel:
    """directory: where it is from. tokenizer, network: frozen, in evaluation mode."""

    directory: ModelDirectory
    tokenizer: WanTokenizer
    network: Any  # of `networks.NETWORKS`

    def check_size(self, height: int, width: int, num_frames: int) -> None:
        """Raise ValueError for pictures [pixels] and a number of frames that the model cannot make."""
        patch, spatial = self.network.transformer.config.patch_size, self.tokenizer.spatial_stride
        rows, columns, stride = spatial * patch[1], spatial * patch[2], self.tokenizer.temporal_stride
        if height < rows or width < columns or height % rows or width % columns:
            raise ValueError(
                f"{self.directory.path}: image_size = [{height}, {width}]: expected multiples of {rows} and {columns}"
            )
        if num_frames < 1 + stride or (num_frames - 1) % stride:
            raise ValueError(f"{self.directory.path}: num_frames = {num_frames}: expected 1 + a multiple of {stride}")
        config = self.network.transformer.config
        most = config.max_size[0] if "max_size" in config else config.rope_max_seq_len
        if (latents := 1 + (num_frames - 1) // stride) > most:
            raise ValueError(
                f"{self.directory.path}: num_frames = {num_frames} are {latents} latents; the model knows {most}"
            )


def import_diffusers() -> Any:
    """The library. Raises ValueError that says how to install it."""
    return import_library("diffusers")


def import_library(name: str) -> Any:
    """A library of the extra `video`. Raises ValueError that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"a pretrained video model needs {name}; run: pip install 'lerobot_policy_vag[video]'"
        ) from error


def load_model(path: str | Path, dtype: torch.dtype = torch.float32, cache: Path | None = None) -> VideoModel:
    """The model at a path of `directory.locate`, on the CPU.

    dtype: of the network; the tokenizer is float32. Raises ValueError for a directory that is no such model, a weight
    that is missing or of another shape, and if diffusers is not installed.
    """
    diffusers = import_diffusers()
    directory = locate(path, cache)
    try:
        scheduler = getattr(diffusers, directory.scheduler).from_pretrained(
            directory.path, subfolder="scheduler", local_files_only=True
        )
    except Exception as error:
        raise ValueError(f"{directory.path / 'scheduler'}: cannot be loaded ({first_line(error)})") from error
    kind = "CosmosTransformer3DModel" if directory.kind.startswith("cosmos") else "WanTransformer3DModel"
    transformer = load_part(getattr(diffusers, kind), directory.path, "transformer", dtype)
    vae = load_part(diffusers.AutoencoderKLWan, directory.path, "vae", torch.float32)
    network = NETWORKS[directory.kind](transformer, scheduler).eval().requires_grad_(False)
    return VideoModel(directory, WanTokenizer(vae), network)


def load_part(kind: Any, path: Path, name: str, dtype: torch.dtype) -> Any:
    """A part of a checked directory, of a class of diffusers. Raises ValueError for weights that do not fit it."""
    try:
        part, report = kind.from_pretrained(
            path,
            subfolder=name,
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers has requirements of its own for every model
        raise ValueError(f"{path / name}: cannot be loaded ({first_line(error)})") from error
    for fault in ("missing_keys", "unexpected_keys"):
        if names := sorted(report[fault]):
            raise ValueError(f"{path / name}: {fault.replace('_keys', '')} weight '{names[0]}'")
    return part
