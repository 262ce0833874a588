"""The page made from a benchmark's record."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.base.provenance import hardware, versions
from toolkit.base.reading import read_json
from toolkit.base.run import write_json
from toolkit.base.typed_json import from_json
from toolkit.reporting.benchmark_record import record_page, write_record
from toolkit.reporting.benchmark_results import BenchmarkRecord, Difference, Ranked, Ratio, Row


def row(system: str, metric: str, value: float, n: int = 50, **more: Any) -> Row:
    return Row(system=system, suite="easy", metric=metric, value=value, low=0, high=1, n=n, more=more)


def page_lines(rows: Sequence[Row] = (), comparisons: Sequence[Difference | Ratio] = (), **more: Any) -> list[str]:
    where = {"benchmark": "some", "command": "vag some 'a' <b>", "git_sha": "c", "hardware": "2 x CPU", "date": "today"}
    content = {"versions": {"a": "1", "b": "2"}, "notes": {}, "rows": list(rows), "comparisons": list(comparisons)}
    return record_page(BenchmarkRecord(**{**where, **content, **more})).split("\n")


def test_a_page_says_where_its_numbers_come_from_and_escapes_nothing() -> None:
    assert page_lines(notes={"other_words": "x < y & z"}) == [
        "# Benchmark: some",
        "",
        "`vag some 'a' <b>` on 2 x CPU, today, commit `c`.",
        "",
        "- other words: x < y & z",
        "- versions: a 1, b 2",
        "",
    ]


def test_a_table_has_a_row_for_each_system_and_a_column_for_each_metric() -> None:
    rows = [row("ours", "success", 0.5), row("ours", "speed", 1234.5), row("theirs", "success", 0.25, n=40)]
    assert page_lines(rows)[5:] == [
        "",
        "| System, `easy` | success (n = 50) | speed (n = 50) |",
        "| --- | ---: | ---: |",
        "| ours | 0.5 [0, 1] | 1,234 [0, 1] |",
        "| theirs | 0.25 [0, 1], n = 40 |  |",
        "",
    ]


def test_differences_and_ratios_say_what_they_are_and_what_they_are_read_beside() -> None:
    pair: Any = {"a": "ours", "b": "theirs", "suite": "easy", "low": -0.1, "high": 0.2, "paired": True}
    difference = Difference(**pair, metric="success", difference=0.1, p_these_checkpoints=0.5, policy="act")
    assert page_lines([], [difference])[-2] == ("| act: ours - theirs | 0.1 [-0.1, 0.2], p of these checkpoints 0.5 |")
    scenes = {"low_these_checkpoints": 0.05, "high_these_checkpoints": 0.15}
    both = replace(difference, **scenes, p_these_checkpoints=None)
    assert "0.1 [-0.1, 0.2], of these checkpoints [0.05, 0.15] |" in page_lines([], [both])[-2]
    lacking = replace(both, low=None, high=None)
    assert "| 0.1, of these checkpoints [0.05, 0.15] |" in page_lines([], [lacking])[-2]
    early = replace(difference, p_these_checkpoints=None, p=0.5, note="too narrow: generators are shared")
    assert "| 0.1 [-0.1, 0.2] too narrow, largest p of a seed 0.5 |" in page_lines([], [early])[-2]
    ratio = Ratio(**pair, metric="ratio", value=2)
    assert page_lines([], [ratio])[-4:-1] == [
        "| Compared, `easy` | ratio |",
        "| --- | ---: |",
        "| ours / theirs | 2 [-0.1, 0.2] |",
    ]
    assert page_lines([row("ours", "distance", 3, floor=1.5)])[-2] == "| ours | 3 [0, 1], floor 1.5 |"


def test_a_leaderboard_stands_in_the_record(tmp_path: Path) -> None:
    rate: Any = {"successes": 20, "rate": 0.5, "low": 0.25, "high": 0.75, "n": 40, "seeds": 1}
    best = Ranked(rank=1, system="ours", **rate, not_distinguishable_from=None)
    board = [best, replace(best, system="b", not_distinguishable_from="ours")]
    write_record(tmp_path, "some", "vag some", [row("ours", "success", 0.5)], [], {}, {"unseen": board})
    record = read_json(tmp_path / "record.json")
    assert record["leaderboards"]["unseen"][0] == {
        **rate,
        "rank": 1,
        "system": "ours",
        "not_distinguishable_from": None,
    }
    assert from_json(BenchmarkRecord, record, "record.json").leaderboards == {"unseen": board}
    page = (tmp_path / "record.md").read_text()
    assert "| Rank, `unseen` | system | success | not distinguishable from |" in page
    assert "| 1 | b | 0.5 [0.25, 0.75], n = 40 | ours |" in page


def test_many_metrics_take_several_tables_and_absent_systems_stay_out() -> None:
    rows = [row("ours", f"metric_{i}", i) for i in range(7)] + [row("theirs", "metric_6", 1)]
    heads = [line for line in page_lines(rows) if line.startswith("| System")]
    assert [head.count("metric") for head in heads] == [6, 1]
    assert sum(line.startswith("| theirs") for line in page_lines(rows)) == 1


def test_a_record_names_what_else_made_its_stages(tmp_path: Path) -> None:
    def write() -> dict[str, Any]:
        return write_record(tmp_path, "some", "vag some", [row("ours", "success", 0.5)], [], {"a": "b"}).notes

    assert list(write()) == ["a"]
    for k, sha in enumerate(("cafe", "beef")):
        (tmp_path / f"cell/stage_{k}").mkdir(parents=True)
        record = {"command": "x", "status": "finished", "git_sha": sha, "hardware": hardware(), "versions": versions()}
        write_json(tmp_path / f"cell/stage_{k}/run.json", record)
    assert write() == {"a": "b", "code": "trainings and evaluations by commits beef, cafe"}
    assert "- code: trainings and evaluations by commits beef, cafe" in (tmp_path / "record.md").read_text()
    other = {**record, "hardware": "a GPU", "versions": {**versions(), "numpy": "9.9"}}
    write_json(tmp_path / "cell/stage_0/run.json", other)
    assert write()["machines"] == f"trainings and evaluations on {', '.join(sorted([hardware(), 'a GPU']))}"
    assert write()["other_versions"] == "numpy 9.9 made stages"
    assert f"written on {hardware()}" in (tmp_path / "record.md").read_text()
