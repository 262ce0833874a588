"""The directory of a pretrained video model: found, and checked before anything is built from it.

Its `model_index.json` names classes; only those of `published` are made, and no code is ever loaded. Everything here
raises ValueError with one line that names the path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vag_core.backbones.published import PARTS, PIPELINES
from vag_core.checkpoint import first_line, read_config, read_shapes

MOST_NUMBERS = 50_000_000_000
WEIGHTS = "diffusion_pytorch_model.safetensors"
TINY = "tiny:"


@dataclass(frozen=True)
class ModelDirectory:
    """A checked directory, and the kind of backbone that is in it: cosmos, cosmos25 or wan."""

    path: Path
    kind: str
    scheduler: str  # class


def locate(path: str | Path, cache: Path | None = None) -> ModelDirectory:
    """A local directory, `owner/name` on the Hugging Face hub, or `tiny:cosmos`, `tiny:cosmos25`, `tiny:wan`.

    A tiny model is random, of the real classes; it is written to `cache` (by default $VAG_CACHE or ~/.cache/vag) once.
    """
    from vag_core.backbones.tiny import tiny_directory

    return check_directory(find_directory(path, tiny_directory, ("transformer", "vae", "scheduler"), cache))


def find_directory(
    path: str | Path, tiny: Callable[[str, Path], Path], parts: Sequence[str], cache: Path | None = None
) -> Path:
    """Where the model lies: a local path as it is, a tiny model once it is written, one of the hub with these parts.

    tiny: writes the one of a name into a cache, unless it is there.
    """
    name = str(path)
    if name.startswith(TINY):
        return tiny(name.removeprefix(TINY), cache or _cache())
    if Path(path).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Path(path)
    return _download(name, parts)


def check_directory(path: Path) -> ModelDirectory:
    """The directory, with all files of network, tokenizer and scheduler there and whole."""
    index = path / "model_index.json"
    kind, values = read_index(index, PIPELINES)
    if kind == "wan" and values.get("expand_timesteps") is not True:
        raise ValueError(f"{index}: a Wan model without expand_timesteps; expected Wan2.2-TI2V")
    for part, classes in PARTS[kind].items():
        check_class(index, values, part, "diffusers", classes)
    if values.get("transformer_2", [None, None]) != [None, None]:
        raise ValueError(f"{index}: has a second transformer; expected Wan2.2-TI2V, which has one")
    for part in ("transformer", "vae"):
        check_weights(path / part)
    read_config(path / "scheduler" / "scheduler_config.json")
    return ModelDirectory(path, kind, values["scheduler"][1])


def read_index(index: Path, pipelines: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The kind of model that a `model_index.json` is of, by the pipelines that are known, and all that it says."""
    if not index.is_file():
        what = "has no model_index.json" if index.parent.is_dir() else "directory not found"
        raise ValueError(f"{index.parent}: {what}; expected a model in the format of diffusers")
    values = read_config(index)
    name = str(values.get("_class_name"))[:80]
    if name not in pipelines:
        expected = f"one of {', '.join(pipelines)}" if len(pipelines) > 1 else next(iter(pipelines))
        raise ValueError(f"{index}: a model for {name}; expected {expected}")
    return pipelines[name], values


def check_class(index: Path, values: Mapping[str, Any], part: str, library: str, classes: Sequence[str]) -> None:
    """Raise ValueError unless `model_index.json` names one of these classes of a library for a part of the model."""
    said = values.get(part)
    if not isinstance(said, list) or len(said) != 2 or said[0] != library or said[1] not in classes:
        raise ValueError(f"{index}: {part} = {str(said)[:80]}; expected {library}' {' or '.join(classes)}")


def read_plain(path: Path) -> dict[str, Any]:
    """A config that names no code."""
    config = read_config(path)
    if "auto_map" in config:
        raise ValueError(f"{path}: 'auto_map' names code; expected a plain model")
    return config


def check_weights(part: Path, weights: str = WEIGHTS) -> None:
    """Raise ValueError unless a part of the model has a plain config and whole weights in safetensors."""
    read_plain(part / "config.json")
    index = part / f"{weights}.index.json"
    names = {weights}
    if index.is_file():
        shards = read_config(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{index}: no weight_map in it; expected the names of weight files")
        names = set(map(str, shards.values()))
    for name in sorted(names):
        if Path(name).name != name:
            raise ValueError(f"{index}: weight file '{name[:80]}' is not in the same directory")
        if not (part / name).is_file():
            raise ValueError(f"{part / name}: not found; the model is half downloaded, or in another format")
        read_shapes(part / name, MOST_NUMBERS)


def _cache() -> Path:
    if own := os.environ.get("VAG_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vag"


def _download(name: str, parts: Sequence[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, allow_patterns=["model_index.json"]))
        patterns = [f"{part}/*.{kind}" for part in parts for kind in ("json", "safetensors")]
        # The folder's name is the commit, so that the rest is of the same one. Weights in half precision are not read.
        skipped = ["*.fp16.*"]
        return Path(snapshot_download(name, revision=folder.name, allow_patterns=patterns, ignore_patterns=skipped))
    except Exception as error:  # offline, not there, not allowed: the hub client has a class for each
        raise ValueError(
            f"{name}: no such directory here, and the Hugging Face hub does not give it ({first_line(error)})"
        ) from error
