"""The directory of a pretrained video model: found, and checked before anything is built from it.

Its `model_index.json` names classes; only those of `published` are made, and no code is ever loaded. Everything here
raises ValueError with one line that names the path.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vag_core.backbones.published import PARTS, PIPELINES, TEXT_PARTS
from vag_core.checkpoint import first_line, read_config, read_shapes

MOST_NUMBERS = 50_000_000_000
WEIGHTS, TEXT_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
MOST_TOKENIZER_BYTES = 1 << 27
# Keys by which a config has its library run or fetch something else than the model.
CODE = ("auto_map", "custom_generate", "custom_pipelines", "quantization_config", "trust_remote_code")
TINY = "tiny:"


@dataclass(frozen=True)
class ModelDirectory:
    """A checked directory, and the kind of backbone that is in it: cosmos, cosmos25 or wan."""

    path: Path
    kind: str
    scheduler: str  # class
    hub: str = ""  # owner/name, if it is of the Hugging Face hub


def locate(path: str | Path, cache: Path | None = None, download: bool = True) -> ModelDirectory:
    """A local directory, `owner/name` or `owner/name@revision` on the Hugging Face hub, or `tiny:cosmos`,
    `tiny:cosmos25`, `tiny:wan`.

    A tiny model is random, of the real classes; it is written to `cache` (by default $VAG_CACHE or ~/.cache/vag) once.
    download: what is not in the hub's cache may be fetched.
    """
    name = str(path)
    if name.startswith(TINY):
        from vag_core.backbones.tiny import tiny_directory

        return check_directory(tiny_directory(name.removeprefix(TINY), cache or _cache()))
    if Path(path).exists() or not (hub := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)):
        return check_directory(Path(path))
    name, revision = hub.groups()
    folder = _download(name, ["model_index.json"], revision, download)
    # The folder's name is the commit, so that the rest is of the same one.
    parts = ("transformer", "vae", "scheduler")
    patterns = [f"{part}/*.{kind}" for part in parts for kind in ("json", "safetensors")]
    found = check_directory(_download(name, patterns, folder.name, download))
    return replace(found, hub=name if download else "")


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
        _check_class(index, values, part, "diffusers", classes)
    if values.get("transformer_2", [None, None]) != [None, None]:
        raise ValueError(f"{index}: has a second transformer; expected Wan2.2-TI2V, which has one")
    for part in ("transformer", "vae"):
        _check_weights(path / part, WEIGHTS)
    network = path / "transformer" / "config.json"
    if kind == "cosmos25" and read_config(network).get("use_crossattn_projection") is not True:
        raise ValueError(f"{network}: no use_crossattn_projection; expected Cosmos-Predict2.5, which projects its text")
    read_config(path / "scheduler" / "scheduler_config.json")
    return ModelDirectory(path, kind, values["scheduler"][1])


def check_text(directory: ModelDirectory) -> None:
    """Raise ValueError unless the text encoder and its tokenizer are there and whole; one of the hub fetches them."""
    folders = [directory.path / part for part in TEXT_PARTS[directory.kind]]
    if directory.hub:
        kinds = {"text_encoder": ("json", "safetensors"), "tokenizer": ("json", "txt", "model", "jinja")}
        patterns = [f"{part}/*.{kind}" for part in kinds for kind in kinds[part]]
        _download(directory.hub, patterns, directory.path.name)
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: not found; text needs the model's own: put its '{folder.name}' folder there")
    index = directory.path / "model_index.json"
    values = read_config(index)
    for part, classes in TEXT_PARTS[directory.kind].items():
        _check_class(index, values, part, "transformers", classes)
    encoder, tokenizer = folders
    if (encoder / "adapter_config.json").exists():
        raise ValueError(f"{encoder / 'adapter_config.json'}: an adapter of another model; expected plain weights")
    _check_weights(encoder, TEXT_WEIGHTS)
    if (generation := encoder / "generation_config.json").exists():
        _check_plain(generation, read_config(generation))
    _check_tokenizer(tokenizer, TEXT_PARTS[directory.kind]["tokenizer"])


def _check_tokenizer(folder: Path, classes: Sequence[str]) -> None:
    config = folder / "tokenizer_config.json"
    values = read_config(config)
    _check_plain(config, values)
    if (name := values.get("tokenizer_class")) is not None and name not in classes:
        raise ValueError(f"{config}: tokenizer_class = {str(name)[:80]}; expected {' or '.join(classes)}")
    if not (file := folder / "tokenizer.json").is_file():
        raise ValueError(f"{file}: not found; the model is half downloaded, or in another format")
    if (size := file.stat().st_size) > MOST_TOKENIZER_BYTES:
        raise ValueError(f"{file}: has {size} bytes; expected at most {MOST_TOKENIZER_BYTES}")


def _check_class(index: Path, values: dict[str, Any], part: str, library: str, classes: Sequence[str]) -> None:
    said = values.get(part)
    if not isinstance(said, list) or len(said) != 2 or said[0] != library or said[1] not in classes:
        raise ValueError(f"{index}: {part} = {str(said)[:80]}; expected {library}' {' or '.join(classes)}")


def _check_plain(path: Path, value: Any) -> None:
    """Raise ValueError if a key inside names code, or a place that code is fetched from."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in CODE or (str(key).endswith("implementation") and "/" in str(inner)):
                raise ValueError(f"{path}: '{key}' names code; expected a plain model")
            _check_plain(path, inner)
    elif isinstance(value, list):
        for inner in value:
            _check_plain(path, inner)


def weight_files(part: Path, weights: str) -> list[Path]:
    """The safetensors files of a part: the one named `weights`, or those of its index."""
    index = part / f"{weights}.index.json"
    names = {weights}
    # diffusers takes an index before a single file, transformers the other way round.
    if index.is_file() and not (part / TEXT_WEIGHTS).is_file():
        shards = read_config(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ValueError(f"{index}: no weight_map in it; expected the names of weight files")
        names = set(map(str, shards.values()))
    for name in sorted(names):
        if Path(name).name != name:
            raise ValueError(f"{index}: weight file '{name[:80]}' is not in the same directory")
    return [part / name for name in sorted(names)]


def _check_weights(part: Path, weights: str) -> None:
    _check_plain(part / "config.json", read_config(part / "config.json"))
    for file in weight_files(part, weights):
        if not file.is_file():
            raise ValueError(f"{file}: not found; the model is half downloaded, or in another format")
        read_shapes(file, MOST_NUMBERS)


def _cache() -> Path:
    if own := os.environ.get("VAG_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vag"


def _download(name: str, patterns: list[str], revision: str | None = None, allowed: bool = True) -> Path:
    """allowed: False takes only what is there already."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=not allowed))
    except Exception as error:  # offline, not there, not allowed: the hub client has a class for each
        raise ValueError(
            f"{name}: no such directory here, and the Hugging Face hub does not give it ({first_line(error)})"
        ) from error
