"""`vag mix`: columns beside state and action that cannot be carried over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recipes import cli
from toolkit.base.files import write_json
from toolkit.base.record import read_record
from toolkit.data.formats.lerobot_layout import INFO

SUBTASK = {"role": "user", "content": "reach", "style": "subtask", "timestamp": 0.0, "camera": None, "tool_calls": None}


@pytest.fixture
def with_column(dataset: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a dataset with one more column; cell: of the row of a number."""

    def write(key: str, dtype: str, width: int, cell: Callable[[int], Any]) -> Path:
        copy = Path(shutil.copytree(dataset, tmp_path / "dataset"))
        info = json.loads((copy / INFO).read_text())
        info["features"][key] = {"dtype": dtype, "shape": [width], "names": None}
        write_json(copy / INFO, info)
        for path in (copy / "data").rglob("*.parquet"):
            rows = pd.read_parquet(path)
            rows.assign(**{key: [cell(k) for k in range(len(rows))]}).to_parquet(path)
        return copy

    return write


def test_a_column_of_language_is_left_out_and_said(
    with_column: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LeRobot keeps subtasks and plans as lists of mappings, which have no statistics."""
    copy = with_column("language_persistent", "language", 1, lambda k: [SUBTASK])
    assert cli.main(["mix", f"real=[{copy}]", f"out={tmp_path / 'out'}"]) == 0
    assert "language_persistent" in capsys.readouterr().out
    assert read_record(tmp_path / "out")["result"]["left_out"] == ["language_persistent"]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (lambda k: np.array([k, np.nan], np.float32), "'force': holds a number that is not finite"),
        (lambda k: np.ones(2 if k else 1, np.float32), "'force': expected 2 numbers in every row"),
        (lambda k: ["a", "b"], "'force': expected 2 numbers in every row"),
    ],
)
def test_a_damaged_column_is_one_line_that_names_the_users_file(
    cell: Callable[[int], Any],
    said: str,
    with_column: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = with_column("force", "float32", 2, cell)
    assert cli.main(["mix", f"real=[{copy}]", f"out={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert f"{copy}/data" in error
    assert not (tmp_path / "out/dataset").exists()
