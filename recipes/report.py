"""`vag report RUN_DIR...`: one self-contained HTML page about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipes.schema import ReportConfig
from toolkit.base.errors import UserError
from toolkit.base.run import Run
from toolkit.reporting.report import write_report


def run(config: ReportConfig, run: Run) -> None:
    """Write `report.html`."""
    if not config.runs:
        raise UserError("report: name at least one run directory, e.g. vag report outputs/demo")
    write_report([Path(path) for path in config.runs], run.directory / "report.html")
    run.result["page"] = str(run.directory / "report.html")


def summary(result: dict[str, Any]) -> str:
    return str(result["page"])
