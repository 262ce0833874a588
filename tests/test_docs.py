"""Numbers in the README and on the page beside the records are those of the records."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RECORDS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "recipes/benchmarks").glob("*.json"))}
NUMBER = r"(-?[\d.]*\d)"
INTERVAL = re.compile(rf"{NUMBER} (?:% |dB |points )?\[{NUMBER}, {NUMBER}\]")


def triples(row: dict[str, Any]) -> list[tuple[float, float, float]]:
    """A number with its interval as it is, in per cent or for all synthetic episodes; of differences either way."""
    value = row.get("value", row.get("difference"))
    if value is None or row.get("low") is None:
        return []
    scales = [1, 100, row["synthetic_per_task"]] if row["metric"] == "real_per_synthetic" else [1, 100]
    found = [(value * scale, row["low"] * scale, row["high"] * scale) for scale in scales]
    return found + [(-value, -high, -low) for value, low, high in found] * ("difference" in row)


def rounds_to(exact: tuple[float, ...], written: tuple[str, ...]) -> bool:
    return all(
        abs(number - float(text)) <= 0.5 * 10 ** -len(text.partition(".")[2]) + 1e-9
        for number, text in zip(exact, written, strict=True)
    )


@pytest.mark.parametrize("page", ["README.md", "recipes/benchmarks/README.md"])
def test_every_interval_that_is_told_stands_somewhere_in_a_record(page: str) -> None:
    """Which row it belongs to is for the reader to check: that needs the words around it."""
    known = [triple for record in RECORDS.values() for row in record["rows"] for triple in triples(row)]
    known += [triple for record in RECORDS.values() for row in record["comparisons"] for triple in triples(row)]
    told = INTERVAL.findall(" ".join((ROOT / page).read_text().split()))
    assert len(told) > 50
    assert [written for written in told if not any(rounds_to(exact, written) for exact in known)] == []


def test_the_table_of_the_study_is_that_of_its_record() -> None:
    """Each cell belongs to the arm of its line, and to the policy and suite of its column."""
    rows = [row for row in RECORDS["ablation-2xcpu-20261126"]["rows"] if row["metric"] == "success" and "arm" in row]
    table = (ROOT / "README.md").read_text().partition("| trained on |")[2].partition("\n\n")[0].splitlines()
    columns = [(policy, suite) for policy in ("pi05_compact", "diffusion_compact") for suite in ("unseen", "position")]
    assert [suite.strip().split()[-1].rstrip("s") for suite in table[0].split("|")[:-1]] == [s for _, s in columns]
    checked = 0
    for line in table[2:]:
        name, *cells = (text.strip() for text in line.strip("|").split("|"))
        feed = "fair" if "`feed=fair`" in name else "paper"
        arm = re.match(r"`(\w+)`", name)
        assert arm, line
        for (policy, suite), cell in zip(columns, cells, strict=True):
            found = [r for r in rows if (r["arm"], r["feed"], r["policy"], r["suite"]) == (arm[1], feed, policy, suite)]
            if arm[1] == "pretrain_finetune":
                share = 0.5 if "`finetune_fraction=0.5`" in name else 0
                found = [row for row in found if row["finetune_fraction"] == share]
            if not cell:
                assert not found, f"{arm[1]} {policy} {suite}: in the record, not in the table"
                continue
            assert len(found) == 1, (arm[1], policy, suite)
            (written,) = INTERVAL.findall(cell)
            assert any(rounds_to(exact, written) for exact in triples(found[0])), (line, cell)
            checked += 1
    assert checked > 25
