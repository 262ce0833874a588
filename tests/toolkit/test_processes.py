"""What the processes of one command know of each other, and who of them writes."""

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from toolkit.base import files, manifest
from toolkit.base.errors import UserError, warn
from toolkit.base.processes import FailedElsewhereError, Processes


def pair() -> list[Processes]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [Processes({**shared, "RANK": str(rank)}) for rank in range(2)]


def test_one_process_waits_for_nobody() -> None:
    alone = Processes({})
    alone.wait()
    assert alone.is_main
    assert alone.from_main({"a": 1}) == {"a": 1}
    assert alone.failure() is None
    assert alone.fail(2, "no").code == 2
    alone.leave()
    assert Processes({"WORLD_SIZE": "1", "RANK": "0"}).size == 1


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE=2, but \$RANK is not set; start several processes with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, r"\$MASTER_ADDR is not set"),
        ({"WORLD_SIZE": "many"}, r"\$WORLD_SIZE is 'many'; expected a number"),
    ],
)
def test_half_a_group_is_refused(environment: dict[str, str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Processes(environment)


def test_the_others_learn_what_the_main_one_says() -> None:
    main, other = pair()
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(process.from_main, process.rank or {"directory": "x"}) for process in (main, other)]
        assert [answer.result(60) for answer in answers] == [{"directory": "x"}] * 2
        for meeting in [pool.submit(process.wait) for process in (main, other)]:
            meeting.result(60)
        waiting = pool.submit(other.wait)
        assert main.fail(2, "no such dataset").message == "no such dataset"
        with pytest.raises(FailedElsewhereError, match="no such dataset"):
            waiting.result(60)
        assert other.fail(1, "lost a connection") == main.failure()  # the first one counts
        for end in [pool.submit(process.leave) for process in (main, other)]:
            end.result(60)


def test_what_another_process_writes_cannot_be_written(tmp_path: Path) -> None:
    with manifest.written_elsewhere(tmp_path):
        for write in (
            lambda: files.write_json(tmp_path / "run.json", {}),
            lambda: files.discard(tmp_path / "streams"),
            lambda: files.atomic_directory(tmp_path / "generator").__enter__(),
        ):
            with pytest.raises(RuntimeError, match="one process of a run writes"):
                write()
    assert not list(tmp_path.iterdir())
    files.write_json(tmp_path / "run.json", {})


def test_of_several_processes_the_main_one_warns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank, lines in ((0, 1), (1, 0)):
        several = Processes({"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
        monkeypatch.setattr("toolkit.base.processes.processes", lambda several=several: several)
        warn("a window covers a tenth")
        assert capsys.readouterr().err.count("vag: warning: a window covers a tenth") == lines
