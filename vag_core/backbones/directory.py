"""The directory of a pretrained video model: found, and checked before anything is built from it.

Its `model_index.json` names classes; only those of `published` are made, and no code is ever loaded. Everything here
raises ValueError with one line that names the path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vag_core.backbones.files import (
    TEXT_WEIGHTS,
    check_class,
    check_weights,
    download,
    find_directory,
    read_index,
    read_plain,
)
from vag_core.backbones.published import PARTS, PIPELINES, TEXT_PARTS
from vag_core.checkpoint import read_config

MOST_TOKENIZER_BYTES = 1 << 27


@dataclass(frozen=True)
class ModelDirectory:
    """A checked directory, and the kind of backbone that is in it: cosmos, cosmos25 or wan."""

    path: Path
    kind: str
    scheduler: str  # class
    hub: str = ""  # owner/name, if it is of the Hugging Face hub


def locate(path: str | Path, cache: Path | None = None, fetch: bool = True) -> ModelDirectory:
    """A local directory, `owner/name` or `owner/name@revision` on the Hugging Face hub, or `tiny:cosmos`,
    `tiny:cosmos25`, `tiny:wan`.

    A tiny model is random, of the real classes; it is written to `cache` (by default $VAG_CACHE or ~/.cache/vag) once.
    fetch: what is not in the hub's cache.
    """
    from vag_core.backbones.tiny import tiny_directory

    found, hub = find_directory(path, tiny_directory, ("transformer", "vae", "scheduler"), cache, fetch)
    return replace(check_directory(found), hub=hub)


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
    kind, values = read_index(index, PIPELINES)
    if kind == "wan" and values.get("expand_timesteps") is not True:
        raise ValueError(f"{index}: a Wan model without expand_timesteps; expected Wan2.2-TI2V")
    for part, classes in PARTS[kind].items():
        check_class(index, values, part, "diffusers", classes)
    if values.get("transformer_2", [None, None]) != [None, None]:
        raise ValueError(f"{index}: has a second transformer; expected Wan2.2-TI2V, which has one")
    for part in ("transformer", "vae"):
        check_weights(path / part)
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
        download(directory.hub, patterns, directory.path.name)
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: not found; text needs the model's own: put its '{folder.name}' folder there")
    index = directory.path / "model_index.json"
    values = read_config(index)
    for part, classes in TEXT_PARTS[directory.kind].items():
        check_class(index, values, part, "transformers", classes)
    encoder, tokenizer = folders
    if (encoder / "adapter_config.json").exists():
        raise ValueError(f"{encoder / 'adapter_config.json'}: an adapter of another model; expected plain weights")
    check_weights(encoder, TEXT_WEIGHTS)
    if (generation := encoder / "generation_config.json").exists():
        read_plain(generation)
    _check_tokenizer(tokenizer, TEXT_PARTS[directory.kind]["tokenizer"])


def _check_tokenizer(folder: Path, classes: Sequence[str]) -> None:
    config = folder / "tokenizer_config.json"
    values = read_plain(config)
    if (name := values.get("tokenizer_class")) is not None and name not in classes:
        raise ValueError(f"{config}: tokenizer_class = {str(name)[:80]}; expected {' or '.join(classes)}")
    if not (file := folder / "tokenizer.json").is_file():
        raise ValueError(f"{file}: not found; the model is half downloaded, or in another format")
    if (size := file.stat().st_size) > MOST_TOKENIZER_BYTES:
        raise ValueError(f"{file}: has {size} bytes; expected at most {MOST_TOKENIZER_BYTES}")
