"""Records with rollouts get their intervals again, others are told to be too narrow; measured values stay."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes import recompute
from toolkit.base.errors import UserError
from toolkit.base.reading import read_json
from toolkit.base.typed_json import from_json
from toolkit.reporting.benchmark_record import TOO_NARROW, record_page
from toolkit.reporting.benchmark_results import BenchmarkRecord, Difference, Row

RECORDS = Path(recompute.__file__).parent / "benchmarks"


def read(path: Path) -> BenchmarkRecord:
    return from_json(BenchmarkRecord, read_json(path), path, "record")


def early(line: Any) -> Any:
    """As before: one interval, and a p in comparisons."""
    old = {"low": 0.1, "high": 0.9, "note": None, "low_these_checkpoints": None, "high_these_checkpoints": None}
    return replace(line, **old, **({"p": 0.5, "p_these_checkpoints": None} if isinstance(line, Difference) else {}))


@pytest.fixture
def study() -> BenchmarkRecord:
    """The two arms with a control of the record with the fewest rollouts, as an early version wrote them."""
    record = read(RECORDS / "ablation-task-2xcpu-20261126.json")
    rows = [early(row) for row in record.rows if row.metric == "success"]
    return replace(record, rows=rows, comparisons=[early(one) for one in record.comparisons])


def test_intervals_are_computed_again_from_the_rollouts_beside_a_record(study: BenchmarkRecord) -> None:
    made = recompute.recomputed(study, RECORDS / "ablation-task-2xcpu-20261126.parquet")
    found = {(row.system, row.suite): row for row in made.rows}
    few, cotrain = found["real_few", "unseen"], found["cotrain", "unseen"]
    assert few.low < few.low_these_checkpoints < few.value < few.high_these_checkpoints <= few.high
    assert (cotrain.low, cotrain.high) == (None, None)
    assert cotrain.note == "no interval of systems: 2 generators behind 3 training runs, it takes 3"
    assert cotrain.low_these_checkpoints < cotrain.value < cotrain.high_these_checkpoints
    assert [row.value for row in made.rows] == [row.value for row in study.rows]
    assert all((one.p, one.low) == (None, None) and one.p_these_checkpoints is not None for one in made.comparisons)
    assert found["synthetic generator_data=same_tasks", "synthetic scenes"].note.startswith(
        TOO_NARROW
    )  # their replays are not kept
    assert "computed again from the rollouts in ablation-task-2xcpu-20261126.parquet" in made.notes["computed again"]
    assert made.notes["generators"] == (
        "2 behind 3 training seeds of the policies: too few for an interval of systems of what they taught"
    )
    again = recompute.recomputed(made, RECORDS / "ablation-task-2xcpu-20261126.parquet")
    assert again == made
    other = replace(study, rows=[replace(row, value=row.value + 0.01) for row in study.rows])
    with pytest.raises(UserError, match="by these rollouts"):
        recompute.recomputed(other, RECORDS / "ablation-task-2xcpu-20261126.parquet")


def test_without_rollouts_intervals_of_several_seeds_are_marked_and_those_of_one_are_named() -> None:
    where: Any = {"suite": "dense", "low": 0.3, "high": 0.6, "n": 90}
    rows = [
        Row(system="ours", metric="replay_success", value=0.5, seeds=3, **where),
        Row(system="lone", metric="replay_success", value=0.5, seeds=1, **where),
        Row(system="ours", metric="training_minutes", value=0.5, seeds=3, **where),
        Row(system="recorded", metric="replay_success", value=0.5, seeds=0, **where),
    ]
    pair: Any = {"suite": "dense", "metric": "replay_success", "paired": True, "difference": 0.1, "p": 0.02}
    pairs = [Difference(a=a, b="theirs", low=0.05, high=0.2, **pair) for a in ("ours", "lone")]
    record = replace(read(RECORDS / "generators-h100-20261126.json"), rows=rows, comparisons=pairs)
    made = recompute.marked(record)
    narrow, lone, minutes, recorded = made.rows
    assert (narrow.low, narrow.high) == (0.3, 0.6)
    assert narrow.note.startswith(TOO_NARROW)
    assert (lone.low, lone.low_these_checkpoints, lone.high_these_checkpoints) == (None, 0.3, 0.6)
    assert [minutes, recorded] == rows[2:]
    assert [(one.p, one.p_these_checkpoints) for one in made.comparisons] == [(0.02, None), (None, 0.02)]
    assert "covers .79" in made.notes[TOO_NARROW]
    page = record_page(made)
    assert "| ours | 0.5 [0.3, 0.6] too narrow | 0.5 [0.3, 0.6] |" in page
    assert "| lone | 0.5, of these checkpoints [0.3, 0.6] |" in page
    assert recompute.marked(made) == made


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_no_record_has_an_interval_of_systems_of_what_two_generators_taught(path: Path) -> None:
    record = read(path)
    assert path.with_suffix(".md").read_text() == record_page(record)
    lines = [*record.rows, *(one for one in record.comparisons if isinstance(one, Difference))]
    taught = [line for line in lines if line.arm not in (None, "real_few", "real_few_augmented", "real_all")]
    assert all(line.low is None or line.note.startswith(TOO_NARROW) for line in taught)
    assert not any(
        one.p for one in lines if isinstance(one, Difference) and not (one.note or "").startswith(TOO_NARROW)
    )
