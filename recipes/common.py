"""Steps that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from toolkit.data.cache import open_clips
from toolkit.data.clips import ClipStore
from toolkit.errors import UserError
from toolkit.reporting.run_record import Run
from vag_core import Generator


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the ValueErrors of `vag_core`, which knows no command line, into one-line errors."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def load_clips(run: Run, source: str | Path, image_size: int, image_key: str) -> ClipStore:
    """Clips of a dataset, noted in the run record."""
    store = open_clips(source, image_size, image_key)
    run.add_data(source, store.source_id, store.num_episodes)
    return store


def load_generator(path: str | Path, device: str) -> Generator:
    """A trained generator. Raises UserError if the directory holds none."""
    with user_errors():
        return Generator.from_pretrained(path, device)


def instruction_encoder(path: str | None) -> Callable[[list[str]], list[str] | Tensor]:
    """Strings as they are, for a generator that learns on bytes, or vectors from a text encoder on disk."""
    if path is None:
        return lambda texts: texts
    from toolkit.data.text import InstructionEmbedder

    embedder = InstructionEmbedder(path=path)
    return lambda texts: torch.as_tensor(embedder.embed(texts))


def pick_device(name: str) -> str:
    """'auto' resolved to what this machine has."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
