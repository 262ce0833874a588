"""`vag benchmark data` at a tiny size: the readers agree on the windows' number, the record says what was measured."""

import json
from pathlib import Path

import pytest

from recipes import cli


@pytest.mark.slow
def test_record_is_printed_and_written(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    words = (f"dataset={dataset}", "num_frames=8", "image_size=32", "repeats=1", "large_gigabytes=1", f"out={out}")
    assert cli.main(["benchmark", "data", *words]) == 0
    line, summary = capsys.readouterr().out.strip().splitlines()[-2:]
    assert summary.startswith("benchmark data: the clip store reads windows at ")
    record = json.loads(line)
    assert record == json.loads((out / "record.json").read_text())
    speeds = {row["system"]: row["value"] for row in record["rows"] if row["suite"] == "windows_8x32x32"}
    assert set(speeds) == {"clip_store", "numpy_memmap", "lerobot_video", "lerobot_images"}
    ratios = {row["b"]: row["value"] for row in record["comparisons"] if row["a"] == "clip_store"}
    assert ratios["lerobot_video"] == pytest.approx(speeds["clip_store"] / speeds["lerobot_video"], rel=0.01)
    assert ratios["lerobot_video"] > 20
    growth = next(row for row in record["rows"] if row["metric"] == "anonymous_memory_growth_mib")
    assert growth["value"] < 64
    of_cameras = {(row["system"], row["metric"]): row["value"] for row in record["rows"] if "1x32x32" in row["suite"]}
    assert of_cameras["jpeg", "megabytes"] > 0
    assert of_cameras["jpeg", "psnr_to_source"] > 30
    assert of_cameras["jpeg", "peak_mib"] < 1.5 * of_cameras["jpeg", "peak_mib_of_first_tenth"]
    assert {"raw", "jpeg", "lerobot_one_core"} <= {
        name for name, metric in of_cameras if metric == "pictures_per_second"
    }
    page = (out / "record.md").read_text()
    assert "| Compared, `windows_8x32x32` | speed ratio |" in page
    assert f"| clip_store / lerobot_video | {ratios['lerobot_video']:,.0f}" in page
    assert not (out / "scratch").exists()
