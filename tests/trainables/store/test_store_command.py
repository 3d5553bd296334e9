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
        metrics={} if number is None else {"val_accuracy": 0.9 if number == 1 else 0.8},
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
    # what is drawn for people says something else, and decides nothing
    store, sweep = Store(tmp_path / "store"), tmp_path / "sweeps" / "first"
    teacher = make(store, "teacher", "t")
    record(sweep / "teacher", (teacher,), stage="teacher")
    for number in range(3):
        keys = (teacher, make(store, "student", f"{number // 2}"), make(store, "recovery", f"{number}"))
        record(sweep / "trials" / f"{number:05}", keys, number)
    record(sweep / "controls" / "dense", (teacher, make(store, "student", "control")), stage="control")
    make(store, "soft_labels", "view 0")
    (sweep / "front").mkdir()
    (sweep / "front" / "pareto.csv").write_text("run,trial_number,val_accuracy\nabc,2,0.9\n")
    (sweep / "sweep.json").write_text('{"directions": {"val_accuracy": "maximize"}}')
    (sweep / "identity.json").write_text('{"sweep_id": "first"}')
    return tmp_path


def stored(out: Path) -> set[str]:
    return {f"{path.parent.parent.name}/{path.parent.name}" for path in out.glob("store/*/*/record.json")}


def key(stage: str, name: str) -> str:
    return str(stage_key(stage, version=1, name=name))


WANTED = {("teacher", "t"), ("student", "0"), ("student", "control"), ("recovery", "1")}


def test_gc_keeps_front_teacher_and_controls_and_drops_the_rest(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = {path: path.read_bytes() for path in out.glob("sweeps/**/*") if path.is_file()}
    assert len(stored(out)) == 8
    assert main(["gc", "--yes", "--out", str(out)]) == 0
    assert stored(out) == {key(stage, name) for stage, name in WANTED}
    assert capsys.readouterr().out.splitlines()[-1] == "freed 72 B (72 bytes): 4 parts"
    assert {path: path.read_bytes() for path in sweep} == sweep


def test_gc_after_an_interruption_keeps_what_no_record_names_for_a_day(out: Path) -> None:
    """The student of a trial that was interrupted after it, while it was pruned: nobody names it yet."""
    student = make(Store(out / "store"), "student", "of a trial that goes on")
    (out / "sweeps" / "first" / UNFINISHED).touch()
    assert main(["gc", "--yes", "--out", str(out)]) == 0
    assert stored(out) == {key(*names) for names in (*WANTED, ("soft_labels", "view 0"))} | {student}
    (out / "sweeps" / "first" / UNFINISHED).unlink()
    assert main(["gc", "--yes", "--out", str(out)]) == 0
    assert stored(out) == {key(*names) for names in WANTED}


def test_what_gc_took_is_made_again_equal(out: Path) -> None:
    student = stage_key("student", version=1, name="1")
    before = {path.name: path.read_bytes() for path in (out / "store" / str(student)).iterdir()}
    main(["gc", "--yes", "--out", str(out)])
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
    main(["gc", "--yes", "--out", str(out)])
    assert not folder.exists()
    assert not killed.exists()


def test_all_trials_may_be_kept(out: Path) -> None:
    before = stored(out)
    main(["gc", "--yes", "--keep", "all-trials", "--out", str(out)])
    assert before - stored(out) == {key("soft_labels", "view 0")}


@pytest.mark.parametrize("said", ["", "{", '{"directions": {}}', '{"directions": {"latency_p50_ms": "minimize"}}'])
def test_a_sweep_whose_front_is_unknown_needs_all_of_its_trials(out: Path, said: str) -> None:
    (out / "sweeps" / "first" / "sweep.json").write_text(said)
    before = stored(out)
    main(["gc", "--yes", "--out", str(out)])
    assert before - stored(out) == {key("soft_labels", "view 0")}


def test_what_is_locked_stays(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy = key("soft_labels", "view 0")
    with (out / "store" / f"{busy}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        main(["gc", "--yes", "--out", str(out)])
    assert f"kept {busy}: in use" in capsys.readouterr().out
    assert busy in stored(out)


def test_abandoned_work_goes_after_a_day(out: Path) -> None:
    store, partials = Store(out / "store"), {}
    for name, hours in (("old", 30), ("new", 1)):
        attempt = store.obtain(key := stage_key("student", version=1, name=name), counting)
        next(attempt)
        attempt.close()
        partials[name] = out / "store" / f"{key}.partial"
        then = time.time() - 3600 * hours
        for path in (*partials[name].iterdir(), partials[name]):
            os.utime(path, (then, then))
    main(["gc", "--yes", "--out", str(out)])
    assert [name for name, path in partials.items() if path.exists()] == ["new"]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda out: (out / "sweeps/first/trials/00001/record.json").write_text("{"),
            "00001/record.json cannot be read",
        ),
        (lambda out: (out / "store/store.json").write_text('{"format": 9}'), "store format 9, but this .* format 2"),
        (lambda out: record(out / "sweeps/first/champions/1", ()), "champions/1/record.json names no results"),
    ],
    ids=["record", "format", "keys"],
)
def test_gc_that_does_not_know_what_is_needed_removes_nothing(
    out: Path, capsys: pytest.CaptureFixture[str], break_it, message: str
) -> None:
    before = stored(out)
    break_it(out)
    with pytest.raises(SystemExit, match="2"):
        main(["gc", "--yes", "--out", str(out)])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said)
    assert stored(out) == before


