"""Tables of outcomes that were judged elsewhere: what is read, what is refused with its row, what is left out."""

from pathlib import Path

import numpy as np
import pytest

from toolkit.base.errors import UserError
from toolkit.evaluation.judged import read_judged
from toolkit.evaluation.systems import compare_success

HEAD = "policy,scene,success\n"


def table(path: Path, text: str) -> Path:
    path = path / "trials.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_policies_are_paired_by_scene_whatever_the_order_of_rows(tmp_path: Path) -> None:
    text = HEAD + "a,cup left,1\nb,cup right,0\nb,cup left,yes\na,cup right,FALSE\n"
    systems = read_judged(table(tmp_path, text)).tables()[0]["trials"]
    np.testing.assert_array_equal(systems["a"].outcomes, [[1, 0]])
    np.testing.assert_array_equal(systems["b"].outcomes, [[1, 0]])
    assert compare_success(systems["a"], systems["b"])["difference"] == 0


def test_runs_suites_and_arms_are_told_apart(tmp_path: Path) -> None:
    lines = [
        f"{p},{k},{int(k < r + 3)},{r},{s},{p}rm" for p in "ab" for r in range(3) for s in ("x", "y") for k in range(8)
    ]
    judged = read_judged(table(tmp_path, "policy,scene,success,run,suite,arm\n" + "\n".join(lines)))
    found, left = judged.tables()
    assert [*found] == ["x", "y"]
    assert found["x"]["a"].outcomes.shape == (3, 8)
    assert found["y"]["b"].outcomes.sum(1).tolist() == [3, 4, 5]
    assert (left, judged.arms) == ([], {"a": "arm", "b": "brm"})


def test_discards_and_scenes_that_not_all_met_are_counted(tmp_path: Path) -> None:
    text = "policy,scene,success,discard,reason,operator\n"
    text += (
        "".join(f"a,{k},1,,,me\n" for k in range(4)) + "b,0,1,,,me\nb,1,0,,,me\nb,2,,,gripper jammed,me\nb,9,1,1,,me\n"
    )
    judged = read_judged(table(tmp_path, text))
    found, left = judged.tables()
    assert found["trials"]["a"].outcomes.shape == (1, 2)
    assert left == ["trials: a: 2 of 4 trials, in scenes that not all runs met"]
    assert judged.discarded == {"b": 2}
    assert judged.unread == ["operator"]


def test_a_parquet_file_reads_alike(tmp_path: Path) -> None:
    import pandas as pd

    rows = {"policy": ["a", "a", "b", "b"], "scene": [1, 2, 1, 2], "success": [True, False, None, True]}
    pd.DataFrame({**rows, "reason": [None, None, "lost", None]}).to_parquet(tmp_path / "trials.parquet")
    judged = read_judged(tmp_path / "trials.parquet")
    assert judged.outcomes == {"trials": {"a": {"": {"1": True, "2": False}}, "b": {"": {"2": True}}}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("policy,scene,sucess\na,1,1\n", "no column 'success'. Did you mean"),
        (HEAD, "holds no trial"),
        (HEAD + "a,1,1\na,2,maybe\n", "line 3: 'success' is 'maybe'; expected 1 or 0"),
        (HEAD + "a,1,2\n", "line 2: 'success' is '2'"),
        (HEAD + "a,1,\n", "line 2: 'success' is empty"),
        (HEAD + "a,,1\n", "line 2: 'scene' is empty"),
        (HEAD + "a,1\n", "line 2: has 2 cells, the header 3"),
        (HEAD + "a,1,1\na,1,0\n", "line 3: policy 'a' has met scene '1' in line 2 already"),
        (HEAD + 'a,1,"1\n', "cannot be read as CSV"),
        ("policy,scene,success,success\na,1,1,1\n", "two columns 'success'"),
        ("policy,scene,success,run\na,1,1,\n", "line 2: 'run' is empty"),
    ],
)
def test_what_cannot_be_read_names_its_row(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        read_judged(table(tmp_path, text))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_policies_without_a_common_scene_are_refused(tmp_path: Path) -> None:
    judged = read_judged(table(tmp_path, HEAD + "a,1,1\nb,2,1\n"))
    with pytest.raises(UserError, match="no scene of suite 'trials' was met by all of a, b"):
        judged.tables()
