"""`vag report RUN_DIR...`: one self-contained HTML page about runs."""

from __future__ import annotations

from pathlib import Path

from recipes.schema import ReportConfig
from toolkit.base.errors import UserError
from toolkit.base.run import Run
from toolkit.reporting.report import write_report
from toolkit.reporting.results import ReportResult


def run(config: ReportConfig, run: Run) -> ReportResult:
    """Write `report.html`."""
    if not config.runs:
        raise UserError("report: name at least one run directory, e.g. vag report outputs/demo")
    page = run.directory / "report.html"
    write_report([Path(path) for path in config.runs], page)
    return ReportResult(page=str(page))


def summary(result: ReportResult) -> str:
    return result.page
