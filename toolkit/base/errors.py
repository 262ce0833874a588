"""Errors a user can act on: one line that says what, where, what was expected and what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in the input, not in the code. The command line prints it as one line and exits with 2."""


class NotFiniteError(UserError):
    """NaN or infinity where there must be a number."""


class InUseError(UserError):
    """Another process holds a directory, which it gives free when it is done."""


class Paused(KeyboardInterrupt):
    """The user asked a command to stop here and to go on another day; nothing went wrong."""


class Terminated(KeyboardInterrupt):
    """A signal asked the process to end: all that Ctrl-C cleans up is cleaned up."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def warn(text: str) -> None:
    """One line on stderr about what goes on all the same; of several processes the main one says it."""
    from toolkit.base.processes import processes  # which raises errors of this module

    if processes().is_main:
        print(one_line(f"vag: warning: {text}"), file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """A message as one line of letters that a terminal shows."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in " ".join(text.split()))


def first_line(error: BaseException, most: int = 300) -> str:
    """What an exception of a library says, by its first line; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]


def nearest(name: str, valid: Iterable[str]) -> str:
    """Sentence that names the closest valid name, or lists them all when none is close."""
    names = sorted(valid)
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"Valid: {', '.join(names)}."
