"""What tells the trainings of a policy apart in a table of outcomes: said where it is a guess."""

from pathlib import Path

import pytest

from recipes import cli


@pytest.mark.parametrize(("column", "guessed"), [("seed", True), ("run", False), ("place", False)])
def test_a_column_that_may_belong_to_the_scene_is_said(
    column: str, guessed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A simulator's table often has the seed of the scene in a column of that name."""
    table = tmp_path / "trials.csv"
    rows = [f"{policy},push{k if column == 'place' else ''},{k},{k % 2}" for policy in "ab" for k in range(4)]
    table.write_text("\n".join([f"policy,scene,{column},success", *rows]))
    assert cli.main(["benchmark", "policies", f"results={table}", f"out={tmp_path / 'out'}"]) == 0
    said = f"the column '{column}' is taken to tell trainings of a policy apart" in capsys.readouterr().err
    assert said == guessed
