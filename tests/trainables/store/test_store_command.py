import fcntl
import json
import os
import re
import time
import uuid
from pathlib import Path

import pytest

from tests.trainables.store.steps import counting, run
from trainables.layout import UNFINISHED
from trainables.records.encoding import to_json
from trainables.records.trial import TrialRecord
from trainables.store.__main__ import format_bytes, format_duration, main
from trainables.store.results import Key, Store, stage_key


def make(store: Store, stage: str, name: str) -> str:
    key = stage_key(stage, version=1, name=name)
    run(store.obtain(key, counting))
    return str(key)


def record(folder: Path, keys: tuple[str, ...], number: int | None = None, stage: str = "candidate") -> None:
    folder.mkdir(parents=True)
    trial = TrialRecord(
        key=f"s/{number}",
        trial_number=number,
        stage=stage,
        status="finished",
        reason="",
        params={},
        metrics={},
        tags={},
        curve=(),
        files=(),
        started=0.0,
        ended=1.0,
        keys=keys,
    )
    (folder / "record.json").write_text(to_json(trial))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A sweep of three trials, number 1 on its front, with a control; and a result that nobody names."""
    store, sweep = Store(tmp_path / "store"), tmp_path / "sweeps" / "first"
    teacher = make(store, "teacher", "t")
    record(sweep / "teacher", (teacher,), stage="teacher")
    for number in range(3):
        keys = (teacher, make(store, "student", f"{number // 2}"), make(store, "recovery", f"{number}"))
        record(sweep / "trials" / f"{number:05}", keys, number)
    record(sweep / "controls" / "dense", (teacher, make(store, "student", "control")), stage="control")
    make(store, "soft_labels", "view 0")
    (sweep / "front").mkdir()
    (sweep / "front" / "pareto.csv").write_text("run,trial_number,val_accuracy\nabc,1,0.9\n")
    return tmp_path


def stored(out: Path) -> set[str]:
    return {f"{path.parent.parent.name}/{path.parent.name}" for path in out.glob("store/*/*/record.json")}


def key(stage: str, name: str) -> str:
    return str(stage_key(stage, version=1, name=name))


WANTED = {("teacher", "t"), ("student", "0"), ("student", "control"), ("recovery", "1")}


def test_gc_keeps_front_teacher_and_controls_and_drops_the_rest(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = {path: path.read_bytes() for path in out.glob("sweeps/**/*") if path.is_file()}
    assert len(stored(out)) == 8
    assert main(["gc", "--out", str(out)]) == 0
    assert stored(out) == {key(stage, name) for stage, name in WANTED}
    assert capsys.readouterr().out.splitlines()[-1] == "freed 72 B (72 bytes): 4 parts"
    assert {path: path.read_bytes() for path in sweep} == sweep


def test_gc_after_an_interruption_keeps_what_no_record_names_for_a_day(out: Path) -> None:
    """The student of a trial that was interrupted after it, while it was pruned: nobody names it yet."""
    student = make(Store(out / "store"), "student", "of a trial that goes on")
    (out / "sweeps" / "first" / UNFINISHED).touch()
    assert main(["gc", "--out", str(out)]) == 0
    assert stored(out) == {key(*names) for names in (*WANTED, ("soft_labels", "view 0"))} | {student}
    (out / "sweeps" / "first" / UNFINISHED).unlink()
    assert main(["gc", "--out", str(out)]) == 0
    assert stored(out) == {key(*names) for names in WANTED}


def test_a_front_that_is_older_than_a_trial_is_not_believed(out: Path) -> None:
    store, trials = Store(out / "store"), out / "sweeps" / "first" / "trials"
    keys = (key("teacher", "t"), make(store, "student", "late"))
    record(trials / "00003", keys, 3)
    os.utime(trials / "00003" / "record.json", (2e9, 2e9))
    assert main(["gc", "--out", str(out)]) == 0
    assert {key("recovery", "2"), key("student", "late")} <= stored(out)


def test_what_gc_took_is_made_again_equal(out: Path) -> None:
    student = stage_key("student", version=1, name="1")
    before = {path.name: path.read_bytes() for path in (out / "store" / str(student)).iterdir()}
    main(["gc", "--out", str(out)])
    reports, folder = run(Store(out / "store").obtain(student, counting))
    assert reports == [0, 1, 2]
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert json.loads(before.pop("manifest.json"))["files"] == json.loads(after.pop("manifest.json"))["files"]
    assert after == before


def test_a_dry_run_says_what_would_go_and_removes_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stored(out)
    assert main(["gc", "--dry-run", "--out", str(out)]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    doomed = before - {key(stage, name) for stage, name in WANTED}
    assert lines == [f"would remove {name}  18 B" for name in sorted(doomed)]
    assert total == "would free 72 B (72 bytes): 4 parts"
    assert stored(out) == before


def test_damaged_results_are_collected_after_a_day(out: Path) -> None:
    folder = out / "store" / key("student", "0")
    (folder / "manifest.json").unlink()
    folder = folder.rename(folder.with_name(folder.name + ".corrupt-1"))
    killed = out / "store" / (key("student", "1") + ".removed")  # a collector died here
    killed.mkdir()
    (killed / "steps").write_text("0")
    then = time.time() - 30 * 3600
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))
    main(["gc", "--out", str(out)])
    assert not folder.exists()
    assert not killed.exists()


def test_all_trials_may_be_kept(out: Path) -> None:
    before = stored(out)
    main(["gc", "--keep", "all-trials", "--out", str(out)])
    assert before - stored(out) == {key("soft_labels", "view 0")}


def test_a_sweep_without_a_front_yet_needs_all_of_its_trials(out: Path) -> None:
    (out / "sweeps" / "first" / "front" / "pareto.csv").unlink()
    before = stored(out)
    main(["gc", "--out", str(out)])
    assert before - stored(out) == {key("soft_labels", "view 0")}


def test_what_is_locked_stays(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy = key("soft_labels", "view 0")
    with (out / "store" / f"{busy}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        main(["gc", "--out", str(out)])
    assert f"kept {busy}: in use" in capsys.readouterr().out
    assert busy in stored(out)


def test_abandoned_work_goes_after_a_day(out: Path) -> None:
    store, partials = Store(out / "store"), {}
    for name, hours in (("old", 30), ("new", 1)):
        attempt = store.obtain(Key("student", name), counting)
        next(attempt)
        attempt.close()
        partials[name] = out / "store" / "student" / f"{name}.partial"
        then = time.time() - 3600 * hours
        for path in (*partials[name].iterdir(), partials[name]):
            os.utime(path, (then, then))
    main(["gc", "--out", str(out)])
    assert [name for name, path in partials.items() if path.exists()] == ["new"]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda out: (out / "sweeps/first/trials/00001/record.json").write_text("{"),
            "00001/record.json cannot be read",
        ),
        (lambda out: (out / "sweeps/first/front/pareto.csv").write_text("a\n1\n"), "no column `trial_number`"),
        (lambda out: (out / "store/store.json").write_text('{"format": 9}'), "store format 9, but this .* format 2"),
        (lambda out: record(out / "sweeps/first/champions/1", ()), "champions/1/record.json names no results"),
    ],
    ids=["record", "front", "format", "keys"],
)
def test_gc_that_does_not_know_what_is_needed_removes_nothing(
    out: Path, capsys: pytest.CaptureFixture[str], break_it, message: str
) -> None:
    before = stored(out)
    break_it(out)
    with pytest.raises(SystemExit, match="2"):
        main(["gc", "--out", str(out)])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)
    assert stored(out) == before


def test_gc_leaves_a_running_sweep_alone(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (out / "sweeps" / "first" / "driver.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="2"):
            main(["gc", "--out", str(out)])
    assert "sweep first is running" in capsys.readouterr().err
    assert len(stored(out)) == 8


def test_gc_all_empties_a_store_of_any_format(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "store" / "store.json").write_text('{"format": 9}')
    assert main(["gc", "--all", "--out", str(out)]) == 0
    assert [path for path in (out / "store").rglob("*") if path.is_file()] == []
    assert run(Store(out / "store").obtain(Key("student", "new"), counting))[0] == [0, 1, 2]


def test_failures_are_listed_and_may_be_forgotten(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "store" / "student" / "x.failed.json").write_text('{"reason": "diverged"}')
    main(["ls", "--out", str(out)])
    assert capsys.readouterr().out.splitlines()[-1] == "1 remembered failures"
    main(["gc", "--failures", "--out", str(out)])
    assert "forgot 1 failures" in capsys.readouterr().out
    assert Store(out / "store").failure(Key("student", "x")) is None


def test_ls_names_every_result_and_who_refers_to_it(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--out", str(out)]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["stage", "digest", "size", "age", "cost", "sweeps"]
    assert {"/".join(line.split()[:2]) for line in lines} == stored(out)
    assert {line.split()[0]: line.split()[-1] for line in lines}["soft_labels"] == "-"
    teacher = next(line for line in lines if line.startswith("teacher"))
    assert re.search(r"teacher +[0-9a-f]{24} +18 B +\d\.\d s +0\.0 s  first$", teacher)


def test_du_sums_by_stage(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["du", "--out", str(out)]) == 0
    rows = {line.split()[0]: line.split()[1:4] for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["student"] == ["3", "54", "B"]
    assert rows["total"] == ["8", "144", "B"]


def test_a_store_that_is_not_there_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["ls", "--out", str(tmp_path / "none")])
    assert capsys.readouterr().err == (
        f"python -m trainables.store: there is no store in {tmp_path}/none/store;"
        " name the folder of the sweeps with --out.\n"
    )


def test_a_store_below_a_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"memory://{uuid.uuid4().hex}/runs"
    store = Store(url, cache=tmp_path / "cache")
    needed, unneeded = make(store, "student", "0"), make(store, "student", "1")
    record(tmp_path / "sweeps" / "first" / "teacher", (needed,), stage="teacher")
    place = ["--store", url, "--out", str(tmp_path)]
    main(["ls", *place])
    assert needed.split("/")[1] in capsys.readouterr().out
    main(["gc", *place])
    assert capsys.readouterr().out.splitlines()[0] == f"removed {unneeded}  18 B"
    main(["du", *place])
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["total", "1", "18", "B"]
    main(["gc", "--all", *place])
    main(["du", *place])
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["total", "0", "0", "B"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_700, "1 MB"), (1_234_567, "1.23 MB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (61, "1 min"), (7200, "2 h"), (3 * 86400, "3 d")])
def test_times_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
