"""Instructions as token ids or as vectors, without a download and without a fitted vocabulary.

B strings, L tokens, D features. The same string gives the same numbers in every process and on every machine.
"""

from __future__ import annotations

import itertools
import re
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from toolkit.errors import UserError

PAD = 0


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
    directory on disk, mean over the tokens of its last layer; `width` is then the model's own.
    """

    def __init__(self, width: int = 64, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._cache: dict[str, Tensor] = {}
        self._tokenizer: Any = None
        self._model: Any = None
        if self.path is not None:
            self._tokenizer, self._model = _load_text_model(self.path)
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


def _load_text_model(path: Path) -> tuple[Any, Any]:
    """Tokenizer and encoder from a directory; safetensors only, no network. Raises UserError."""
    if not (path / "config.json").is_file():
        what = "no config.json in it" if path.is_dir() else "directory not found"
        raise UserError(f"{path}: {what}; expected a sentence-transformer or T5 directory on disk")
    if not list(path.glob("*.safetensors")):
        raise UserError(f"{path}: no *.safetensors file; weights in other formats are not loaded")
    try:
        from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel
    except ImportError as error:
        raise UserError(f"{path}: a text model on disk needs transformers; run: pip install transformers") from error
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        encoder = T5EncoderModel if config.model_type in ("t5", "mt5", "umt5") else AutoModel
        model = encoder.from_pretrained(path, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"{path}: cannot load the text model ({str(error).splitlines()[0]})") from error
    return tokenizer, model.eval()
