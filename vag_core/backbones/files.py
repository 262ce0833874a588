"""Files of a model in the format of diffusers: found here or on the Hugging Face hub, and checked.

Nothing is built, and no code that a model names is ever run. Everything here raises ValueError with one line that names
the path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vag_core.checkpoint import first_line, read_config, read_shapes

MOST_NUMBERS = 50_000_000_000
WEIGHTS, TEXT_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"
# Keys by which a config has its library run or fetch something else than the model.
CODE = ("auto_map", "custom_generate", "custom_pipelines", "quantization_config", "trust_remote_code")
TINY = "tiny:"


def find_directory(
    path: str | Path,
    tiny: Callable[[str, Path], Path],
    parts: Sequence[str],
    cache: Path | None = None,
    allowed: bool = True,
) -> tuple[Path, str]:
    """Where the model lies: a local path as it is, a tiny model once it is written, one of the hub with these parts.

    tiny: writes the one of a name into a cache, unless it is there. allowed: to fetch what the hub's cache lacks. The
    second value is owner/name, of a model of the hub.
    """
    name = str(path)
    if name.startswith(TINY):
        return tiny(name.removeprefix(TINY), cache or cache_directory()), ""
    if Path(path).exists() or not (hub := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name)):
        return Path(path), ""
    name, revision = hub.groups()
    folder = download(name, ["model_index.json"], revision, allowed)
    # The folder's name is the commit, so that the rest is of the same one.
    patterns = [f"{part}/*.{kind}" for part in parts for kind in ("json", "safetensors")]
    return download(name, patterns, folder.name, allowed), name if allowed else ""


def download(name: str, patterns: list[str], revision: str | None = None, allowed: bool = True) -> Path:
    """Files of a model of the hub; without being allowed to, only if they are in its cache. No half precision."""
    try:
        from huggingface_hub import snapshot_download

        wanted: dict[str, Any] = {"revision": revision, "allow_patterns": patterns, "ignore_patterns": ["*.fp16.*"]}
        return Path(snapshot_download(name, **wanted, local_files_only=not allowed))
    except Exception as error:  # offline, not there, not allowed: the hub client has a class for each
        raise ValueError(
            f"{name}: no such directory here, and the Hugging Face hub does not give it ({first_line(error)})"
        ) from error


def cache_directory() -> Path:
    """Where tiny models and encoded text are kept: $VAG_CACHE or ~/.cache/vag."""
    if own := os.environ.get("VAG_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vag"


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
    """A config without a key that names code, or a place that code is fetched from."""
    config = read_config(path)
    _check_plain(path, config)
    return config


def _check_plain(path: Path, value: Any) -> None:
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


def check_weights(part: Path, weights: str = WEIGHTS) -> None:
    """Raise ValueError unless a part of the model has a plain config and whole weights in safetensors."""
    read_plain(part / "config.json")
    for file in weight_files(part, weights):
        if not file.is_file():
            raise ValueError(f"{file}: not found; the model is half downloaded, or in another format")
        read_shapes(file, MOST_NUMBERS)
