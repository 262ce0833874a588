"""`vag push`: a dataset, a policy or a generator on the Hugging Face hub, with a card that says what it is.

What is uploaded is made as a folder first, which `dry_run=true` leaves there: hard links to large files, where the
file system has such, and texts without the paths of this machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from recipes.cards import Thing, card, cleaned, is_place, open_thing
from recipes.exchange_schema import PushConfig
from recipes.lerobot_files import CARD
from toolkit.base.errors import UserError, warn
from toolkit.base.progress import progress
from toolkit.base.reading import read_json
from toolkit.base.run import Run
from toolkit.data.formats.lerobot_layout import INFO, check_links, data_files, read_info
from toolkit.data.formats.lerobot_read import read_table
from toolkit.reporting.cards import Measured, measured
from toolkit.reporting.exchange_results import PushResult

FOLDER = "upload"
LARGE_BYTES = 5 * 10**9  # from here on in several commits, which can go on where they were cut
READ_ALONG = ("data/", "meta/episodes/", "videos/")  # folders of a dataset in which LeRobot reads whatever there is
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{1,39}")


def run(config: PushConfig, run: Run) -> PushResult:
    """Write the folder, and upload it unless `dry_run`."""
    check_name(config.repo_id, "repo_id")
    for name in config.datasets:
        check_name(name, "datasets")
    if not config.dry_run and get_token() is None:
        raise UserError("push: no token of the Hugging Face hub; log in with `hf auth login`, or set HF_TOKEN")
    thing = open_thing(config.source)
    check_links(thing.directory)
    license = license_of(config, thing)
    runs = [measured(path) for path in config.metrics]
    check_subject(thing, runs)
    tell_places(thing)
    text = card(thing, config.repo_id, license, config.datasets, runs)
    run.add_data(thing.directory, thing.identity)
    files = kept_files(thing.directory)

    def write(folder: Path) -> None:
        for path in progress(files, description="files", unit="file"):
            put(path, folder / path.relative_to(thing.directory))
        (folder / CARD).write_text(text, encoding="utf-8")

    run.make(FOLDER, write)
    size = sum(path.stat().st_size for path in (run.directory / FOLDER).rglob("*") if path.is_file())
    address = None if config.dry_run else upload(config, thing, run.directory / FOLDER, size)
    return PushResult(
        kind=thing.kind,
        repo_id=config.repo_id,
        files=len(files) + 1,
        megabytes=round(size / 1e6, 2),
        folder=FOLDER,
        address=address,
    )


def check_name(name: str, key: str) -> None:
    """Raise UserError unless a name is one of the hub, with its owner."""
    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise HFValidationError("no owner")
    except HFValidationError as error:
        raise UserError(f"{key}: '{name}' is no name on the hub ({str(error)[:100]}); expected owner/name") from error


def license_of(config: PushConfig, thing: Thing) -> str | None:
    """As the user says, or the checkpoint's config; what is not known is said."""
    told = config.license
    if told is None and thing.kind != "dataset":
        own = read_json(thing.directory / "config.json").get("license")
        told = own if isinstance(own, str) else None
    if told is None and thing.kind == "dataset":
        own = read_info(thing.directory).get("license")
        told = own if isinstance(own, str) else None
    if told is None:
        warn(f"license: nobody says it of {thing.directory}; the card says unknown. Give license=cc-by-4.0 or the like")
        return "unknown"
    if not LICENSE.fullmatch(told):
        raise UserError(f"license: '{told}' is no name of the hub's; expected such as apache-2.0, cc-by-4.0 or other")
    return told


def check_subject(thing: Thing, runs: list[Measured]) -> None:
    """Raise UserError for numbers that are of something else; of outcomes judged elsewhere nobody can tell."""
    for one in runs:
        if one.subject is None:
            warn(f"metrics: {one.directory}: judged elsewhere, so nothing says that it is of {thing.directory}")
        elif thing.identity not in one.subject:
            raise UserError(
                f"metrics: {one.directory}: measured {', '.join(sorted(one.subject)) or 'nothing that has an id'}, not "
                f"{thing.directory} ({thing.identity}); give runs that read it as it is now"
            )


