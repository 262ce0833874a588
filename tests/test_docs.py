"""Numbers on the pages are those of the records: tables are written from them, intervals in sentences are looked up.

`python tests/test_docs.py` writes the tables of README.md and docs/ anew, between the comments that name them.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
RECORDS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "recipes/benchmarks").glob("*.json"))}
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
LEAST_INTERVALS = {"README.md": 12, "docs/generators.md": 50, "docs/study.md": 150, "recipes/benchmarks/README.md": 50}
NUMBER = r"(-?[\d.]*\d)"
INTERVAL = re.compile(rf"{NUMBER} (?:% |dB |points |times )?\[{NUMBER}, {NUMBER}\]([†‡]?)")
MARKS = {  # of intervals that are not of systems
    "†": "of these checkpoints: over scenes alone, not over trainings",
    "‡": "too narrow: an early method, no rollouts kept",
}
MARKED = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# What a number of a metric is multiplied by, its decimals and its unit; differences of success are points.
FORMS = {
    "success": (100, 0, " %"),
    "replay_success": (100, 0, " %"),
    "gap_closed": (1, 2, ""),
    "psnr": (1, 1, " dB"),
    "speed_ratio": (1, 0, " times"),
}
# The main arms of the study stand in a record with rollouts too, the others in one without.
WITH_ROLLOUTS = {"real_few", "cotrain", "cotrain_shuffled", "real_all"}
STUDY, ONE_RUN, GPU = "ablation-2xcpu-20261126", "ablation-cpu-2xcpu-20261127", "ablation-h200-20261127"
FAIR, FILTERS, NEW_TASKS = (
    "ablation-fair-2xcpu-20261126",
    "ablation-filter-2xcpu-20261127",
    "ablation-task-2xcpu-20261126",
)
STOCK, LOOKS = "ablation-diffusion-2xcpu-20261127", "policies-2xcpu-20261126"
GENERATORS, PARTIAL, LARGER = "generators-2xcpu-20261123", "generators-2xcpu-20261125", "generators-h100-20261126"
SPEED = "data-2xcpu-20261123"

Fields = dict[str, str]


class Table(NamedTuple):
    """A cell is the row of a record, or the comparison, that has the fields of its line and of its column."""

    corner: str
    lines: dict[str, Fields]
    columns: dict[str, Fields]
    units: bool = False


def with_rollouts(record: str, *names: str) -> str:
    """The record to read systems from: of the study that with rollouts, where it has them all."""
    return ONE_RUN if record == STUDY and WITH_ROLLOUTS.issuperset(names) else record


def systems(record: str, words: dict[str, str], metric: str = "success") -> dict[str, Fields]:
    """Lines of systems as the record calls them, each with what it is in words."""
    lines = ((f"`{name}`{': ' * bool(text)}{text}", name) for name, text in words.items())
    return {label: {"record": with_rollouts(record, name), "metric": metric, "system": name} for label, name in lines}


def changes(record: str, *pairs: str, metric: str = "success") -> dict[str, Fields]:
    """Lines of comparisons `a - b` of a record."""
    split = (pair.split(" - ") for pair in pairs)
    return {
        f"`{a}` over `{b}`": {"record": with_rollouts(record, a, b), "metric": metric, "a": a, "b": b} for a, b in split
    }


def claim(record: str, pair: str, suite: str, **fields: str) -> Fields:
    a, _, b = pair.partition(" - ")
    named = {"a": a, "b": b} if b else {"system": a}
    return {"record": with_rollouts(record, *named.values()), "suite": suite, "metric": "success", **named, **fields}


UNSEEN, POSITION = {"suite": "unseen"}, {"suite": "position"}
PI05, COMPACT = {"policy": "pi05_compact"}, {"policy": "diffusion_compact"}
BOTH_SUITES = {"unseen": UNSEEN, "new positions": POSITION}
ONE_POLICY = {f"`pi05_compact`, {suite}": PI05 | fields for suite, fields in BOTH_SUITES.items()}
BOTH_POLICIES = ONE_POLICY | {
    f"`diffusion_compact`, {suite}": COMPACT | fields for suite, fields in BOTH_SUITES.items()
}
SUITES = {
    "13 pictures, 8 steps apart": {"record": GENERATORS, "suite": "dense"},
    "5 pictures, 24 steps apart": {"record": GENERATORS, "suite": "coarse"},
    "13 pictures, robot left out": {"record": PARTIAL, "suite": "partial"},
    "one GPU, one seed": {"record": LARGER, "suite": "dense"},
}
ARMS = {
    "real_few": "5 real episodes a task",
    "real_few_augmented": "the same, in random colours and sharpness",
    "cotrain": "the 5 and 200 synthetic ones a task, half and half",
    "pretrain_finetune finetune_share=0.25": "synthetic ones for three quarters of the steps, then the 5 at 1e-4",
    "pretrain_finetune finetune_fraction=0.5": "synthetic ones for half of the steps, then as `cotrain` at 1e-4",
    "synthetic_only": "the synthetic ones alone",
    "cotrain_shuffled": "as `cotrain`, with the actions of other episodes of the task",
    "real_all": "the 50 real episodes a task that the generator has seen",
    "cotrain_filtered generator_data=other_tasks filter=replay": "the 5, and successes of a generator of these 5",
    "cotrain_shuffled generator_data=other_tasks": "the 5, and all episodes of that generator, their actions shuffled",
    "real_all generator_data=other_tasks": "the 5 and the real ones of other tasks that it saw, half and half",
}
OVER_FEW = [f"{arm} - real_few" for arm in list(ARMS)[1:6]]
COMPARED = ["action_only", "vag_grid", "two_stage_temporal", "vag_published", "two_stage_resnet"]
VARIANTS = {
    "vag": "11 evaluations, the default",
    "vag_euler_3": "4 evaluations",
    "vag_euler_32": "33 evaluations",
    "vag_synchronised": "both streams in step, as published",
    "vag_inverse_dynamics": "actions of a recorded video",
    "dedicated_inverse_dynamics": "a network for that alone",
    "vag_forward_dynamics": "video of recorded actions",
    "dedicated_forward_dynamics": "a network for that alone",
}
KEPT = ["random", "replay", "no_copies", "limits", "flow", "cycle", "cycle_quarter"]
FAIR_ARM = "cotrain_filtered generator_data=other_tasks filter=replay"

TABLES = {
    "claims": Table(
        "claim",
        {
            "When replayed, generated actions solve unseen scenes": claim(
                GENERATORS, "vag", "dense", metric="replay_success"
            ),
            "They solve more than actions inferred from a generated video, best of two systems": claim(
                GENERATORS, "vag - two_stage_temporal", "dense", metric="replay_success"
            ),
            "They do not solve more than a model without video": claim(
                GENERATORS, "vag - action_only", "dense", metric="replay_success"
            ),
            "200 synthetic episodes a task beside 5 real ones help a policy on unseen scenes": claim(
                STUDY, "cotrain - real_few", "unseen", **PI05
            ),
            "The same where the 5 never put an object": claim(STUDY, "cotrain - real_few", "position", **PI05),
            "The same for `diffusion_compact`": claim(STUDY, "cotrain - real_few", "unseen", **COMPACT),
            "The same from larger generators, on one GPU": claim(GPU, "cotrain - real_few", "unseen", **PI05),
            "Alone, against the 50 recordings a task they were made from: no gain can be told": claim(
                STUDY, "synthetic_only - real_all", "unseen", **PI05
            ),
            "With the actions of other episodes they harm": claim(
                STUDY, "cotrain_shuffled - real_few", "unseen", **PI05
            ),
            "A policy solves two tasks of which only the generator had recordings": claim(
                NEW_TASKS, "cotrain", "task", **PI05
            ),
            "By a generator that saw no more than the policy, one plan a scene: no gain can be told": claim(
                FAIR, f"{FAIR_ARM} - real_few", "unseen", **PI05
            ),
            "The same, eight plans a scene tried in the simulator, two rounds": claim(
                STUDY, f"{FAIR_ARM} - real_few", "unseen", **PI05
            ),
            "LeRobot's `diffusion`, briefly trained: no gain can be told": claim(
                STOCK, "cotrain - real_few", "unseen", policy="diffusion"
            ),
            "Training windows are read faster than by LeRobotDataset (quartiles)": claim(
                SPEED, "clip_store - lerobot_images", "windows_16x64x64", metric="speed_ratio"
            ),
        },
        {"number": {}},
        units=True,
    ),
    "replays": Table("generator", systems("", dict.fromkeys(["vag", *COMPARED], ""), "replay_success"), SUITES),
    "over": Table("points", changes("", *(f"vag - {name}" for name in COMPARED), metric="replay_success"), SUITES),
    "fidelity": Table("dB", changes("", "vag - vag_grid", metric="psnr"), SUITES),
    "variants": Table(
        "the same weights, but for the dedicated ones",
        {label: fields | {"suite": "dense"} for label, fields in systems(GENERATORS, VARIANTS).items()},
        {"replays solved, %": {"metric": "replay_success"}, "video, dB": {"metric": "psnr"}},
    ),
    "study": Table("trained on", systems(STUDY, ARMS), BOTH_POLICIES),
    "gain": Table("points", changes(STUDY, *OVER_FEW, "real_all - real_few"), BOTH_POLICIES),
    "bar": Table(
        "points", changes(STUDY, *(f"{arm} - real_all" for arm in ("synthetic_only", "cotrain"))), BOTH_POLICIES
    ),
    "gap": Table(
        "share of the gap",
        systems(STUDY, dict.fromkeys(["synthetic_only", "cotrain"], ""), "gap_closed"),
        BOTH_POLICIES,
    ),
    "control": Table(
        "points", changes(ONE_RUN, "cotrain_shuffled - real_few", "cotrain - cotrain_shuffled"), BOTH_POLICIES
    ),
    "mixing": Table("points", changes(STUDY, "cotrain - synthetic_only"), BOTH_POLICIES),
    "larger": Table(
        "points",
        changes(
            GPU, *(f"{arm} - real_few" for arm in ("cotrain", "real_all", "cotrain_shuffled")), "cotrain - real_all"
        ),
        BOTH_POLICIES,
    ),
    "tasks": Table(
        "success, %",
        systems(NEW_TASKS, dict.fromkeys(["real_few", "cotrain", "cotrain_shuffled"], "")),
        {"two tasks without real episodes": PI05 | {"suite": "task"}, "the three others": PI05 | UNSEEN},
    ),
    "other_tasks_one": Table("points, one plan a scene", changes(FAIR, f"{FAIR_ARM} - real_few"), BOTH_POLICIES),
    "other_tasks": Table(
        "points, eight plans a scene, two rounds",
        changes(STUDY, f"{FAIR_ARM} - real_few", f"{FAIR_ARM} - real_all generator_data=other_tasks"),
        BOTH_POLICIES,
    ),
    "filters": Table(
        "points", changes(FILTERS, *(f"cotrain_filtered filter={name} - cotrain" for name in KEPT)), ONE_POLICY
    ),
    "looks": Table(
        "success, %",
        systems(
            LOOKS,
            {
                f"{policy}_{arm}": ""
                for policy in ("pi05_compact", "diffusion_compact")
                for arm in ("real_few", "cotrain", "synthetic_only", "real_all")
            },
        ),
        {"other looks": {"suite": "visual"}, "other words": {"suite": "language"}},
    ),
    "stock": Table(
        "points",
        changes(STOCK, *(f"{arm} - real_few" for arm in ("cotrain", "cotrain_shuffled", "real_all"))),
        {name: fields | {"policy": "diffusion"} for name, fields in BOTH_SUITES.items()},
    ),
}


def row_of(fields: Fields) -> dict[str, Any] | None:
    """The one row or comparison of a record with these fields, or None. Raises ValueError where there are several."""
    wanted = {key: value for key, value in fields.items() if key != "record"}
    rows = RECORDS[fields["record"]]["comparisons" if "a" in wanted else "rows"]
    found = [row for row in rows if wanted.items() <= row.items()]
    if len(found) > 1:
        raise ValueError(f"{fields}: {len(found)} rows of the record")
    return found[0] if found else None


def short(number: float, decimals: int) -> str:
    """Whole numbers have a decimal where they would be 0 without it."""
    text = f"{number:.{decimals or int(abs(number) < 0.95)}f}"
    return text if float(text) else "0"


def interval_of(row: dict[str, Any]) -> tuple[float, float, str]:
    """The bounds of a number that are told, of systems where they are known, and the mark of what they are."""
    if row["low"] is None:
        return row["low_these_checkpoints"], row["high_these_checkpoints"], "†"
    return row["low"], row["high"], "‡" * row.get("note", "").startswith("too narrow")


def cell(fields: Fields, units: bool = False) -> str:
    """`+24 [14, 35]`, with units `+24 points [14, 35]`, a mark behind; empty where the record has no such number."""
    if (row := row_of(fields)) is None:
        return ""
    factor, decimals, unit = FORMS[fields["metric"]]
    *bounds, mark = interval_of(row)
    numbers = (row.get("value", row.get("difference")), *bounds)
    value, low, high = (short(number * factor, decimals) for number in numbers)
    if "difference" in row:
        value, unit = "+" * (float(value) > 0) + value, unit.replace("%", "points")
    return f"{value}{unit * units} [{low}, {high}]{mark}"


def rollouts(fields: Fields) -> str:
    """How many rollouts, scenes or windows a number is of; of a difference, on either side."""
    fields = {key: value for key, value in fields.items() if key != "b"}
    fields["system"] = fields.pop("a", fields.get("system", ""))
    fields["metric"] = {"speed_ratio": "windows_per_second"}.get(fields["metric"], fields["metric"])
    row = row_of(fields)
    return f"{row['n']:,}" if row else ""


def text_of(table: Table, page: str) -> str:
    """The table in Markdown with n and its records: in each line if it has units, else below."""
    heads = [table.corner, *table.columns, *["n", "record"] * table.units]
    rows: list[list[str]] = []
    used: list[Fields] = []
    for label, line in table.lines.items():
        cells = [(line | column, cell(line | column, table.units)) for column in table.columns.values()]
        filled = [fields for fields, text in cells if text]
        rows.append([label, *(text for _, text in cells), *sources(filled, page) * table.units])
        used += filled
    lines = [f"| {' | '.join(row)} |" for row in [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]]
    n, records = sources(used, page)
    lines += [f"\nn = {n}. Record: {records}."] * (not table.units)
    legend = [f"{mark} {text}." for mark, text in MARKS.items() if any(mark in line for line in lines)]
    return "\n".join(lines + [f"\n{' '.join(legend)}"] * bool(legend)) + "\n"


def sources(cells: list[Fields], page: str) -> list[str]:
    """How many rollouts the cells are of, and links to their records."""
    records = dict.fromkeys(fields["record"] for fields in cells)
    links = (f"[{name}]({'../' * page.count('/')}recipes/benchmarks/{name}.md)" for name in records)
    return [", ".join(dict.fromkeys(map(rollouts, cells))), ", ".join(links)]


def rewritten(page: str) -> str:
    """The page with its tables as the records have them."""
    text = (ROOT / page).read_text()
    return MARKED.sub(lambda found: found[1] + text_of(TABLES[found[2]], page) + found[3], text)


def triples(row: dict[str, Any]) -> list[tuple[float, float, float, str]]:
    """A number with each of its intervals and their mark.

    As it is, in per cent or for all synthetic episodes; of differences either way.
    """
    value = row.get("value", row.get("difference"))
    scales = [1, 100, row["synthetic_per_task"]] if row["metric"] == "real_per_synthetic" else [1, 100]
    intervals = [] if row["low"] is None else [interval_of(row)]
    if "low_these_checkpoints" in row:
        intervals.append(interval_of({**row, "low": None}))
    found = [(value * scale, low * scale, high * scale, mark) for scale in scales for low, high, mark in intervals]
    return found + [(-value, -high, -low, mark) for value, low, high, mark in found] * ("difference" in row)


def rounds_to(exact: tuple[float, float, float, str], written: tuple[str, ...]) -> bool:
    """If these are the numbers that are written, with the mark of what the interval is."""
    return exact[3] == written[3] and all(
        abs(number - float(text)) <= 0.5 * 10 ** -len(text.partition(".")[2]) + 1e-9
        for number, text in zip(exact[:3], written[:3], strict=True)
    )


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_those_of_the_records(page: str) -> None:
    assert rewritten(page) == (ROOT / page).read_text(), "`python tests/test_docs.py` writes the tables anew"


def test_every_table_stands_on_one_page_and_none_is_empty() -> None:
    names = [name for page in PAGES for _, name, _ in MARKED.findall((ROOT / page).read_text())]
    assert sorted(names) == sorted(TABLES)
    assert all(
        any(cell(line | column) for column in t.columns.values()) for t in TABLES.values() for line in t.lines.values()
    )


def test_fields_that_fit_several_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of the record"):
        row_of({"record": STUDY, "metric": "success", "system": "cotrain", **PI05})


@pytest.mark.parametrize("page", [*PAGES, "recipes/benchmarks/README.md"])
def test_every_interval_that_is_told_stands_somewhere_in_a_record(page: str) -> None:
    """Which row it belongs to is for the reader to check: that needs the words around it."""
    known = [triple for record in RECORDS.values() for row in record["rows"] for triple in triples(row)]
    known += [triple for record in RECORDS.values() for row in record["comparisons"] for triple in triples(row)]
    told = INTERVAL.findall(" ".join((ROOT / page).read_text().split()))
    assert len(told) >= LEAST_INTERVALS.get(page, 0)
    assert [written for written in told if not any(rounds_to(exact, written) for exact in known)] == []
    marks = {mark for *_, mark in told if mark}
    assert [mark for mark in marks if f"{mark} {MARKS[mark]}" not in " ".join((ROOT / page).read_text().split())] == []


def test_the_table_of_the_study_is_that_of_its_record() -> None:
    """Each cell belongs to the arm of its line, and to the policy and suite of its column: read back from the page."""
    studies = [RECORDS[STUDY]["rows"], RECORDS[ONE_RUN]["rows"]]
    rows = [[row for row in study if row["metric"] == "success" and "arm" in row] for study in studies]
    table = (ROOT / "docs/study.md").read_text().partition("| trained on |")[2].partition("\n\n")[0].splitlines()
    columns = [(policy, suite) for policy in ("pi05_compact", "diffusion_compact") for suite in ("unseen", "position")]
    assert [heading.split()[-1].rstrip("s") for heading in table[0].split("|")[:4]] == [suite for _, suite in columns]
    checked = 0
    for line in table[2:]:
        name, *cells = (text.strip() for text in line.strip("|").split("|")[:5])
        arm, *options = name.split("`")[1].split()
        for (policy, suite), text in zip(columns, cells, strict=True):
            fields = {
                "generator_data": "same_tasks",
                "policy": policy,
                "suite": suite,
                **dict(word.split("=") for word in options),
            }
            some = rows[not options and arm in WITH_ROLLOUTS]
            found = [r for r in some if r["arm"] == arm and all(str(r[key]) == value for key, value in fields.items())]
            if not text:
                assert not found, f"{arm} {policy} {suite}: in the record, not in the table"
                continue
            assert len(found) == 1, (arm, policy, suite)
            (written,) = INTERVAL.findall(text)
            assert any(rounds_to(exact, written) for exact in triples(found[0])), (line, text)
            checked += 1
    assert checked > 25


def test_the_readme_is_short_and_names_the_commands_that_set_everything_up() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    assert re.findall(r"^    make ([\w-]+)", text, re.MULTILINE) == ["demo", "test"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)[^)]*\)", (ROOT / page).read_text())
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_the_pages_exist_and_take_their_options(page: str) -> None:
    from recipes.cli import COMMANDS, keyed_words
    from recipes.compose import checked_config, compose_config

    def split(words: str) -> tuple[str, list[str]]:
        command = next((name for name in COMMANDS if f"{words} ".startswith(f"{name} ")), "")
        assert command, f"vag {words}: no such command"
        return command, keyed_words(command, shlex.split(words[len(command) :], comments=True))

    text = (ROOT / page).read_text()
    for words in re.findall(r"^    vag (.+)", text, re.MULTILINE):
        checked_config(*split(words))
    for line in text.splitlines():
        code = re.findall(r"`([^`]+)`", line)
        named = [split(words.removeprefix("vag ")) for words in code if words.startswith("vag ") and "<" not in words]
        options = [word for word in code if "=" in word and "..." not in word and not word.startswith("vag ")]
        if line.startswith("| `vag ") and named:  # a line about a command: options that it names are those of it
            compose_config(named[0][0], shlex.split(" ".join(options)))
    if page == "docs/commands.md":
        assert set(re.findall(r"^\| `vag ([a-z -]+)`", text, re.MULTILINE)) == set(COMMANDS)


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(rewritten(page))
