"""`vag push` into a repository that is there: nothing of another dataset stays, nothing private becomes public."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipes.exchange_schema import PushConfig
from recipes.push import check_repository
from toolkit.base.errors import UserError

WHERE = {"repo_id": "me/mixed", "repo_type": "dataset"}


def hub(*files: str, private: bool = True) -> Any:
    return SimpleNamespace(
        repo_info=lambda **where: SimpleNamespace(private=private),
        list_repo_files=lambda revision, **where: list(files),
    )


def config(**options: Any) -> PushConfig:
    return PushConfig(source="dataset", repo_id="me/mixed", **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data/chunk-000").mkdir(parents=True)
    (tmp_path / "data/chunk-000/file-000.parquet").touch()
    return tmp_path


def test_tables_of_a_larger_dataset_that_was_there_are_refused(folder: Path) -> None:
    own, other = (f"data/chunk-000/file-00{k}.parquet" for k in (0, 1))
    check_repository(hub(own, "README.md", ".gitattributes"), config(), WHERE, folder)
    with pytest.raises(UserError, match=r"holds 1 files of another dataset, such as data/chunk-000/file-001\.parquet"):
        check_repository(hub(own, other), config(), WHERE, folder)
    check_repository(hub(own, other), config(), {**WHERE, "repo_type": "model"}, folder)


def test_what_shall_be_private_does_not_go_into_a_public_repository(folder: Path) -> None:
    with pytest.raises(UserError, match="is there and public"):
        check_repository(hub(private=False), config(private=True), WHERE, folder)
    check_repository(hub(private=False), config(), WHERE, folder)
    check_repository(hub(), config(private=True), WHERE, folder)
