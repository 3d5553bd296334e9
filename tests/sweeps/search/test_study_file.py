import multiprocessing
import os
import signal
import time
from pathlib import Path

import optuna
import pytest

from sweeps.search.study_file import KernelLock, open_journal
from trainables.files import drop_half_line


def study_in(path: Path) -> optuna.Study:
    return optuna.create_study(storage=open_journal(path), study_name="s", load_if_exists=True)


def test_half_a_line_at_the_end_costs_that_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    study = study_in(path)
    study.tell(study.ask(), 1.0)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "worker_id": "cut o')
    again = study_in(path)
    assert path.read_bytes().startswith(whole + b'{"op_code"')
    assert b"cut o" not in path.read_bytes()
    again.tell(again.ask(), 2.0)
    assert [trial.value for trial in study_in(path).trials] == [1.0, 2.0]


def test_a_whole_journal_and_none_are_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    drop_half_line(path)
    assert not path.exists()
    path.write_bytes(b"{}\n")
    drop_half_line(path)
    assert path.read_bytes() == b"{}\n"


def hold(path: Path) -> None:
    KernelLock(path).acquire()
    path.with_name("held").touch()
    time.sleep(60)


def test_the_lock_of_a_killed_driver_is_free_at_once(tmp_path: Path) -> None:
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "lock",))
    holder.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    started = time.monotonic()
    lock = KernelLock(tmp_path / "lock")
    assert lock.acquire()
    assert time.monotonic() - started < 5
    lock.release()


def test_reading_on_keeps_the_place_of_one_line_and_misses_none(tmp_path: Path) -> None:
    path = tmp_path / "study.journal"
    writer, reader = study_in(path), study_in(path)
    for number in range(20):
        writer.tell(writer.ask(), float(number))
        if number % 3 == 0:
            assert [trial.value for trial in reader.trials] == [float(one) for one in range(number + 1)]
    backend = open_journal(path)._backend
    assert len(backend._log_number_offset) == 2
    assert len(list(backend.read_logs(0))) == len(path.read_text().splitlines())
    assert list(backend.read_logs(5)) == list(backend.read_logs(0))[5:], "also from a line whose place is forgotten"


@pytest.mark.parametrize("damage", [b"\0" * 40, b"[1]", b"null", b'{"op_code": "x"}', b"[" * 100_000, b"\xff"])
def test_a_journal_goes_on_from_its_sound_part_and_the_damaged_one_is_kept(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "study.journal"
    study = study_in(path)
    for value in (1.0, 2.0):
        study.tell(study.ask(), value)
    lines = path.read_bytes().splitlines(keepends=True)
    harmed = b"".join([*lines[:3], damage + b"\n", *lines[4:]])
    path.write_bytes(harmed)
    again = study_in(path)
    assert [trial.value for trial in again.trials] == [1.0]
    again.tell(again.ask(), 3.0)
    assert [trial.value for trial in study_in(path).trials] == [1.0, 3.0]
    assert path.with_name("study.journal.corrupt-1").read_bytes() == harmed
