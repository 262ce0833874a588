"""Files that somebody else wrote, and disks that are full: one line and nothing left, whatever they hold."""

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from recipes import cli
from toolkit.base import manifest
from toolkit.base.errors import UserError
from toolkit.data.batches import picture_every
from toolkit.data.cache import open_clips
from toolkit.data.clips import ClipStore
from toolkit.data.conventions import Conventions
from toolkit.data.episode import STATE, Episode
from toolkit.data.episode_notes import write_notes
from toolkit.data.formats import hdf5_write, lerobot_read, parquet
from toolkit.data.formats.export import export_robomimic
from toolkit.data.formats.hdf5 import HEAP, Hdf5File
from toolkit.data.formats.importers import ImportOptions, open_source
from toolkit.data.formats.lerobot_read import OWN_NOTES
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.images import decode_picture
from toolkit.data.inspection.repair import repair_dataset
from toolkit.data.inspection.validate import inspect_dataset
from toolkit.data.seen_scenes import UNKNOWN, read_scenes, scenes_of
from toolkit.data.selection import select, weights_by

MakeEpisode = Callable[..., Episode]
NAMES = ["y", "x"], ["a", "b"]


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(dataset, tmp_path / "copy")
    return tmp_path / "copy"


def readers(directory: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """Every way in which a dataset is read."""
    return {
        "train": lambda: open_clips(directory, 32),
        "import": lambda: list(open_source(directory, "auto", ImportOptions(), out / "workspace")),
        "export": lambda: export_robomimic(directory, out / "x.hdf5", None, False),
        "inspect": lambda: inspect_dataset(directory),
        "replay": lambda: lerobot_read.read_actions(directory),
        "notes": lambda: lerobot_read.open_notes(directory),
        "identity": lambda: lerobot_read.dataset_id(directory),
    }


def write(target: Path, *episodes: Episode) -> None:
    with EpisodeWriter(target, 20, *NAMES) as writer:
        for episode in episodes:
            writer.add(episode)


def refused(read: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ----------------------------------------------------------------------------------------- the writer


def test_writer_refuses_what_it_did_not_write(tmp_path: Path, moving_square: MakeEpisode) -> None:
    episode, target = moving_square(0), tmp_path / "dataset"
    (target / "mine").mkdir(parents=True)
    (target / "mine/notes.txt").write_text("mine")
    assert "dataset: holds 'mine/notes.txt', which vag did not write" in refused(lambda: write(target, episode))
    assert (target / "mine/notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(target)
    for name in ("file", "link"):
        assert "is not a folder that vag wrote" in refused(lambda name=name: write(tmp_path / name, episode))
    with manifest.recording(tmp_path):
        write(tmp_path / "twice", episode)
        write(tmp_path / "twice", episode)  # what the same run wrote may go
        (tmp_path / "twice/notes.txt").write_text("mine")
        assert "holds 'notes.txt'" in refused(lambda: write(tmp_path / "twice", episode))
    assert (tmp_path / "twice/notes.txt").read_text() == "mine"
    refused(lambda: repair_dataset(inspect_dataset(tmp_path / "twice"), target))  # the other writer of datasets
    assert sorted(p.name for p in tmp_path.iterdir()) == [manifest.MANIFEST, "dataset", "file", "link", "twice"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda e: replace(e, metadata={"score_flow_loss": float("nan")}), "'score_flow_loss' is nan"),
        (lambda e: replace(e, metadata={"score": np.float32(np.inf)}), "'score' is inf"),
        (lambda e: replace(e, states=e.states.astype(np.float64) * 1e300), "'observation.state' holds NaN or infinity"),
        (lambda e: replace(e, actions=np.full_like(e.actions, 3e38)), "stats.json.*expected finite numbers"),
        (lambda e: replace(e, task="x" * 1_000_000), "its instruction has 1000000 letters"),
        (lambda e: replace(e, task="\udcff"), "no UTF-8 text"),
    ],
)
def test_writer_refuses_what_must_not_be_saved(
    tmp_path: Path, moving_square: MakeEpisode, change: Callable[[Episode], Episode], text: str
) -> None:
    with pytest.raises(UserError, match=text) as caught:
        write(tmp_path / "x", moving_square(0), change(moving_square(1)))
    assert str(tmp_path / "x") in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_arrays_in_an_episode_table_are_no_notes() -> None:
    """A column of LeRobot's that somebody renamed."""
    row = {"renamed": np.zeros(2), "listed": [1, 2], "seed": 7, "stats/action/mean": np.zeros(2)}
    assert lerobot_read.provenance(row) == {"seed": 7}


def test_scores_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.parquet"
    for value in (float("nan"), np.float64(np.inf)):
        assert "episode 1: 'score' is " in refused(
            lambda v=value: write_notes(path, ["a", "b"], [{"score": 0.0}, {"score": v}])
        )
    assert not list(tmp_path.iterdir())
    rows = [{"score": 1.0}, {"score": float("nan")}]
    for use in (
        lambda: select(["score<=50%"], rows, np.zeros(2), "x"),
        lambda: weights_by("score", rows, np.zeros(2), "x"),
    ):
        assert "episode 1 has no number 'score'" in refused(use)


def test_nothing_lands_in_the_place_for_temporary_files(
    tmp_path: Path, moving_square: MakeEpisode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeRobot joins videos there; a full disk leaves them."""
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(shutil, "move", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "x", moving_square(0), moving_square(1))
    assert [*tmp_path.iterdir(), *(tmp_path / "tmp").iterdir()] == [tmp_path / "tmp"]
    assert tempfile.tempdir == str(tmp_path / "tmp")


# ----------------------------------------------------------------------------------------- full disks

LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from recipes import cli, terminal
from toolkit.data.clips import write_clips
from toolkit.data.formats.lerobot_read import OWN_NOTES
from toolkit.data.formats.lerobot_write import EpisodeWriter
from toolkit.data.episode import Episode
from toolkit.reporting.media import write_video

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.dont_write_bytecode = True  # Python would keep half a compiled module
out, dataset = Path(sys.argv[1]), sys.argv[2]
rng = np.random.default_rng(0)
episodes = [
    Episode(rng.integers(0, 255, (40, 64, 64, 3), np.uint8), np.zeros((40, 2)), np.zeros((40, 2)), "push", {})
    for _ in range(3)
]

def write_dataset():
    with EpisodeWriter(out / "dataset", 20, ["y", "x"], ["a", "b"]) as writer:
        for episode in episodes:
            writer.add(episode)

def export(name, *more):
    return cli.run_command(["export", dataset, f"out={out / name}", *more])

writers = [
    lambda: export("a"),
    lambda: export("b", "compress=true"),
    lambda: export("c", "jpeg_quality=90"),
    write_dataset,
    lambda: write_video(out / "a.mp4", episodes[0].images, 20),
    lambda: write_clips(out / "a.h5", episodes, 120, 20, "x"),
]
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for write in writers:
        code, made = terminal.guarded(write), sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
        print(code, *made, flush=True)
"""


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, rng = tmp_path_factory.mktemp("noisy") / "dataset", np.random.default_rng(0)
    with EpisodeWriter(path, 20, *NAMES) as writer:
        for _ in range(3):
            zeros = np.zeros((20, 2), np.float32)
            writer.add(Episode(rng.integers(0, 255, (20, 32, 32, 3), np.uint8), zeros, zeros, "push", {"seed": 1}))
    return path


def test_a_full_disk_is_one_line_and_leaves_nothing(noisy: Path, tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does, in the middle of what the libraries write."""
    (tmp_path / "out").mkdir()
    limits = "3000", "20000"
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "out"), str(noisy), *limits]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 6 * len(limits)
    assert done.stderr.count("vag: error:") == len(lines)
    assert done.stderr.count("vag: error: disk full while writing") >= 3 + 3 * len(limits)
    for code, *left in lines:
        assert code == "2"
        assert {Path(name).name for name in left} <= {"run.json", manifest.MANIFEST}


class Full:
    """A file that takes so many bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: memoryview) -> int:
        if len(data) > self.room:
            raise OSError(28, "No space left on device")
        self.room -= len(data)
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def fill(path: Path, room: int) -> None:
    with hdf5_write.new_hdf5(path) as (file, disk):
        disk._file = Full(disk._file, room)
        for episode in range(60):
            group = file.create_group(f"data/demo_{episode}")
            group.create_dataset("rows", data=np.zeros((20, 100)), chunks=(1, 100))
            texts = group.create_dataset("texts", 20, h5py.vlen_dtype(np.uint8))
            texts[:] = [np.arange(100, dtype=np.uint8)] * 20
            group.attrs["text"] = "x" * 1000
            np.testing.assert_array_equal(texts[3], np.arange(100))  # what the disk did not take is still known


def test_hdf5_closes_wherever_the_disk_is_full(tmp_path: Path) -> None:
    """The library would end the process if it saw one failed write; each error is told, and as what it was."""
    for room in [0, 1, 90, 500, 2000, 5000, 30_000, 200_000]:
        with pytest.raises(OSError, match="No space left"):
            fill(tmp_path / "x.h5", room)


def test_export_stops_at_the_first_episode_that_finds_no_room(
    noisy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watch(episodes: Any, total: int) -> Iterator[Episode]:
        for episode in episodes:
            seen.append(total)
            yield episode

    class Small(hdf5_write.ForgivingFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self._file = Full(self._file, 30_000)

    monkeypatch.setattr(hdf5_write, "ForgivingFile", Small)
    with pytest.raises(OSError, match="No space left"):
        export_robomimic(noisy, tmp_path / "x.hdf5", None, False, watch)
    assert seen == [3]
    assert not list(tmp_path.iterdir())


def test_what_is_exported_has_not_changed(noisy: Path, tmp_path: Path) -> None:
    export_robomimic(noisy, tmp_path / "x.hdf5", None, False)
    wanted = list(lerobot_read.read_episodes(noisy))
    with h5py.File(tmp_path / "x.hdf5") as file:
        for number, episode in enumerate(wanted):
            assert np.array_equal(file[f"data/demo_{number}/obs/image"][()], episode.images)
            assert file[f"data/demo_{number}"].attrs["language_instruction"] == episode.task


def heap_entries(data: bytes) -> list[int]:
    """Bytes at which the entries of all heaps begin, but the free rest."""
    found, heap = [], data.find(HEAP)
    while heap >= 0:
        place = heap + 16
        while int.from_bytes(data[place : place + 2], "little"):
            found.append(place)
            place += 16 + (int.from_bytes(data[place + 8 : place + 16], "little") + 7) // 8 * 8
        heap = data.find(HEAP, heap + 1)
    return found


@pytest.mark.parametrize("damage", [bytes(16), b"\1\0\1\0\0\0\0\0" + b"\xf0" + b"\xff" * 7], ids=["zeros", "round"])
def test_heaps_in_which_the_library_would_go_round_for_ever_are_refused(
    noisy: Path, tmp_path: Path, damage: bytes
) -> None:
    """HDF5 2.0 never returns from any of these: an entry of no bytes, and one whose size overflows to none."""
    path = tmp_path / "x.hdf5"
    export_robomimic(noisy, path, None, True)
    whole = path.read_bytes()
    entries = heap_entries(whole)
    assert len(entries) > 3
    for place in entries[:: len(entries) // 3]:
        path.write_bytes(whole[:place] + damage + whole[place + len(damage) :])
        with pytest.raises(UserError, match="heap at byte") as caught, Hdf5File(path) as file:
            file.attributes("data")
        assert str(path) in str(caught.value)
    path.write_bytes(whole)
    with Hdf5File(path) as file:
        assert "env_args" in file.attributes("data")


def test_clip_files_have_no_heap(noisy: Path) -> None:
    assert HEAP not in open_clips(noisy, 32).path.read_bytes()


# ----------------------------------------------------------------------------------------- Parquet


@pytest.mark.parametrize("table", ["data", "meta/episodes", "meta"])
def test_tables_that_announce_too_much_are_refused(
    copy: Path, tmp_path: Path, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = next((copy / table).glob("*.parquet" if table == "meta" else "**/*.parquet"))
    frame = pd.read_parquet(path)
    repeated = pd.concat([frame] * (2000 // len(frame)))
    repeated.to_parquet(path)
    monkeypatch.setattr(parquet, "FREE_ROWS", 500)
    for name, read in readers(copy, tmp_path).items():
        if name == "inspect":
            assert "far more than" in "".join(inspect_dataset(copy).problems) if table == "meta" else refused(read)
        elif name != "identity":
            assert f"{path.name}: has {len(repeated)} rows, far more than meta/info.json announces" in refused(read)


def test_a_small_table_that_takes_much_memory_is_refused(tmp_path: Path) -> None:
    """By what its footer says, or row by row where texts are longer than that tells."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = 5_000_000
    pq.write_table(
        pa.table({"a": pa.array(np.zeros(rows, np.int64))}), tmp_path / "numbers.parquet", row_group_size=rows
    )
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows, np.float32)), 4).cast(pa.list_(pa.float32()))
    pq.write_table(pa.table({"a": lists}), tmp_path / "lists.parquet")
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, np.int32)), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"a": text}), tmp_path / "texts.parquet", store_schema=False)
    written = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = {"numbers": 30, "lists": 100, "texts": 300}
    for name, megabytes in limits.items():
        path = tmp_path / f"{name}.parquet"
        assert path.stat().st_size < 1_500_000
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parquet, "FREE_BYTES", megabytes << 20)
            patch.setattr(parquet, "MAX_EXPANSION", 1)
            assert "GiB in memory" in refused(lambda path=path: parquet.read_parquet(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - max(written, before) < 600_000  # kB


def test_long_and_many_texts_are_read_in_portions_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{i % 7}" * (100 + i % 7) for i in range(3000)]
    pq.write_table(pa.table({"a": texts, "b": range(3000), "c.d": [[i] for i in range(3000)]}), tmp_path / "x.parquet")
    whole = parquet.read_parquet(tmp_path / "x.parquet")
    monkeypatch.setattr(parquet, "FREE_BYTES", 1_500_000)
    monkeypatch.setattr(parquet, "PORTION_BYTES", 20_000)
    assert parquet.read_parquet(tmp_path / "x.parquet").equals(whole)
    some = parquet.read_parquet(tmp_path / "x.parquet", ["a", "b"], ("b", 10, 12))
    assert some.to_pydict() == {"a": texts[10:13], "b": [10, 11, 12]}


def test_row_groups_that_hold_no_wanted_row_are_not_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"b": range(1000), "a": ["x" * 1000] * 1000}), tmp_path / "x.parquet", row_group_size=10)
    found = parquet.read_parquet(tmp_path / "x.parquet", ["a", "b"], ("b", 500, 503))
    assert found["b"].to_pylist() == [500, 501, 502, 503]
    assert not len(parquet.read_parquet(tmp_path / "x.parquet", ["b"], ("b", 2000, 3000)))
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[4:2000] = bytes(1996)  # the first row groups
    (tmp_path / "x.parquet").write_bytes(bytes(content))
    assert parquet.read_parquet(tmp_path / "x.parquet", ["b"], ("b", 500, 503)).num_rows == 4
    assert "not readable as Parquet" in refused(lambda: parquet.read_parquet(tmp_path / "x.parquet"))


# ----------------------------------------------------------------------------------------- pictures


@pytest.mark.filterwarnings("error")
def test_a_small_file_cannot_declare_a_large_picture(tmp_path: Path) -> None:
    from tests.toolkit.test_foreign_records import png

    for width, height in ((60_000, 60_000), (30_000, 3_000), (10_000, 9_000), (8000, 8000), (1000, 1000)):
        with pytest.raises(ValueError, match="declares|exceeds limit"):
            decode_picture(png(width, height))
    file = io.BytesIO()
    Image.new("RGB", (1920, 1080)).save(file, "PNG")
    assert decode_picture(file.getvalue()).shape == (1080, 1920, 3)  # black, and as small as a real one gets
    file = io.BytesIO()
    Image.new("L", (1920, 1080)).save(file, "JPEG", quality=1, optimize=True)
    assert decode_picture(file.getvalue()).shape == (1080, 1920, 3)


# ----------------------------------------------------------------------------------------- seeds

NO_SEEDS = ["seven", -1, 2.5, 2.0**40, True, float("inf"), [1]]


@pytest.mark.parametrize("seed", NO_SEEDS, ids=str)
def test_a_seed_that_is_none_is_named(seed: Any) -> None:
    rows = [{"task_name": "push", "seed": 3}, {"task_name": "push", "seed": seed}]
    assert refused(lambda: scenes_of(rows, "data/x")).startswith("data/x: episode 1: 'seed' is ")
    assert scenes_of([{"task_name": "push", "seed": np.int64(3)}, {"task_name": "push", "seed": 4.0}]) == {
        "push": [3, 4]
    }
    hole = {"task_name": "push", "seed": float("nan")}  # as pandas reads it
    assert scenes_of([*rows[:1], hole]) == scenes_of([*rows[:1], {}]) == {"push": [3], UNKNOWN: []}


@pytest.mark.parametrize("seed", [float("nan"), "seven", -1])
def test_replay_names_the_episode_and_the_column(
    copy: Path, tmp_path: Path, seed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / OWN_NOTES
    table = pd.read_parquet(path)
    table["seed"] = [0, 1, seed, 3] if isinstance(seed, int | float) else ["0", "1", seed, "3"]
    table.to_parquet(path)
    assert cli.main(["replay", f"dataset={copy}", f"out={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err
    wanted = r"nothing notes the 'seed' of episode 2," if seed != seed else r"episode \d: 'seed' is "
    assert re.search(f"copy: {wanted}", told)
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize("value", [0, -3, float("inf"), "two", 1.5, [1]])
def test_steps_between_pictures_are_checked(store: ClipStore, value: Any) -> None:
    odd = replace(store, metadata=[{**row, "picture_every": value} for row in store.metadata])
    assert "episode 0: 'picture_every' is " in refused(lambda: picture_every(odd))
    for hole in (None, float("nan")):
        holes = replace(store, metadata=[{**row, "picture_every": hole} for row in store.metadata])
        assert (picture_every(holes) == 1).all()


# ----------------------------------------------------------------------------------------- JSON, pipes, names, texts

DEEP = "[" * 100_000 + "]" * 100_000
NESTED = '{"a": ' * 100 + "1" + "}" * 100


@pytest.mark.parametrize("text", [DEEP, NESTED, "[1]", '"x"', "\xff\xfe", '{"a": 1'], ids=range(6))
def test_json_of_others_is_one_line(copy: Path, tmp_path: Path, text: str) -> None:
    content = text.encode("latin-1")
    (copy / "meta/seen_scenes.json").write_bytes(content)
    assert "seen_scenes.json: " in refused(lambda: read_scenes(copy / "meta"))
    assert any("seen_scenes.json" in line for line in inspect_dataset(copy).problems)
    (copy / "meta/seen_scenes.json").unlink()
    (copy / "conventions.json").write_bytes(content)
    assert "conventions.json: " in refused(lambda: Conventions.read(copy))
    (copy / "meta/stats.json").write_bytes(content)
    assert any("stats.json" in line for line in inspect_dataset(copy).problems)
    (copy / "meta/info.json").write_bytes(content)
    for name, read in readers(copy, tmp_path).items():
        if name != "identity":
            assert "info.json" in refused(read)


def test_seen_scenes_hold_seeds_only(tmp_path: Path) -> None:
    for content in ({"push": 3}, {"push": [-1]}, {"push": ["x"]}, {"push": [None]}, {"push": [1.5]}):
        (tmp_path / "seen_scenes.json").write_text(json.dumps(content))
        assert "seen_scenes.json" in refused(lambda: read_scenes(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "meta/info.json",
        "meta/tasks.parquet",
        "meta/seen_scenes.json",
        OWN_NOTES,
        "data/*/*.parquet",
        "meta/episodes/*/*.parquet",
        "videos/*/*/*.mp4",
    ],
)
def test_pipes_hold_up_nothing(copy: Path, tmp_path: Path, name: str) -> None:
    path = next(copy.glob(name), copy / name)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    for command, read in readers(copy, tmp_path).items():
        unread = "videos" if command in ("notes", "replay") else "seen" if command == "train" else "-"
        if command == "identity" or (command == "replay" and "seen" in name) or unread in name:
            continue  # they do not read that file, or leave it out
        refused(read)


def test_pipes_as_source_or_beside_hold_up_nothing(tmp_path: Path) -> None:
    for name in ("clips.h5", "conventions.json", "seen_scenes.json", "dataset"):
        os.mkfifo(tmp_path / name)
    for use in (
        lambda: open_clips(tmp_path / "clips.h5", 32),
        lambda: open_clips("/dev/zero", 32),
        lambda: ClipStore.open(tmp_path / "clips.h5"),
        lambda: open_source(tmp_path / "clips.h5", "auto", ImportOptions(), tmp_path / "w"),
        lambda: open_source(tmp_path, "auto", ImportOptions(), tmp_path / "w"),
        lambda: inspect_dataset(tmp_path / "dataset"),
        lambda: Conventions.read(tmp_path),
        lambda: read_scenes(tmp_path),
    ):
        refused(use)


def test_names_need_not_be_utf8(dataset: Path, tmp_path: Path, moving_square: MakeEpisode) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff\xc3"))
    shutil.copytree(dataset, odd)
    (odd / os.fsdecode(b"notes\xff.txt")).write_text("x")
    for name, read in readers(odd, tmp_path).items():
        assert read() is not None, name
    whole = export_robomimic(dataset, tmp_path / "x.hdf5", None, False)
    os.rename(tmp_path / "x.hdf5", odd / os.fsdecode(b"x\xff.hdf5"))
    shutil.rmtree(odd / "meta")
    source = open_source(odd, "auto", ImportOptions(), tmp_path / "w")
    episodes = list(source)
    assert len(episodes) == whole["episodes"]
    assert episodes[0].metadata["source_file"].encode()
    assert len(source.identity()) == 16
    assert "no UTF-8 text" in refused(lambda: EpisodeWriter(odd / "new", 20, *NAMES).__enter__())


def test_letters_of_all_languages_are_fine(tmp_path: Path, moving_square: MakeEpisode) -> None:
    assert "a quotation mark" in refused(lambda: EpisodeWriter(tmp_path / "it's" / "x", 20, *NAMES).__enter__())
    place = tmp_path / 'Übung 漢字 "q" $x %d'
    with EpisodeWriter(place / "dataset", 20, *NAMES) as writer:
        for seed in range(2):
            writer.add(replace(moving_square(seed), task="推 das Quadrat"))
    assert [episode.task for episode in lerobot_read.read_episodes(place / "dataset")] == ["推 das Quadrat"] * 2
    assert inspect_dataset(place / "dataset").problems == []


def test_an_instruction_of_a_megabyte_is_named(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "meta/tasks.parquet"
    table = pd.read_parquet(path)
    table.index = ["x" * (1 << 20), *table.index[1:]]
    table.to_parquet(path)
    for name in ("train", "import", "export", "replay"):
        assert "its instruction has 1048576 letters; at most 10000" in refused(readers(copy, tmp_path)[name])
    assert cli.main(["inspect", str(copy), "fix=true", f"out={tmp_path / 'run'}"]) == 0
    told = capsys.readouterr().out
    assert "1048576 letters" in told
    assert max(map(len, told.splitlines())) < 2000
    assert len(lerobot_read.read_actions(tmp_path / "run/dataset")) == 2


def test_states_of_a_picture_are_not_taken_for_others(copy: Path) -> None:
    """A column whose name begins as another one is not read with it."""
    path = next((copy / "data").rglob("*.parquet"))
    frame = pd.read_parquet(path)
    frame[f"{STATE}.extra"] = 1.0
    frame.to_parquet(path)
    assert lerobot_read.read_table(copy).states.shape[1] == 2
