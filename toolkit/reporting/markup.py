"""Pieces of HTML: tables, figures and values as escaped text."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from toolkit.evaluation.rates import Rate
from toolkit.reporting import plots


def key_values(mapping: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escaped(key)}</code></td><td>{shown(value)}</td></tr>" for key, value in flatten(mapping)
    )
    return f'<div class="scroll"><table><tr><th>key</th><th>value</th></tr>{rows}</table></div>'


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Any rows as a table: numbers to the right, columns in order of appearance."""
    flat = [dict(flatten(row)) for row in rows]
    keys = distinct(key for row in flat for key in row)
    kinds = {k: ' class="number"' if any(is_number(row.get(k)) for row in flat) else "" for k in keys}
    head = "".join(f"<th{kinds[key]}>{escaped(spaced(key))}</th>" for key in keys)
    body = "".join(f"<tr>{''.join(f'<td{kinds[k]}>{shown(row.get(k))}</td>' for k in keys)}</tr>" for row in flat)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def side_by_side(blocks: Iterable[str]) -> str:
    found = [block for block in blocks if block]
    return f'<div class="pair">{"".join(found)}</div>' if found else ""


def framed(content: str, caption: str) -> str:
    return f"<figure>{content}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def tile(value: str, label: str, small: str) -> str:
    return f"<div><dt>{escaped(label)}</dt><dd>{escaped(value)}<small>{escaped(small)}</small></dd></div>"


def trials(rate: Rate) -> str:
    return f"{fraction(rate)} {interval(rate)}"


def rate_text(rate: Rate) -> str:
    return f"<b>{plots.percent(rate.rate)} %</b> ({trials(rate)})"


def fraction(rate: Rate) -> str:
    return f"{shown(rate.successes)}/{shown(rate.n)}"


def interval(rate: Rate) -> str:
    return f"[{plots.percent(rate.low)}, {plots.percent(rate.high)}]"


def shown(value: Any) -> str:
    """A value as escaped text: four significant digits, thousands set apart, lists with commas."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10_000_000 else f"{value / 1e6:,.1f} M"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return escaped(value if not isinstance(value, dict) else "–")


def escaped(value: Any) -> str:
    return html.escape(str(value))


def spaced(key: str) -> str:
    return key.replace("_", " ").replace("/", " ").strip()


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(value for value in values if value not in (None, "")))
