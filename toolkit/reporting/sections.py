"""What the report shows of what each command found, between the sentences about its runs and its media.

Each function computes texts, numbers and figures, and says by which pieces of `pieces.html.j2` they are laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from toolkit.base.typed_json import to_json
from toolkit.reporting import plots
from toolkit.reporting.benchmark_record import cell_text, system_name
from toolkit.reporting.benchmark_results import (
    AblateResult,
    BenchmarkGeneratorsResult,
    BenchmarkPoliciesResult,
    Difference,
    Row,
)
from toolkit.reporting.generator_results import EvaluateGeneratorResult, ScoreResult, SynthesizeResult
from toolkit.reporting.pages import piece
from toolkit.reporting.results import (
    CollectResult,
    DemoResult,
    GateResult,
    InspectResult,
    PolicyRate,
    ReplayResult,
    RolloutResult,
)
from toolkit.reporting.success import (
    RateRow,
    arm_figures,
    fraction_figures,
    glossary,
    interval_words,
    rates_pieces,
    rates_table,
    row_names,
    successes,
)
from toolkit.reporting.values import distinct, percent

type Results[Kind] = Sequence[tuple[str, Kind]]  # name of a run, what it found
AGAINST_RECORDED = "Generated against recorded, same first picture"


def _demo(runs: Results[DemoResult], has_demo: bool) -> list[Markup]:
    pieces = []
    for _, result in runs:
        rates = [row for row in result.policies if isinstance(row, PolicyRate)]
        policies = [RateRow({"policy": row.policy, "arm": row.arm}, row) for row in rates]
        pieces += rates_pieces(policies, "Policies on unseen scenes")
        systems = [RateRow({"system": one.system}, one.replay_success, one.metrics) for one in result.generator.systems]
        pieces += rates_pieces(systems, "Generator on held-out scenes", has_figure=False)
        if timed := [(stage.name, stage.seconds) for stage in result.stages]:
            caption = "Stages of different policies may run side by side, so the whole takes less than their sum."
            pieces.append(piece("figure", content=plots.duration_bars(timed), caption=caption, title="Time per stage"))
    return pieces


def _collect(runs: Results[CollectResult], has_demo: bool) -> list[Markup]:
    rows = [{"run": name, "task": task, **to_json(one)} for name, result in runs for task, one in result.tasks.items()]
    return [piece("rows_table", rows=rows)]


def _synthesize(runs: Results[SynthesizeResult], has_demo: bool) -> list[Markup]:
    rows = _beside_still(runs)
    drifts = [{"run": name, **to_json(clip)} for name, result in runs for clip in result.drift or ()]
    return [
        piece("rows_table", title=AGAINST_RECORDED, rows=rows),
        piece("rows_table", title="Drift from clip to clip", rows=drifts),
    ]


def _inspect(runs: Results[InspectResult], has_demo: bool) -> list[Markup]:
    """Lists of lines, then the features of each dataset."""
    pieces = []
    for name, result in runs:
        for title, lines in (
            ("Problems before the repair:", result.found),
            ("Repair:", result.fixed),
            ("Problems:", result.problems),
            ("Warnings:", result.warnings),
        ):
            if lines or title == "Problems:":
                pieces.append(piece("lines", title=title, code=name, lines=lines))
        pieces.append(piece("rows_table", title="Features:", code=name, rows=result.features))
    return pieces


def _evaluate_generator(runs: Results[EvaluateGeneratorResult], has_demo: bool) -> list[Markup]:
    replays = [RateRow({"system": name}, result.replay) for name, result in runs if result.replay is not None]
    pieces = rates_pieces(replays, "Replay success of generated actions")
    rows = _beside_still(runs)
    pieces.append(piece("rows_table", title=AGAINST_RECORDED, rows=rows))
    curves = {name: result.success_curve for name, result in runs}
    if lines := {name: (curve.thresholds, curve.success) for name, curve in curves.items() if curve is not None}:
        svg = plots.curves(lines, "Pairs within an action distance", xlabel="action distance")
        caption = "Share of the pairs whose mean action distance is at most the threshold."
        pieces.append(piece("figure", content=svg, caption=caption))
    return pieces


def _beside_still(runs: Results[EvaluateGeneratorResult] | Results[SynthesizeResult]) -> list[dict[str, Any]]:
    """Metrics of each run, and below them those of first pictures that stay."""
    pairs = [
        (name, more) for run, found in runs for name, more in ((run, found.metrics), (f"{run}, still", found.still))
    ]
    return [{"run": name, **metrics} for name, metrics in pairs if metrics]


def _score(runs: Results[ScoreResult | GateResult], has_demo: bool) -> list[Markup]:
    """How many episodes are trusted, beside the baselines, and what each of them scores."""
    pieces = []
    for name, result in runs:
        if (trust := result.trust) is not None:
            rates = {
                "synthetic": trust.episodes,
                "recorded": trust.recorded,
                "still": trust.still,
                "other": trust.other,
            }
            rows = [RateRow({"run": name, "episodes": who}, rate) for who, rate in rates.items() if rate is not None]
            pieces += rates_pieces(rows, "Episodes with no score worse than recorded ones")
        scores = [{"score": key, **to_json(score)} for key, score in result.scores.items()]
        pieces.append(piece("rows_table", title="Scores, and the median of each baseline", rows=scores))
    return pieces


def _gate(runs: Results[GateResult], has_demo: bool) -> list[Markup]:
    """The score, then open-loop errors by arm, beside baselines, and what may be said of them."""
    pieces = _score(runs, has_demo)
    for _, result in runs:
        rows = [{"arm": row.arm, "open-loop error": cell_text(row, row.n)} for row in result.rows]
        rows += [{"arm": "mean action", "open-loop error": f"{result.mean_action:.4g}"}]
        rows += [{"arm": "nearest recorded", "open-loop error": f"{result.nearest_recorded:.4g}"}]
        pieces += [
            piece("rows_table", title="Policies on held-out recordings", rows=rows),
            _differences(result.comparisons, "held_out"),
            piece("lines", title="Verdict:", code="", lines=[result.verdict]),
        ]
    return pieces


def _benchmark_generators(runs: Results[BenchmarkGeneratorsResult], has_demo: bool) -> list[Markup]:
    """Every suite: replay success, all other metrics, what was compared, and what its clip distance is worth."""
    pieces = []
    for _, result in runs:
        for suite, rows in _by_suite(result.rows).items():
            replays = [row for row in rows if row.metric == "replay_success"]
            bars, told = [plots.Bar(row.system, row.rate) for row in replays], f"Intervals: {interval_words(replays)}."
            svg = plots.success_bars(bars, f"Replay success, {suite}") if bars else ""
            figures = [piece("figure", content=svg, caption=told)] if bars else []
            if card := result.validity_cards.get(suite):
                caption = "Dashed: the distance of recorded clips to each other. A useful distance rises."
                figures.append(piece("figure", content=plots.validity_lines(card), caption=caption))
            pieces += [
                *_suite(suite, figures),
                piece("rows_table", rows=_by_system(rows, lambda row: row.system, lambda row: row.value)),
                piece("glossary", names=glossary(row_names(rows))),
                _differences(result.comparisons, suite),
            ]
    return pieces


def _ablate(runs: Results[AblateResult], has_demo: bool) -> list[Markup]:
    """Every suite: success of all systems, success against the synthetic fraction, differences, cells that failed."""
    caption = (
        "0: the few real episodes alone; 1: synthetic episodes alone; between: co-training. Dashed: all real "
        "episodes, where they were tried."
    )
    pieces = []
    for _, result in runs:
        for suite, rows in _by_suite(result.rows).items():
            told = f"Intervals: {interval_words(successes(rows))}."
            figures = [piece("figure", content=svg, caption=told) for svg in arm_figures(rows)]
            figures += [piece("figure", content=svg, caption=f"{caption} {told}") for svg in fraction_figures(rows)]
            rates = [rate_row(row) for row in successes(rows)]
            others = [row for row in rows if row.metric != "success"]
            pieces += [
                *_suite(suite, figures),
                *([piece("table", content=rates_table(rates))] if rates else []),
                piece("rows_table", rows=_by_system(others, system_name, lambda row: cell_text(row, row.n))),
                _differences(result.comparisons, suite),
                piece("glossary", names=glossary(row_names(rows))),
            ]
        failed = [to_json(cell) for cell in result.cells if cell.status == "failed"]
        pieces += [piece("rows_table", title="Cells that failed", rows=failed), _notes(result.notes)]
    return pieces


def rate_row(row: Row) -> RateRow:
    """A row with both intervals; low and high of early records are told with the note that says what they are."""
    of_systems = "" if row.low is None or row.high is None else f"[{percent(row.low)}, {percent(row.high)}]"
    if row.low_these_checkpoints is None and (row.seeds or 0) > 1:
        of_systems += " (too narrow)"
    return RateRow({"policy": row.policy or "", "system": row.system}, row.rate, of_systems=of_systems)


def _benchmark_policies(runs: Results[BenchmarkPoliciesResult], has_demo: bool) -> list[Markup]:
    """Every suite: a leaderboard, whose ranks follow the paired differences below it."""
    pieces = []
    for _, result in runs:
        for suite, board in result.leaderboards.items():
            svg = plots.success_bars([plots.Bar(row.system, row.alone) for row in board], f"Success, {suite}")
            table = piece("rows_table", rows=[to_json(row) for row in board])
            told = f"Intervals: {interval_words(board)}."
            pieces += _suite(suite, [piece("figure", content=svg, caption=told), table])
            pieces.append(_differences(result.comparisons, suite))
        pieces.append(_notes(result.notes))
    return pieces


def _replay(runs: Results[ReplayResult], has_demo: bool) -> list[Markup]:
    systems = [item for _, result in runs for item in result.systems.items()]
    return rates_pieces([RateRow({"system": name}, rate) for name, rate in systems], "Replay success")


def _evaluate(runs: Results[Any], has_demo: bool) -> list[Markup]:
    suites: dict[str, list[RateRow]] = {}
    for result in [result for _, result in runs if isinstance(result, RolloutResult)]:
        for suite, rate in result.suites.items():
            suites.setdefault(suite, []).append(RateRow({"policy": result.policy, "arm": result.arm}, rate))
    # The summary of a demo already shows the figures.
    blocks = [rates_pieces(rows, f"Policy success, {suite} scenes", not has_demo) for suite, rows in suites.items()]
    return [block for pieces in blocks for block in pieces]


def _by_suite(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return {suite: [row for row in rows if row.suite == suite] for suite in distinct(row.suite for row in rows)}


def _by_system(
    rows: Sequence[Row], name: Callable[[Row], str], cell: Callable[[Row], float | str]
) -> list[dict[str, Any]]:
    """A row for each system, a column for each metric."""
    table: dict[str, dict[str, Any]] = {}
    for row in rows:
        table.setdefault(name(row), {"system": name(row)})[row.metric] = cell(row)
    return list(table.values())


def _suite(suite: str, blocks: list[Markup]) -> list[Markup]:
    return [piece("heading", title="Suite", code=suite), piece("pair", blocks=blocks)]


def _differences(comparisons: Sequence[Difference], suite: str) -> Markup:
    rows = [to_json(one) for one in comparisons if one.suite == suite]
    return piece("rows_table", title="Paired differences, a minus b", rows=rows)


def _notes(notes: dict[str, str]) -> Markup:
    """What a record says besides its numbers: how the intervals were made, what was seen, and the like."""
    return piece("named_lines", title="How to read it", lines=notes)


SECTIONS: dict[str, Callable[[Results[Any], bool], list[Markup]]] = {
    "demo": _demo,
    "collect": _collect,
    "inspect": _inspect,
    "synthesize": _synthesize,
    "evaluate-generator": _evaluate_generator,
    "score": _score,
    "gate": _gate,
    "benchmark generators": _benchmark_generators,
    "ablate": _ablate,
    "benchmark policies": _benchmark_policies,
    "replay": _replay,
    "evaluate": _evaluate,
}
