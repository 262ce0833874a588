"""Instructions as a pretrained video model reads them: tokens of its own text encoder.

B texts, L tokens, Dt numbers of a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vag_core.backbones.directory import ModelDirectory

KEPT = 1024  # texts in memory, of up to a megabyte each


class TextTokens:
    """Instructions as tokens (B, L, Dt) of a video model's text encoder, from the disk cache where it has them."""

    def __init__(self, directory: ModelDirectory, device: str, views: str = "") -> None:
        """directory: of `directory.locate`; views: what is said after each text of the cameras, '' for nothing."""
        self.directory, self.device, self.views = directory, device, views
        self._kept, self._length = dict[str, Tensor | None](), 0

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode what the cache lacks, now, so that the encoder need not be loaded again beside the model."""
        for start in range(0, len(texts), 64):
            self(texts[start : start + 64])

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B, L, Dt) float32. Raises ValueError for a model without its text encoder."""
        said = [f"{text}; {self.views}" if self.views else text for text in texts]
        return self._of(said)

    def negative(self, prompt: str | None) -> Tensor:
        """(1, L, Dt) of a negative prompt, of the model's own pipeline for None."""
        from vag_core.backbones.text import negative_prompt

        return self._of([negative_prompt(self.directory.kind) if prompt is None else prompt])

    def _of(self, texts: Sequence[str]) -> Tensor:
        from vag_core.backbones.text import text_contexts

        # A thread that makes the next batch calls this too, so what is asked for is held here.
        found = {text: self._kept.get(text) for text in texts}
        if missing := [text for text, rows in found.items() if rows is None]:
            contexts = text_contexts(self.directory, missing, device=self.device)
            self._length = contexts.shape[1]
            found |= {text: _used(rows) for text, rows in zip(missing, contexts, strict=True)}
            self._kept = dict(list({**self._kept, **found}.items())[-KEPT:])
        sequences = [rows for text in texts if (rows := found[text]) is not None]
        tokens = torch.zeros(len(sequences), self._length, sequences[0].shape[1])
        for row, sequence in zip(tokens, sequences, strict=True):
            row[: len(sequence)] = sequence.float()
        return tokens


def _used(rows: Tensor) -> Tensor:
    """(L, Dt) without the zeros at its end, as the cache has it, in memory of its own."""
    used = rows.any(-1).nonzero()
    return rows[: int(used[-1]) + 1 if len(used) else 0].bfloat16().clone()
