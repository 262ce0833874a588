"""Prompts as token sequences of a pretrained video model, each encoded once and kept on disk.

B prompts, D numbers a token. A prompt is one safetensors file, `text/<id of the encoder>/<sha256 of the prompt>` in the
cache: bfloat16, without the zeros of the padding.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vag_core.backbones.directory import ModelDirectory, check_text
from vag_core.backbones.files import cache_directory
from vag_core.backbones.models import import_diffusers
from vag_core.backbones.text_encoder import clean_prompt, encoder_id, load_encoder
from vag_core.checkpoint import check_finite, first_line, read_config

MAX_LENGTH = 512  # tokens, of all these pipelines
KEY = "context"
WIDTHS = {"cosmos": "text_embed_dim", "cosmos25": "encoder_hidden_states_channels", "wan": "text_dim"}
NEGATIVE = {"cosmos": "pipeline_cosmos2_video2world", "cosmos25": "pipeline_cosmos2_5_predict"}  # where it is given


def text_width(directory: ModelDirectory) -> int:
    """D: numbers a text token has for the network, by its config.json alone.

    Raises ValueError that names the file if it does not say.
    """
    file = directory.path / "transformer" / "config.json"
    width = read_config(file).get(WIDTHS[directory.kind])
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ValueError(f"{file}: {WIDTHS[directory.kind]} = {str(width)[:40]}; expected the numbers of a text token")
    return width


def negative_prompt(kind: str) -> str:
    """What the pipeline of a kind of model takes where no negative prompt is given; Wan's takes none, which is ''.

    Raises ValueError if diffusers is not installed.
    """
    if kind not in NEGATIVE:
        return ""
    import_diffusers()
    return import_module(f"diffusers.pipelines.cosmos.{NEGATIVE[kind]}").DEFAULT_NEGATIVE_PROMPT


def text_contexts(
    directory: ModelDirectory,
    prompts: Sequence[str],
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    max_length: int = MAX_LENGTH,
) -> Float[Tensor, "b l d"]:
    """Prompts -> (B, max_length, D) float32 on the CPU, zeros as padding; for Cosmos-Predict2.5 after its projection.

    cache: by default $VAG_CACHE or ~/.cache/vag. device: where prompts that are not in it are encoded. The encoder, of
    5 to 8 billion weights, is loaded only then, once, and freed: bfloat16 on CUDA (10 to 17 GB), float32 elsewhere (20
    to 33 GB). What comes back is rounded to bfloat16, in the first call too. A file that is damaged is made again.

    Raises ValueError that names the path if the encoder or its tokenizer is missing, half downloaded or of another
    class, if transformers is not installed, or if the cache cannot be written.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts = '{prompts[:40]}': expected a list of prompts")
    if max_length < 1:
        raise ValueError(f"max_length = {max_length}: expected tokens, at least 1")
    check_text(directory)
    width, device = text_width(directory), torch.device(device)
    folder = (cache or cache_directory()) / "text" / encoder_id(directory, max_length)
    texts = [clean_prompt(directory.kind, prompt) for prompt in prompts]
    files = {text: folder / f"{_name(text)}.safetensors" for text in texts}
    rows = {text: row for text, file in files.items() if (row := _read(file, max_length, width)) is not None}
    if missing := {text: file for text, file in files.items() if text not in rows}:
        rows |= _encode(directory, missing, device, max_length, width)
    contexts = torch.zeros(len(texts), max_length, width)
    for context, text in zip(contexts, texts, strict=True):
        context[: len(rows[text])] = rows[text].float()
    return contexts


def _encode(
    directory: ModelDirectory, files: dict[str, Path], device: torch.device, max_length: int, width: int
) -> dict[str, Tensor]:
    """Texts and where to keep each -> the rows (L, D) of each, in bfloat16."""
    folder = next(iter(files.values())).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the work of a minute
    except OSError as error:
        raise _unwritable(folder, error) from error
    encoder, rows = load_encoder(directory, device), {}
    for text, file in files.items():  # one at a time: what is made must not depend on what it is batched with
        row = encoder.encode(text, max_length)
        if row.shape[-1] != width:
            where = directory.path / "text_encoder"
            raise ValueError(f"{where}: gives {row.shape[-1]} numbers a token; the network's config.json says {width}")
        check_finite({text[:40]: row}, f"{directory.path / 'text_encoder'}: ")
        rows[text] = row.to(torch.bfloat16)
        _write(file, rows[text])
    del encoder
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return rows


def _name(text: str) -> str:
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError as error:
        raise ValueError(f"prompt {ascii(text)[:40]}: is not valid text ({error.reason})") from error


def _read(file: Path, max_length: int, width: int) -> Tensor | None:
    """The rows (L, D) in a file of the cache, or None if it is not there or damaged."""
    try:
        row = load_file(file)[KEY]
    except (OSError, SafetensorError, KeyError):
        return None
    whole = row.ndim == 2 and row.dtype == torch.bfloat16 and len(row) <= max_length and row.shape[1] == width
    return row if whole and bool(torch.isfinite(row).all()) else None


def _write(file: Path, row: Tensor) -> None:
    """Under a temporary name, then renamed: another process may write the same."""
    temporary = file.with_name(f".{file.stem}-{uuid.uuid4().hex}.part")
    try:
        save_file({KEY: row}, temporary)
        os.replace(temporary, file)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(file, error) from error


def _unwritable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: cannot be written ({first_line(error)}); name another cache by $VAG_CACHE")
