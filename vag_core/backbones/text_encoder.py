"""The text encoder of a pretrained video model: loaded, named, and run as the model's own pipeline runs it.

L: tokens of a prompt, D: numbers a token, as the network wants them. Cosmos-Predict2 has the encoder of T5, Wan that of
UMT5; Cosmos-Predict2.5 has Qwen2.5-VL, whose layers are all taken, normalised and put side by side, and a projection in
the video network.
"""

from __future__ import annotations

import hashlib
import html
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from vag_core.backbones.directory import ModelDirectory
from vag_core.backbones.files import MOST_NUMBERS, TEXT_WEIGHTS, WEIGHTS, weight_files
from vag_core.backbones.published import TEXT_PARTS
from vag_core.checkpoint import Shapes, first_line, plan_network, read_shapes

VERSION = 1  # of what is encoded here; another one makes other names in the cache
SAMPLES, SAMPLE_BYTES = 64, 4096  # of a weight file, that name it
SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."  # Cosmos-Predict2.5's pipeline
PROJECTION = ("crossattn_proj.0.weight", "crossattn_proj.0.bias")


def import_transformers() -> Any:
    """The library. Raises ValueError that says how to install it."""
    try:
        import transformers
    except ImportError as error:
        raise ValueError(
            "the text of a pretrained video model needs transformers; run: pip install 'lerobot_policy_vag[video]'"
        ) from error
    return transformers


class T5Encoder:
    """T5's encoder or UMT5's, of Cosmos-Predict2 and Wan: the last layer, for the tokens of the prompt alone."""

    def __init__(self, directory: ModelDirectory, device: torch.device) -> None:
        self.directory, self.device = directory, device
        self.encoder, self.tokenizer = _load(directory, device)

    @torch.no_grad()
    def encode(self, prompt: str, max_length: int) -> Float[Tensor, "l d"]:
        """One prompt -> (L, D) float32 on the CPU; what is longer than max_length tokens is cut off.

        The pipeline pads first and masks the padding. Its rows are the same without, and the network reads zeros.
        """
        ids = _checked_ids(self.tokenizer([prompt], truncation=True, max_length=max_length)["input_ids"], self)
        return self.encoder(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].float().cpu()


class QwenEncoder:
    """Qwen2.5-VL of Cosmos-Predict2.5, with the projection of the video network behind it."""

    def __init__(self, directory: ModelDirectory, device: torch.device) -> None:
        self.directory, self.device = directory, device
        self.encoder, self.tokenizer = _load(directory, device)
        self.weight, self.bias = (value.to(device, torch.float32) for value in _projection(directory))

    @torch.no_grad()
    def encode(self, prompt: str, max_length: int) -> Float[Tensor, "l d"]:
        """One prompt -> (max_length, D) float32 on the CPU; the pipeline does not mask padding, so all rows count."""
        states = self.layers(prompt, max_length)
        if states.shape[-1] != self.weight.shape[1]:
            where = self.directory.path / "text_encoder"
            raise ValueError(f"{where}: gives {states.shape[-1]} numbers a token; expected {self.weight.shape[1]}")
        return F.gelu(F.linear(states.float(), self.weight, self.bias)).cpu()

    @torch.no_grad()
    def layers(self, prompt: str, max_length: int) -> Float[Tensor, "l raw"]:
        """One prompt -> the normalised layers side by side (max_length, layers x width), before the projection."""
        roles = {"system": SYSTEM, "user": prompt}
        chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in roles.items()]
        try:
            ids = self.tokenizer.apply_chat_template(
                [chat],
                return_dict=True,
                add_vision_id=False,
                max_length=max_length,
                truncation=True,
                padding="max_length",
            )["input_ids"]
        except Exception as error:  # the template is a program of the directory's, run in a sandbox
            where = self.directory.path / "tokenizer"
            raise ValueError(f"{where}: its chat template cannot be used ({first_line(error)})") from error
        out = self.encoder(_checked_ids(ids, self), output_hidden_states=True, use_cache=False, logits_to_keep=1)
        normalised = [
            (layer - layer.mean(dim=-1, keepdim=True)) / (layer.std(dim=-1, keepdim=True) + 1e-8)
            for layer in out.hidden_states[1:]
        ]
        return torch.cat(normalised, dim=-1)[0]


ENCODERS: dict[str, Any] = {"cosmos": T5Encoder, "cosmos25": QwenEncoder, "wan": T5Encoder}


def load_encoder(directory: ModelDirectory, device: torch.device) -> T5Encoder | QwenEncoder:
    """The encoder with its tokenizer, frozen: bfloat16 on CUDA, float32 elsewhere.

    Raises ValueError for weights that are missing or of another shape, and if transformers is not installed.
    """
    return ENCODERS[directory.kind](directory, device)


