"""Instructions as token ids or as vectors, without a download and without a fitted vocabulary.

B strings, L tokens, D features. The same string gives the same numbers in every process and on every machine.
"""

from __future__ import annotations

import itertools
import math
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from toolkit.base.errors import UserError
from toolkit.base.reading import read_json

PAD = 0
MOST_PARAMETERS = 5_000_000_000  # of a text model: the encoder of T5-XXL has 4.8 billion
LARGEST = 10_000_000  # number in a model's config.json
# Keys by which a model's JSON has transformers run or fetch something else than the model.
CODE = ("auto_map", "custom_pipelines", "trust_remote_code", "quantization_config", "custom_generate")
INDEX = ".index.json"


def split_words(text: str) -> list[str]:
    """Lower-cased words; punctuation and underscores only separate."""
    return re.findall(r"[^\W_]+", text.lower())


def _stable_hash(text: str) -> int:
    # Python's own hash() differs from process to process.
    return zlib.crc32(text.encode())


class InstructionTokenizer:
    """Strings -> hashed word ids. Stateless: nothing is fitted, so a new instruction needs no new tokenizer.

    Words, not bytes: an instruction is then about eight tokens instead of forty, and attention pays for each.
    Two words share an id with probability 1 / buckets; the price of having no vocabulary.
    """

    def __init__(self, length: int = 16, buckets: int = 4096) -> None:
        if length < 1 or buckets < 2:
            raise UserError(f"tokenizer: length {length} and buckets {buckets} must be at least 1 and 2")
        self.length, self.buckets = length, buckets

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """B strings -> ids (B, L) int64 in [0, buckets), mask (B, L) bool. Words past `length` are dropped."""
        ids = torch.full((len(texts), self.length), PAD, dtype=torch.int64)
        for row, text in enumerate(texts):
            words = split_words(text)[: self.length]
            ids[row, : len(words)] = torch.tensor(
                [1 + _stable_hash(word) % (self.buckets - 1) for word in words], dtype=torch.int64
            )
        return ids, ids != PAD


def hashed_features(text: str, width: int) -> Tensor:
    """Signed feature hashing of words and bigrams, unit length, (width,) (arXiv 0902.2206, eq. 1)."""
    words = split_words(text)
    vector = torch.zeros(width)
    for feature in words + [" ".join(pair) for pair in itertools.pairwise(words)]:
        code = _stable_hash(feature)
        vector[(code >> 1) % width] += 1.0 if code & 1 else -1.0
    return F.normalize(vector, dim=0)


class InstructionEmbedder:
    """Strings -> vectors (B, D), each computed once and kept.

    Without `path`: signed feature hashing to `width` numbers. With `path`: a sentence-transformer or T5
    directory on disk, mean over the tokens of its last layer; `width` is then the model's own. `max_parameters`:
    numbers that its files may hold.
    """

    def __init__(self, width: int = 64, path: str | Path | None = None, max_parameters: int = MOST_PARAMETERS) -> None:
        self.path = None if path is None else Path(path)
        self._cache: dict[str, Tensor] = {}
        self._tokenizer: Any = None
        self._model: Any = None
        if self.path is not None:
            self._tokenizer, self._model = _load_text_model(self.path, max_parameters)
            width = int(self._model.config.hidden_size)
        self.width = width

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """B strings -> (B, width) float32 on the CPU, unit length (zero for a string without words)."""
        for text in texts:
            if text not in self._cache:
                local = self._model is not None
                self._cache[text] = self._mean_pooled(text) if local else hashed_features(text, self.width)
        if not texts:
            return torch.zeros(0, self.width)
        return torch.stack([self._cache[text] for text in texts])

    def _mean_pooled(self, text: str) -> Tensor:
        # One string at a time: the result must not depend on what it is batched with.
        tokens = self._tokenizer([text], truncation=True, return_tensors="pt")
        hidden = self._model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])[0]
        mask = tokens["attention_mask"][..., None].float()
        return F.normalize(((hidden * mask).sum(1) / mask.sum(1))[0].float(), dim=0)


