"""Progress bars with an ETA."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(items: Iterable[Any] | None = None, *, description: str, total: int | None = None, **options: Any) -> tqdm:
    """A tqdm bar with an ETA; $VAG_PROGRESS_POSITION gives parallel processes a line each."""
    position = int(os.environ.get("VAG_PROGRESS_POSITION", "0"))
    return tqdm(
        items,
        desc=description,
        total=total,
        position=position,
        mininterval=1.0,
        dynamic_ncols=True,
        **options,
    )


def close_progress() -> None:
    """Close bars that an exception left open, so that they do not draw themselves over what is said next."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