def encoder_id(directory: ModelDirectory, max_length: int) -> str:
    """A name for all that decides what a prompt becomes: encoder, tokenizer, projection and length.

    It is a hash of the names and contents of the small files, and of each weight file's size, header and 64 evenly
    spaced samples of 4 kB: not of every byte, which would take a minute for 20 GB.
    """
    digest = hashlib.sha256(f"{VERSION} {directory.kind} {max_length}".encode())
    for part in TEXT_PARTS[directory.kind]:
        for file in sorted(path for path in (directory.path / part).iterdir() if path.is_file()):
            if file.suffix in (".json", ".txt", ".model", ".jinja"):
                with file.open("rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").digest()
                digest.update(f"{part}/{file.name}".encode() + content)
    for file in weight_files(directory.path / "text_encoder", TEXT_WEIGHTS):
        digest.update(file.name.encode() + _fingerprint(file))
    if directory.kind == "cosmos25":
        weight, bias = _projection(directory)
        rows = weight[:: max(1, len(weight) // SAMPLES)]
        for values in (torch.tensor(weight.shape), rows, bias):
            digest.update(values.float().numpy().tobytes())
    return digest.hexdigest()[:24]


def _fingerprint(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as stream:
        header = int.from_bytes(stream.read(8), "little")
        digest = hashlib.sha256(f"{size} {header}".encode() + stream.read(min(header, size)))
        for sample in range(SAMPLES):
            stream.seek(sample * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.digest()


def _load(directory: ModelDirectory, device: torch.device) -> tuple[Any, Any]:
    """Encoder and tokenizer, of the classes that the kind of model has and of no others."""
    transformers = import_transformers()
    folders = {part: directory.path / part for part in TEXT_PARTS[directory.kind]}
    kinds = {part: getattr(transformers, names[0]) for part, names in TEXT_PARTS[directory.kind].items()}
    path = folders["tokenizer"]
    try:
        # The file is named, for tokenizer_config.json could name another.
        tokenizer = kinds["tokenizer"].from_pretrained(
            path, local_files_only=True, tokenizer_file=str(path / "tokenizer.json")
        )
        path = folders["text_encoder"]
        _check_plan(kinds["text_encoder"], path)
        encoder, report = kinds["text_encoder"].from_pretrained(
            path,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers has requirements of its own for every model
        raise ValueError(f"{path}: cannot be loaded ({first_line(error)})") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{path}: missing weight '{missing[0]}'")
    return encoder.eval().requires_grad_(False).to(device), tokenizer


def _check_plan(kind: Any, path: Path) -> None:
    """Raise ValueError if config.json asks for a network clearly larger than the weight files."""
    shapes: Shapes = {}
    for file in weight_files(path, TEXT_WEIGHTS):
        shapes |= read_shapes(file, MOST_NUMBERS)
    config = kind.config_class.from_pretrained(path, local_files_only=True)
    plan_network(lambda: kind(config), shapes, "", "text encoder")


def _checked_ids(ids: list[list[int]], model: T5Encoder | QwenEncoder) -> Tensor:
    """Token ids (1, L) on the device. Raises ValueError for a tokenizer of another vocabulary, or without tokens."""
    tokens, size = torch.tensor(ids, dtype=torch.long), model.encoder.get_input_embeddings().num_embeddings
    if tokens.numel() == 0 or int(tokens.max()) >= size:
        where = model.directory.path / "tokenizer"
        raise ValueError(f"{where}: makes ids {ids[0][:4]}...; expected some, all below the encoder's {size}")
    return tokens.to(model.device)


def _projection(directory: ModelDirectory) -> tuple[Tensor, Tensor]:
    """Weight (D, raw) and bias (D,) of the video network's projection of text; the rest of it is not read."""
    part = directory.path / "transformer"
    found: dict[str, Tensor] = {}
    for file in weight_files(part, WEIGHTS):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in PROJECTION if name in tensors.keys()}  # noqa: SIM118
    for name in PROJECTION:
        if name not in found:
            raise ValueError(f"{part}: missing weight '{name}'")
    weight, bias = (found[name] for name in PROJECTION)
    if weight.ndim != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(f"{part}: '{PROJECTION[0]}' is {tuple(weight.shape)}; expected a matrix and its bias")
    return weight, bias


def clean_prompt(kind: str, prompt: str) -> str:
    """The text that is encoded: Wan's pipeline mends HTML and white space, and with ftfy, if installed, characters."""
    if kind != "wan":
        return prompt
    try:
        import ftfy
    except ImportError:
        pass
    else:
        prompt = ftfy.fix_text(prompt)
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
