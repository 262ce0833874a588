"""Progress bars with an ETA; they also raise again an interruption that a library has lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from toolkit.base.processes import processes

LOST_AFTER = 1.0  # seconds: work that goes on for so long after an interruption has not heard of it

_interruptions: list[tuple[float, BaseException]] = []  # the last one, and when it came


class Bar(tqdm):
    def update(self, n: float | None = 1) -> bool | None:
        raise_lost()
        return super().update(n)

    def __iter__(self) -> Iterator[Any]:
        for item in super().__iter__():
            raise_lost()
            yield item


def remember(interruption: BaseException) -> None:
    """For `raise_lost`: Python drops what a signal handler raises inside of a destructor or callback."""
    _interruptions[:] = [(time.monotonic(), interruption)]


def raise_lost() -> None:
    """Raise, once, an interruption that is remembered and was not heard."""
    if _interruptions and time.monotonic() - _interruptions[0][0] > LOST_AFTER:
        raise _interruptions.pop()[1]


def forget() -> None:
    _interruptions.clear()


def progress(items: Iterable[Any] | None = None, *, description: str, total: int | None = None, **options: Any) -> tqdm:
    """A tqdm bar with an ETA; $VAG_PROGRESS_POSITION gives parallel processes a line each.

    Of the processes of one command the main one shows it.
    """
    position = int(os.environ.get("VAG_PROGRESS_POSITION", "0"))
    return Bar(
        items,
        desc=description,
        total=total,
        position=position,
        mininterval=1.0,
        dynamic_ncols=True,
        disable=not processes().is_main,
        **options,
    )


def close_progress() -> None:
    """Close bars that an exception left open, so that they do not draw themselves over what is said next."""
    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()
