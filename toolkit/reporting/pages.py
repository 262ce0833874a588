"""Pages out of templates: Jinja2 is set up here alone, so that every value is escaped and none may be missing."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from toolkit.reporting import values

TEMPLATES = Environment(
    loader=PackageLoader("toolkit.reporting"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {
    name: getattr(values, name)
    for name in ("flatten", "fraction", "interval", "percent", "shown", "spaced", "tabulate")
}


def page(template: str, **content: Any) -> str:
    """A whole page."""
    return TEMPLATES.get_template(template).render(content)


def piece(macro: str, **content: Any) -> Markup:
    """A piece of the report, as a macro of `pieces.html.j2` lays it out: other pieces and the page take it as it is."""
    return getattr(TEMPLATES.get_template("pieces.html.j2").module, macro)(**content)
