"""`vag export`: a dataset, recorded or synthetic, as one HDF5 file in robomimic's layout."""

from __future__ import annotations

from pathlib import Path

from recipes.schema import ExportConfig
from toolkit.base.progress import progress
from toolkit.base.run import Run
from toolkit.data.formats.export import export_robomimic
from toolkit.data.formats.lerobot_layout import read_info
from toolkit.data.formats.lerobot_read import dataset_id
from toolkit.reporting.results import ExportResult


def run(config: ExportConfig, run: Run) -> ExportResult:
    """Write `dataset.hdf5` into the run directory."""
    dataset, target = Path(config.dataset), run.directory / "dataset.hdf5"
    read_info(dataset)
    identity = dataset_id(dataset)  # refuses links out of the dataset before anything is decoded
    result = export_robomimic(
        dataset,
        target,
        config.jpeg_quality,
        config.compress,
        lambda episodes, total: progress(episodes, description="export", total=total, unit="ep"),
    )
    run.add_data(dataset, identity, result["episodes"])
    return ExportResult(**result, megabytes=round(target.stat().st_size / 1e6, 2), file="dataset.hdf5")


def summary(result: ExportResult) -> str:
    return f"{result.episodes} episodes, {result.frames} frames, {result.megabytes} MB"
