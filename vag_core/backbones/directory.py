"""The directory of a pretrained video model: found, and checked before anything is built from it.

Its `model_index.json` names classes; only those of `published` are made, and no code is ever loaded. Everything here
raises ValueError with one line that names the path.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

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


def locate(path: str | Path, cache: Path | None = None, download: bool = True) -> ModelDirectory:
    """A local directory, `owner/name` on the Hugging Face hub, or `tiny:cosmos`, `tiny:cosmos25`, `tiny:wan`.

    A tiny model is random, of the real classes; it is written to `cache` (by default $VAG_CACHE or ~/.cache/vag) once.
    download: what is not in the hub's cache may be fetched.
    """
    name = str(path)
    if name.startswith(TINY):
        from vag_core.backbones.tiny import tiny_directory

        return check_directory(tiny_directory(name.removeprefix(TINY), cache or _cache()))
    if Path(path).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return check_directory(Path(path))
    return check_directory(_download(name, download))


def base_id(directory: ModelDirectory) -> str:
    """SHA-256 over the configs and weights of network and tokenizer."""
    digest = hashlib.sha256()
    for part in ("transformer", "vae"):
        for path in sorted((directory.path / part).iterdir()):
            if path.suffix in (".json", ".safetensors"):
                with path.open("rb") as file:
                    digest.update(f"{part}/{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def check_directory(path: Path) -> ModelDirectory:
    """The directory, with all files of network, tokenizer and scheduler there and whole."""
    index = path / "model_index.json"
    if not index.is_file():
        what = "has no model_index.json" if path.is_dir() else "directory not found"
        raise ValueError(f"{path}: {what}; expected a model in the format of diffusers")
    values = read_config(index)
    name = str(values.get("_class_name"))[:80]
    kind = PIPELINES.get(name)
    if kind is None:
        raise ValueError(f"{index}: a model for {name}; expected one of {', '.join(PIPELINES)}")
    if kind == "wan" and values.get("expand_timesteps") is not True:
        raise ValueError(f"{index}: a Wan model without expand_timesteps; expected Wan2.2-TI2V")
    for part, classes in PARTS[kind].items():
        said = values.get(part)
        if not isinstance(said, list) or len(said) != 2 or said[0] != "diffusers" or said[1] not in classes:
            raise ValueError(f"{index}: {part} = {str(said)[:80]}; expected diffusers' {' or '.join(classes)}")
    if values.get("transformer_2", [None, None]) != [None, None]:
        raise ValueError(f"{index}: has a second transformer; expected Wan2.2-TI2V, which has one")
    for part in ("transformer", "vae"):
        _check_weights(path / part)
    read_config(path / "scheduler" / "scheduler_config.json")
    return ModelDirectory(path, kind, values["scheduler"][1])


def _check_weights(part: Path) -> None:
    config = read_config(part / "config.json")
    if "auto_map" in config:
        raise ValueError(f"{part / 'config.json'}: 'auto_map' names code; expected a plain model")
    index = part / f"{WEIGHTS}.index.json"
    names = {WEIGHTS}
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


def _download(name: str, allowed: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, allow_patterns=["model_index.json"], local_files_only=not allowed))
        patterns = [
            f"{part}/*.{kind}" for part in ("transformer", "vae", "scheduler") for kind in ("json", "safetensors")
        ]
        # The folder's name is the commit, so that the rest is of the same one.
        return Path(
            snapshot_download(name, revision=folder.name, allow_patterns=patterns, local_files_only=not allowed)
        )
    except Exception as error:  # offline, not there, not allowed: the hub client has a class for each
        raise ValueError(
            f"{name}: no such directory here, and the Hugging Face hub does not give it ({first_line(error)})"
        ) from error
