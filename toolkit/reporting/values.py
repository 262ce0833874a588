"""Values of records as plain text and tables. Templates lay them out and escape them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.base.typed_json import MOST
from toolkit.evaluation.rates import Rate


@dataclass(frozen=True)
class Table:
    """columns: heads, and whether their cells are numbers. rows: the style of each (`total`, `part` or none), cells."""

    columns: list[tuple[str, bool]]
    rows: list[tuple[str, list[str]]]


def tabulate(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Any rows as a table, columns in order of appearance; nested keys are joined by dots."""
    flat = [dict(flatten(row)) for row in rows]
    keys = distinct(key for row in flat for key in row)
    columns = [(spaced(key), any(type(row.get(key)) in (int, float) for row in flat)) for key in keys]
    return Table(columns, [("", [shown(row.get(key)) for key in keys]) for row in flat])


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def fraction(rate: Rate) -> str:
    return f"{shown(rate.successes)}/{shown(rate.n)}"


def interval(rate: Rate) -> str:
    return f"[{percent(rate.low)}, {percent(rate.high)}]"


def percent(rate: float) -> str:
    """A share as a percentage, with a decimal only where there is one."""
    return f"{100 * rate:.1f}".removesuffix(".0")


def duration(seconds: float) -> str:
    """`8.4 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def shown(value: Any) -> str:
    """Four significant digits, thousands set apart, lists with commas; a dash for numbers that none can have meant."""
    if value is None or isinstance(value, dict) or (isinstance(value, int | float) and not -MOST < value < MOST):
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10_000_000 else f"{value / 1e6:,.1f} M"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    return ", ".join(map(shown, value)) if isinstance(value, list) else str(value)


def spaced(key: str) -> str:
    return key.replace("_", " ").replace("/", " ").strip()


def distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(value for value in values if value not in (None, "")))
