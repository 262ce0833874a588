"""Validation of a LeRobotDataset v3: everything that breaks training or lies, found in one pass over the dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.base.errors import UserError
from toolkit.data.formats.lerobot_layout import check_links
from toolkit.data.inspection.contents import Contents, Findings, flat_names, read_contents
from toolkit.data.inspection.picture_checks import CameraSample, check_pictures
from toolkit.data.inspection.row_checks import check_rows
from toolkit.data.inspection.stats_checks import check_statistics
from toolkit.data.seen_scenes import read_scenes


@dataclass
class Inspection:
    """What a dataset holds and what is wrong with it."""

    contents: Contents
    findings: Findings
    pictures: dict[str, CameraSample]  # by camera

    @property
    def problems(self) -> list[str]:
        return [problem.text for problem in self.findings.problems]

    @property
    def warnings(self) -> list[str]:
        return self.findings.warnings

    def feature_table(self) -> list[dict[str, Any]]:
        """key, dtype, shape and names of every feature, as info.json states them."""
        return [
            {
                "key": key,
                "dtype": feature["dtype"],
                "shape": " x ".join(map(str, feature["shape"])),
                "names": ", ".join(flat_names(feature.get("names"))),
            }
            for key, feature in self.contents.features.items()
        ]


def inspect_dataset(directory: str | Path) -> Inspection:
    """Read and check a dataset; nothing is written.

    Raises UserError only where nothing can be read: no info.json, another version, no readable Parquet file,
    or a link that leads out of the dataset.
    Whatever else is wrong becomes a line in `problems` or `warnings`.
    """
    check_links(Path(directory))
    findings = Findings()
    contents = read_contents(Path(directory), findings)
    check_rows(contents, findings)
    try:
        read_scenes(contents.directory / "meta")
    except UserError as error:
        findings.add("rewrite", f"{error}; bring the file back, or delete it if the scenes do not matter")
    pictures = check_pictures(contents, findings)
    check_statistics(contents, {camera: sample.levels for camera, sample in pictures.items()}, findings)
    return Inspection(contents, findings, pictures)