def instruction_encoder(
    path: str | None, max_parameters: int = MOST_PARAMETERS, views: str = ""
) -> Callable[[list[str]], list[str] | Tensor]:
    """Strings as they are, for a generator that learns on bytes, or vectors from a text encoder on disk.

    views: `Conventions.views`, said after each instruction.
    """

    def told(texts: list[str]) -> list[str]:
        return [f"{text}; {views}" for text in texts] if views else texts

    if path is None:
        return told
    embedder = InstructionEmbedder(path=path, max_parameters=max_parameters)
    return lambda texts: torch.as_tensor(embedder.embed(told(texts)))


def _load_text_model(path: Path, max_parameters: int) -> tuple[Any, Any]:
    """Tokenizer and encoder from a directory: JSON and safetensors, no network and no code of the directory's.

    Raises UserError if there is none, if its JSON names code or is absurd, if the config asks for another network than
    the weights' headers say, before that is built, or if a weight is missing or not finite.
    """
    if not (path / "config.json").is_file():
        what = "no config.json in it" if path.is_dir() else "directory not found"
        raise UserError(f"{path}: {what}; expected a sentence-transformer or T5 directory on disk")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{path}: no *.safetensors file; weights in other formats are not loaded")
    if (path / "adapter_config.json").exists():
        raise UserError(f"{path}: is an adapter of another model; merge the two and give that directory")
    for file in sorted(path.glob("*.json")):
        _check_json(file, read_json(file, (dict, list)))
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel
    except ImportError as error:
        raise UserError(
            f"{path}: a text model on disk needs transformers; run: pip install 'lerobot_policy_vag[text]'"
        ) from error
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tensors, numbers = _count(files)
        if numbers > max_parameters:
            raise UserError(
                f"{path}: holds {numbers} numbers; at most {max_parameters} are loaded, more with "
                f"max_parameters={numbers}"
            )
        config = AutoConfig.from_pretrained(path, **local)
        is_t5 = config.model_type in ("t5", "mt5", "umt5")
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _at_most(path, tensors, numbers):
            T5EncoderModel(config) if is_t5 else AutoModel.from_config(config, trust_remote_code=False)
        encoder: Any = T5EncoderModel if is_t5 else AutoModel
        model, report = encoder.from_pretrained(path, use_safetensors=True, output_loading_info=True, **local)
        tokenizer = AutoTokenizer.from_pretrained(path, **local)
    except UserError:
        raise
    except Exception as error:  # transformers has requirements of its own for every model
        reason = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UserError(f"{path}: cannot load the text model ({reason})") from error
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(f"{path}: the weight '{missing[0]}' is missing from its *.safetensors; expected all of them")
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"{path}: the weight '{name}' is not finite")
    return tokenizer, model.eval()


def _check_json(path: Path, value: Any, key: str = "") -> None:
    """Raise UserError if a value inside names code, another file's place, or a size that no model has."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in CODE:
                raise UserError(f"{path}: '{name}' names code or needs another package's; expected a plain model")
            _check_json(path, inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check_json(path, inner, key)
    elif isinstance(value, int | float) and not abs(value) <= LARGEST and path.name == "config.json":
        raise UserError(f"{path}: '{key}' is {str(value)[:40]}; expected at most {LARGEST} in size")
    elif isinstance(value, str) and "/" in value and (key.endswith("implementation") or path.name.endswith(INDEX)):
        raise UserError(f"{path}: '{key[:80]}' is '{value[:80]}'; expected a plain name")


def _count(files: list[Path]) -> tuple[int, int]:
    """Tensors, and numbers in them, by the headers of safetensors files."""
    from safetensors import safe_open

    tensors = numbers = 0
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensors, numbers = tensors + 1, numbers + math.prod(file.get_slice(name).get_shape())
    return tensors, numbers


@contextmanager
def _at_most(path: Path, tensors: int, numbers: int) -> Iterator[None]:
    """Inside, a network is stopped that becomes clearly larger than its file: twice, and what a pooler takes."""
    found = [0, 0]

    def count(module: Any, name: str, tensor: Tensor | None) -> None:
        found[0] += 1
        found[1] += 0 if tensor is None else tensor.numel()
        if found[0] > 2 * tensors + 1_000 or found[1] > 2 * numbers + (1 << 24):
            raise UserError(f"{path}: config.json asks for a larger model than its *.safetensors hold")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