def tell_places(thing: Thing) -> None:
    """Warn where notes of episodes hold paths of this machine: tables are uploaded as they are."""
    if thing.kind != "dataset":
        return
    rows = read_table(thing.directory).metadata
    keys = {key for row in rows for key, value in row.items() if isinstance(value, str) and is_place(value)}
    if keys:
        named = ", ".join(sorted(keys))
        warn(f"{thing.directory}: {named} of its episodes hold paths of a machine, which are uploaded as they are")


def kept_files(directory: Path) -> list[Path]:
    """All regular files but hidden ones, records of runs, an earlier card and pictures that a writer left."""
    found = []
    for path in data_files(directory):
        parts = path.relative_to(directory).parts
        hidden = any(part.startswith(".") for part in parts)
        if (
            not hidden
            and parts not in ((CARD,), ("run.json",))
            and not (parts[0] == "images" and (directory / INFO).is_file())
        ):
            found.append(path)
    return found


def put(path: Path, target: Path) -> None:
    """A hard link, or a copy where there are none; JSON without paths of this machine."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        values = read_json(path)
        if (told := cleaned(values)) != values:
            target.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
            return
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def upload(config: PushConfig, thing: Thing, folder: Path, size: int) -> str:
    """Upload the folder; the address that it then has. Raises UserError, one line, for whatever the hub refuses."""
    api: Any = HfApi()
    where = {"repo_id": config.repo_id, "repo_type": thing.repo_type}
    try:
        api.create_repo(**where, private=config.private, exist_ok=True)
        if config.revision:
            api.create_branch(**where, branch=config.revision, exist_ok=True)
        check_repository(api, config, where, folder)
        send = api.upload_large_folder if size > LARGE_BYTES else api.upload_folder
        send(**where, folder_path=folder, revision=config.revision)
        if thing.kind == "dataset":  # by which LeRobot knows that it can read the dataset
            version = str(read_info(thing.directory)["codebase_version"])
            with suppress(RevisionNotFoundError):
                api.delete_tag(config.repo_id, tag=version, repo_type="dataset")
            api.create_tag(config.repo_id, tag=version, revision=config.revision, repo_type="dataset")
    except UserError:
        raise
    except Exception as error:  # the hub's client and its network library have a class for each
        line = " ".join((str(error) or type(error).__name__).split())[:200]
        raise UserError(
            f"push: the Hugging Face hub does not take {config.repo_id} ({type(error).__name__}: {line}); check the "
            "name, the token (`hf auth login`) and the network, then go on with resume=true"
        ) from error
    return f"https://huggingface.co/{'datasets/' if thing.kind == 'dataset' else ''}{config.repo_id}"


def check_repository(api: Any, config: PushConfig, where: dict[str, str], folder: Path) -> None:
    """Raise UserError for a repository that everybody sees though `private` is asked for, or one of another dataset.

    LeRobot reads all tables of a repository, so those of a dataset that was there before would be rows of this one.
    """
    if config.private and getattr(api.repo_info(**where), "private", None) is False:
        raise UserError(f"private=true: {config.repo_id} is there and public; make it private in its settings first")
    own = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    there = (api.list_repo_files(**where, revision=config.revision) or []) if where["repo_type"] == "dataset" else []
    if others := [name for name in there if name.startswith(READ_ALONG) and name not in own]:
        raise UserError(
            f"push: {config.repo_id} holds {len(others)} files of another dataset, such as {others[0]}, which LeRobot "
            "would read along; delete them there, or choose another repo_id or revision"
        )


def summary(result: PushResult) -> str:
    size = f"{result.kind} of {result.files} files, {result.megabytes} MB"
    if result.address is None:
        return f"{size} in {result.folder}, as it would be uploaded to {result.repo_id}"
    return f"{size} at {result.address}"
