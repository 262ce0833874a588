"""Templates: what a record says is text on a page, and only figures and pieces of a page are laid out as they are."""

import ast
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError, meta, nodes
from markupsafe import Markup

import toolkit.reporting
from toolkit.reporting.pages import TEMPLATES, page, piece

FOLDER = Path(toolkit.reporting.__file__).parent
EVIL = '<script>alert("\'&")</script>'
TAG = re.compile(r"</?[a-zA-Z!]")


def strings(path: Path) -> list[str]:
    """Every string of a Python file, those inside of f-strings too, but no docstring."""
    tree = ast.parse(path.read_text())
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone]
    return [node.value for node in constants if isinstance(node.value, str)]


def test_no_python_file_but_that_of_the_figures_builds_tags() -> None:
    tags = {path.name for path in FOLDER.rglob("*.py") for text in strings(path) if TAG.search(text)}
    assert tags == {"plots.py"}


def test_only_figures_are_trusted() -> None:
    """`Markup(...)` is called where matplotlib has escaped the texts; of pieces the templates themselves say it."""
    calls = [
        (path.name, function.name)
        for path in FOLDER.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Markup"
    ]
    assert calls == [("plots.py", "_inline_svg")]


@pytest.mark.parametrize("name", TEMPLATES.list_templates(extensions=["j2"]))
def test_a_template_trusts_nothing_by_itself(name: str) -> None:
    assert TEMPLATES.loader is not None
    tree = TEMPLATES.parse(TEMPLATES.loader.get_source(TEMPLATES, name)[0])
    assert not {used.name for used in tree.find_all(nodes.Filter)} & {"safe", "tojson", "xmlattr", "urlize"}
    options = [option.key for option in tree.find_all(nodes.EvalContextModifier) for option in option.options]
    assert options == (["autoescape"] if name == "record.md.j2" else [])  # Markdown
    assert set(meta.find_referenced_templates(tree)) <= {"page.css", "pieces.html.j2"}


def test_every_value_is_escaped_and_none_may_be_missing() -> None:
    shown = piece("key_values", title=EVIL, mapping={EVIL: {EVIL: [EVIL, 1.23456]}})
    assert isinstance(shown, Markup)
    assert "<script" not in shown
    assert Markup(shown).striptags().count("alert") == 4
    assert "1.235" in shown
    texts = dict.fromkeys(("id", "title", "purpose"), EVIL)
    blocks = {key: [EVIL, shown] for key in ("sentences", "results", "media", "curves", "details")}
    content = page("page.html.j2", has_demo=True, header=[EVIL], sections=[{**texts, **blocks}])
    assert "<script" not in content
    assert content.count(shown) == len(blocks)
    with pytest.raises(UndefinedError, match="title"):
        piece("key_values", mapping={"a": 1})


def test_a_file_name_cannot_leave_the_attribute_it_stands_in() -> None:
    names = {"run": "run", "file": "a", "caption": "", "alt": f'"{EVIL}'}
    picture = piece("medium", **names, picture='x" onload="y', width=1, height=1)
    assert '"x&#34; onload=&#34;y"' in picture
    assert 'alt="&#34;&lt;script&gt;' in picture


def test_pieces_of_nothing_are_empty() -> None:
    for macro, name in (("rows_table", "rows"), ("glossary", "names"), ("comparisons", "verdicts"), ("pair", "blocks")):
        assert not piece(macro, **{name: []}).strip()
    assert not piece("curves", first=[], other=[]).strip()
    assert not piece("named_lines", title="title", lines={}).strip()