def test_gc_leaves_a_running_sweep_alone(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (out / "sweeps" / "first" / "driver.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="2"):
            main(["gc", "--yes", "--out", str(out)])
    assert "sweep first is running" in capsys.readouterr().err
    assert len(stored(out)) == 8


def test_gc_all_empties_a_store_of_any_format(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "store" / "store.json").write_text('{"format": 9}')
    assert main(["gc", "--yes", "--all", "--out", str(out)]) == 0
    assert [path.name for path in (out / "store").rglob("*") if path.is_file()] == ["store.json"]
    assert run(Store(out / "store").obtain(Key("student", "0" * 24), counting))[0] == [0, 1, 2]


def test_failures_are_listed_and_may_be_forgotten(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "store" / "student" / f"{'1' * 24}.failed.json").write_text('{"reason": "diverged"}')
    main(["ls", "--out", str(out)])
    assert capsys.readouterr().out.splitlines()[-1] == "1 remembered failures"
    main(["gc", "--yes", "--failures", "--out", str(out)])
    assert "forgot 1 failures" in capsys.readouterr().out
    assert Store(out / "store").failure(Key("student", "1" * 24)) is None


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
    (tmp_path / "sweeps" / "first" / "identity.json").write_text('{"sweep_id": "first"}')
    main(["gc", "--yes", *place])
    assert capsys.readouterr().out.splitlines()[0] == f"removed {unneeded}  18 B"
    main(["du", *place])
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["total", "1", "18", "B"]
    main(["gc", "--yes", "--all", *place])
    main(["du", *place])
    assert capsys.readouterr().out.splitlines()[-1].split()[:4] == ["total", "0", "0", "B"]


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit, match="2"):
        main(list(words))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_folder_that_is_no_store_is_not_collected(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One level too high, every other folder looks like abandoned work."""
    for name in ("thesis/chapters/1.tex", "photos/2020/a.jpg", f"photos/{'0' * 24}/b.jpg"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        os.utime((out / name).parent, (1e9, 1e9))
        os.utime(out / name, (1e9, 1e9))
    before = files_of(out)
    for store in (str(out), f"file://{out}"):
        for flags in ([], ["--all"]):
            said = refused(capsys, "gc", "--yes", "--store", store, *flags)
            assert f"{store} holds no sound store.json of a store; name " in said
    assert f"name {out}/store, or the folder of the sweeps" in refused(capsys, "ls", "--store", str(out))
    assert files_of(out) == before


def test_a_collector_removes_only_what_a_store_has_named(out: Path) -> None:
    """Also inside a store: other names, and links to elsewhere, are somebody else's."""
    elsewhere = out / "elsewhere" / ("1" * 24)
    elsewhere.mkdir(parents=True)
    (elsewhere / "thesis").write_text("mine")
    (out / "store" / "student" / ("1" * 24)).symlink_to(elsewhere)
    (out / "store" / "linked").symlink_to(elsewhere.parent)
    for name in ("student/notes", "Photos/" + "2" * 24, "student/" + "3" * 24 + ".old"):
        (out / "store" / name).mkdir(parents=True)
        (out / "store" / name / "a").write_text("mine")
        os.utime(out / "store" / name / "a", (1e9, 1e9))
        os.utime(out / "store" / name, (1e9, 1e9))
    before = {path for path in files_of(out) if path.read_text() == "mine"}
    main(["gc", "--yes", "--out", str(out)])
    main(["gc", "--yes", "--all", "--out", str(out)])
    assert before
    assert {path for path in files_of(out) if path.read_text() == "mine"} == before


@pytest.mark.parametrize("key", ["../../victim", "{out}/victim", "student/../../victim", "student", "", "a/b/c"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_manifest_that_names_another_place_removes_nothing_there(out: Path, key: str, remote: bool) -> None:
    (out / "victim").mkdir()
    (out / "victim" / "thesis").write_text("mine")
    folder = out / "store" / str(stage_key("soft_labels", version=1, name="view 0"))
    row = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(row | {"key": key.format(out=out)}))
    where = ["--store", f"file://{out}/store"] if remote else []
    (out / "store" / "store.json").write_text('{"format": 2, "users": true}')
    for flags in ([], ["--all"]):
        main(["gc", "--yes", *where, "--out", str(out), *flags])
        assert (out / "victim" / "thesis").read_text() == "mine"


def test_gc_asks_and_takes_no_answer_for_a_no(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored(out)
    with Path(os.devnull).open() as nobody:
        monkeypatch.setattr("sys.stdin", nobody)
        for flags in ([], ["--all"]):
            with pytest.raises(SystemExit, match="2"):
                main(["gc", "--out", str(out), *flags])
            said = capsys.readouterr()
            assert "would free" in said.out.splitlines()[-1]
            assert f"`{' '.join(['python -m trainables.store gc --out', str(out), *flags, '--yes'])}`" in said.err
    controller, terminal = os.openpty()
    with os.fdopen(terminal) as person, os.fdopen(controller, "w") as keyboard:
        monkeypatch.setattr("sys.stdin", person)
        for answer, left in (("\n", before), ("n\n", before), ("y\n", {key(*names) for names in WANTED})):
            keyboard.write(answer)
            keyboard.flush()
            assert main(["gc", "--out", str(out)]) == 0
            assert stored(out) == left


def shared(tmp_path: Path, url: bool) -> tuple[str, dict[str, Path], dict[str, str]]:
    """A store that two sweeps below different OUTs use: where it is, the sweeps, what each needs."""
    where = f"memory://{uuid.uuid4().hex}/store" if url else str(tmp_path / "shared" / "store")
    store = Store(where, cache=tmp_path / "cache") if url else Store(Path(where))
    sweeps, needs = {}, {}
    for name in ("mine", "theirs"):
        sweeps[name] = tmp_path / name / "sweeps" / name
        needs[name] = make(store, "teacher", name)
        record(sweeps[name] / "teacher", (needs[name],), stage="teacher")
        (sweeps[name] / "identity.json").write_text(json.dumps({"sweep_id": f"id of {name}"}))
        store.note_user(sweeps[name], f"id of {name}")
    make(store, "student", "of nobody")
    return where, sweeps, needs


@pytest.mark.parametrize("url", [False, True])
def test_every_sweep_that_uses_a_store_keeps_what_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: bool
) -> None:
    where, sweeps, needs = shared(tmp_path, url)
    monkeypatch.chdir(tmp_path)  # where there is no folder `runs`
    assert main(["gc", "--yes", "--store", where]) == 0
    assert f"removed {key('student', 'of nobody')}" in capsys.readouterr().out
    sweeps["theirs"].rename(sweeps["theirs"].with_name("moved"))  # or on another machine, or its place was taken
    for identity in (None, '{"sweep_id": "another"}'):
        if identity:
            sweeps["theirs"].mkdir()
            (sweeps["theirs"] / "identity.json").write_text(identity)
        said = refused(capsys, "gc", "--yes", "--store", where, "--out", "mine")
        assert "sweep theirs uses this store" in said
        assert "--forget theirs" in said
    main(["du", "--store", where])
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["total", "2"]
    main(["gc", "--yes", "--store", where, "--out", "mine", "--forget", "theirs", "--forget", "mine"])
    assert f"removed {needs['theirs']}" in capsys.readouterr().out
    assert main(["gc", "--yes", "--store", where]) == 0  # `mine` is here, so that it was not forgotten; `theirs` was
    assert "0 parts" in capsys.readouterr().out


def test_a_store_nobody_is_known_to_use_is_not_collected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(Store(tmp_path / "store"), "student", "of a sweep elsewhere")
    for place in (["--store", str(tmp_path / "store")], ["--out", str(tmp_path)]):
        assert "no sweep is known that uses" in refused(capsys, "gc", "--yes", *place)
    assert len(stored(tmp_path)) == 1


def test_an_older_store_elsewhere_says_how_to_mark_it(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "store").rename(out / "elsewhere")
    (out / "elsewhere" / "store.json").write_text('{"format": 2}')
    place = ["--store", str(out / "elsewhere"), "--out", str(out)]
    said = refused(capsys, "gc", "--yes", *place)
    mark = re.search(r"write (\{.*?\}) into its store.json", said)
    assert mark
    (out / "elsewhere" / "store.json").write_text(mark[1])
    assert main(["gc", "--yes", *place]) == 0
    assert "freed 72 B" in capsys.readouterr().out
    # the collector has put down who uses it: from elsewhere, it keeps all of that
    assert main(["gc", "--yes", *place[:2], "--out", "nowhere"]) == 0
    assert "0 parts" in capsys.readouterr().out


def test_a_moved_folder_takes_its_users_along(out: Path) -> None:
    Store(out / "store").note_user(out / "sweeps" / "first", "first")
    moved = out.rename(out.with_name("moved"))
    before = stored(moved)
    assert main(["gc", "--yes", "--store", str(moved / "store")]) == 0
    assert stored(moved) == {key(*names) for names in WANTED} < before


def test_a_store_behind_a_link_keeps_what_its_sweep_needs(out: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch" / "store"
    scratch.parent.mkdir()
    (out / "store").rename(scratch)
    (out / "store").symlink_to(scratch)
    Store(out / "store").note_user(out / "sweeps" / "first", "first")
    assert main(["gc", "--yes", "--store", str(scratch), "--out", "nowhere"]) == 0
    assert stored(out) == {key(*names) for names in WANTED}


def test_a_dry_run_that_asks_nobody_is_refused(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stored(out)
    assert "not allowed with" in refused(capsys, "gc", "--dry-run", "--yes", "--out", str(out))
    assert stored(out) == before


def test_forgetting_a_sweep_alone_is_something_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, sweeps, _ = shared(tmp_path, url=False)
    mine = ["--store", where, "--out", str(tmp_path / "mine")]
    main(["gc", "--yes", *mine])
    sweeps["theirs"].rename(sweeps["theirs"].with_name("moved"))
    words = ["gc", *mine, "--keep", "all-trials", "--forget", "theirs"]
    assert main([*words, "--dry-run"]) == 0
    assert "would forget 1 note" in capsys.readouterr().out
    assert main([*words, "--yes"]) == 0
    assert main(["gc", "--yes", *mine]) == 0


def test_a_teacher_that_was_replaced_needs_nothing(out: Path) -> None:
    record(out / "sweeps" / "first" / ".replaced" / "teacher-0123", (), stage="teacher")
    assert main(["gc", "--yes", "--out", str(out)]) == 0
    assert stored(out) == {key(*names) for names in WANTED}


def test_gc_keeps_what_is_on_the_front_by_the_latency_of_its_shape(out: Path) -> None:
    """Trial 2 is slower than 1 in its own measurement, but not by that of its shape, which the front shows."""
    sweep, directions = out / "sweeps" / "first", {"val_accuracy": "maximize", "latency_p50_ms": "minimize"}
    (sweep / "sweep.json").write_text(json.dumps({"directions": directions}))
    for number, latency, shape in ((0, 0.95, "a"), (1, 1.02, "b"), (2, 1.05, "a")):
        path = sweep / "trials" / f"{number:05}" / "record.json"
        row = json.loads(path.read_text())
        row["metrics"] = {"val_accuracy": (0.5, 0.9, 0.85)[number], "latency_p50_ms": latency}
        row["tags"] = {"latency_shape": shape}
        path.write_text(json.dumps(row))
    assert main(["gc", "--yes", "--out", str(out)]) == 0
    assert {key("recovery", str(number)) for number in range(3)} <= stored(out)
    row["tags"] = {"latency_shape": "c"}
    path.write_text(json.dumps(row))
    assert main(["gc", "--yes", "--out", str(out)]) == 0
    assert key("recovery", "2") not in stored(out)


def test_cells_of_the_runtime_table_stop_neither_gc_nor_ls(out: Path) -> None:
    """Their records name no results: they are measured from their trial's own files."""
    record(out / "sweeps" / "first" / "runtimes" / "00001-eager_cpu", (), stage="runtime")
    assert main(["ls", "--out", str(out)]) == 0
    assert main(["gc", "--yes", "--out", str(out)]) == 0
    assert stored(out) == {key(*names) for names in WANTED}


def test_ls_shows_the_store_also_where_a_record_is_damaged(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "sweeps" / "first" / "trials" / "00001" / "record.json").write_text("")
    assert main(["ls", "--out", str(out)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 9


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_700, "1 MB"), (1_234_567, "1.23 MB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (61, "1 min"), (7200, "2 h"), (3 * 86400, "3 d")])
def test_times_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
