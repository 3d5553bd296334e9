import io
import json
import time
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Never

import pytest
import ray
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from rich.console import Console

from sweeps.display.console import Screen
from sweeps.display.durations import Range
from sweeps.display.live import screen
from sweeps.display.progress import Progress
from sweeps.display.standing import Standing, label_seconds
from sweeps.running.interface.command import tell_end
from sweeps.running.run import worker_of
from sweeps.running.tune.delivery import Delivery
from sweeps.search.presets import quick
from trainables.config.candidate import CandidateConfig
from trainables.files import write_text
from trainables.records.encoding import to_json
from trainables.records.trial import TrialRecord, read_trial
from trainables.store.results import Store, stage_key, store_below
from trainables.trials.task import TrialTask

SHAPE = {"reference_latency_p50_ms": 1.0, "size_bytes": 1e6, "latency_p50_ms": 0.5, "num_params": 10, "macs": 100}


def record(number: int | None, val: float, ms: float, mb: float, **changes: Any) -> TrialRecord:
    metrics = {"val_accuracy": val, "test_accuracy": 0.123, "latency_p50_ms": ms, "reference_latency_p50_ms": 1.0}
    metrics |= {"size_bytes": mb * 1e6, "train_time_s": 60.0, "reused_time_s": 100.0}
    made = {
        "key": f"s/{number}",
        "trial_number": number,
        "stage": "candidate",
        "status": "finished",
        "reason": "",
        "params": CandidateConfig().flat(),
        "metrics": metrics,
        "tags": {},
        "curve": (),
        "files": (),
        "started": 0.0,
        "ended": 1.0,
    }
    return TrialRecord(**made | changes)


def leave(folder: Path, made: TrialRecord) -> None:
    folder.mkdir(parents=True)
    write_text(folder / "record.json", to_json(made))


def standing(folder: Path | None = None, *, front: int = 0, running: int = 0) -> Standing:
    """A sweep with so many front members, each the faster the less accurate."""
    long = "Sweep a-rather-long-name-1a2b3c: resnet18 -> mobilenet_v3_small on folder:photos, 16 at once on 4 GPUs"
    about = {"trials": 200, "done": front, "concurrency": 16, "teacher": "teacher resnet18: val 96.52 %", "stops": True}
    made = Standing(phase="trials", title=long, folder=folder, **about)
    for number in range(front):
        made.note(str(number), record(number, 0.95 - number / 100, 1.0 - number / 50, 1.0))
    for number in range(running):
        made.running[str(number)] = f"{number:>7}  student  3/20  val 91.2 %"
    return made


def drawn(sweep: Standing, width: int, height: int, use: str = "CPU 97 % of 2 cores") -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(screen(sweep, use, width=width, height=height))
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 12), (80, 6)])
@pytest.mark.parametrize(("front", "running"), [(0, 0), (1, 2), (30, 2), (2, 64), (30, 64)])
def test_a_picture_is_never_larger_than_the_terminal(width: int, height: int, front: int, running: int) -> None:
    lines = drawn(standing(front=front, running=running), width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width


def test_a_picture_shows_front_states_use_and_time(tmp_path: Path) -> None:
    leave(
        tmp_path / "teacher",
        record(
            None,
            0.97,
            1.0,
            4.0,
            stage="teacher",
            metrics={"size_bytes": 4e6} | {"train_time_s": 80.0, "reused_time_s": 0.0},
        ),
    )
    sweep = standing(tmp_path, front=3, running=2)
    sweep.note("3", record(3, 0.5, 2.0, 2.0))
    sweep.note("4", record(4, 0.0, 0.0, 0.0, status="stopped", metrics={}))
    text = "\n".join(drawn(sweep, 80, 24))
    for words in ("3/200 done", "4 finished", "1 stopped", "2 running", "CPU 97 %", "4 of 4 trials", "80 s saved"):
        assert words in text, text
    assert "95.00" in text and "93.00" in text and "50.00" not in text  # dominated
    assert "0.25" in text  # of the teacher's size
    assert "12.3" not in text  # the test split stays closed until the end


def test_a_long_front_is_shown_from_end_to_end() -> None:
    text = "\n".join(drawn(standing(front=30, running=4), 80, 24))
    assert "of 30 (ms" in text
    assert "95.00" in text and "66.00" in text


def test_more_running_trials_than_lines_are_counted() -> None:
    assert any("more running" in line for line in drawn(standing(running=64), 80, 24))


def test_earlier_runs_are_part_of_the_picture(tmp_path: Path) -> None:
    leave(tmp_path / "trials" / "00000", record(0, 0.9, 0.5, 1.0))
    leave(tmp_path / "trials" / "00001", record(1, 0.0, 0.0, 0.0, status="infeasible", metrics={}))
    sweep = standing(tmp_path)
    assert dict(sweep.states) == {"finished": 1, "infeasible": 1}
    assert list(sweep.front().index) == ["0"]


def test_controls_are_counted_but_never_on_the_front() -> None:
    sweep = standing()
    sweep.note("0-champion-seed1", record(None, 0.99, 0.1, 0.1, tags={"control": "champion"}))
    assert sweep.states["finished"] == 1
    assert sweep.front().empty


def test_a_search_with_a_deadline_goes_on_to_it_whatever_was_planned() -> None:
    sweep = Standing(phase="trials", title="", trials=1, done=0, concurrency=1, until=lambda: 7.0)
    sweep._estimate = (time.monotonic(), Range(1.0, 50.0, 90.0))
    assert sweep.left() == Range(7.0, 7.0, 7.0)
    for trial in ("a", "b"):
        sweep.end(trial)
    assert (sweep.done, sweep.trials) == (2, 2)


def filled(store: Store, view: int, seconds: float) -> None:
    """Soft labels of a view, as their stage leaves them in a store."""

    def fill(folder: Path) -> Generator[Never, None, None]:
        (folder / "record.json").write_text(json.dumps({"view": view, "seconds": seconds}))
        yield from ()

    assert list(store.obtain(stage_key("soft_labels", version=1, view=view), fill)) == []


@pytest.mark.parametrize("storage", [None, "shared", "url"])
def test_soft_labels_of_this_sweep_tell_their_seconds_wherever_the_store_is(
    tmp_path: Path, storage: str | None
) -> None:
    where = {None: None, "shared": str(tmp_path / "shared"), "url": f"file://{tmp_path}/bucket"}[storage]
    store = store_below(tmp_path / "out", where)
    about = {"phase": "trials", "title": "", "trials": 9, "done": 0, "concurrency": 1}
    standing = Standing(**about, folder=tmp_path / "out" / "sweeps" / "x", store=store)
    assert standing.pace._labels_s() == 0.0
    for view, seconds in enumerate((3.0, 5.0, 40.0)):
        filled(store_below(tmp_path / "out", where), view, seconds)
    assert standing.pace._labels_s() == 5.0
    assert label_seconds(store, time.time() + 60) == 0.0
    assert Standing(**about).pace._labels_s() == 0.0


def test_labels_of_an_earlier_sweep_that_were_only_downloaded_cost_nothing(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    here, there = store_below(tmp_path / "here", url), store_below(tmp_path / "there", url)
    filled(there, 0, 7.0)
    time.sleep(0.05)
    since = time.time()
    assert here.find(stage_key("soft_labels", version=1, view=0)) is not None
    assert label_seconds(here, since) == 0.0
    assert label_seconds(here, 0.0) == 7.0


def followed(console: Console) -> None:
    """A sweep of two trials, one stopped, through the callbacks that Tune calls."""
    about = {"phase": "trials", "title": "Sweep s", "trials": 2, "done": 0, "concurrency": 1, "teacher": "teacher t"}
    progress = Progress(console, **about)
    trial = SimpleNamespace(trial_id="t", config={"task": SimpleNamespace(trial_number=0)})
    result = {"stage": "student", "epoch": 1, "epochs": 4, "step": 1, "steps": 6, "val_accuracy": 0.5}
    with progress:
        progress.on_trial_start(0, [], trial)
        progress.on_trial_result(0, [], trial, {"stage": "shape"})
        progress.on_trial_result(0, [], trial, result)
        progress.on_trial_complete(0, [], trial)
        progress.finished("0", record(0, 0.9, 0.5, 1.0), 90.5, "score 90.50")
        progress.on_trial_start(0, [], trial)
        progress.on_trial_error(0, [], trial)
        progress.dropped("1", record(1, 0, 0, 0, status="failed", reason="it broke", metrics={}))


def test_a_log_gets_one_line_a_trial(capsys: pytest.CaptureFixture[str]) -> None:
    followed(Screen(width=100))
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[:2] == ["Sweep s", "teacher t"]
    assert lines[2] == "[1/2] trial 0  score 90.50"  # less than a second is not worth a word
    assert lines[3:] == ["[2/2] trial 1  failed: it broke"]
    assert captured.err == ""


def test_quiet_prints_nothing_but_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = Screen("quiet")
    followed(quiet)
    quiet.event("finished")
    with quiet.busy("Reading"):
        pass
    quiet.print("the result")
    assert capsys.readouterr() == ("the result\n", "")


def test_json_is_one_object_a_line_and_people_are_told_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    programs = Screen("json")
    followed(programs)
    programs.print("the result")
    captured = capsys.readouterr()
    events = [json.loads(line) for line in captured.out.splitlines()]
    assert [event["event"] for event in events] == ["started", "trial", "trial"]
    assert (events[0]["phase"], events[0]["trials"]) == ("trials", 2)
    assert (events[1]["trial"], events[1]["status"], events[1]["score"]) == ("0", "finished", 90.5)
    assert events[1]["metrics"]["val_accuracy"] == 0.9
    assert events[1]["left_s"].keys() == {"low", "expected", "high"}
    assert (events[2]["reason"], events[2]["done"], events[2]["metrics"]) == ("it broke", 2, {})
    assert captured.err == "the result\n"


def test_a_terminal_is_left_clean_and_keeps_only_what_failed() -> None:
    file = io.StringIO()
    followed(Screen(file=file, width=80, height=24, force_terminal=True, color_system=None))
    assert "front so far" in file.getvalue() or "2/2 done" in file.getvalue()
    assert "trial 1  failed: it broke\n" in file.getvalue()


def test_the_time_to_the_first_trial_is_taken_once() -> None:
    here = Screen("quiet")
    here.first_trial()
    assert here.start_s is None
    here.launch()
    here.first_trial()
    first = here.start_s
    time.sleep(0.01)
    here.first_trial()
    assert here.start_s == first is not None


def test_a_cluster_without_room_is_told_once_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    shown = Progress(Console(file=said, width=200), phase="trials", title="", trials=2, done=0, concurrency=1)
    needs = PlacementGroupFactory([{"CPU": 1, "GPU": 0.25}])
    trial = SimpleNamespace(status=Trial.PENDING, placement_group_factory=needs)
    monkeypatch.setattr("sweeps.display.progress.WAITING_S", 0.05)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "memory": 1e9})
    for status in (Trial.PENDING, Trial.RUNNING, Trial.PENDING):
        trial.status = status
        for _ in range(4):
            shown.on_step_end(0, [trial])
            time.sleep(0.04)
    lines = said.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("No trial has run for 0 s: one takes 1 CPU, 0.25 GPU, the cluster has 2 CPU, 0 GPU.")


def test_a_stopped_trial_keeps_its_curve_and_its_shape(tmp_path: Path) -> None:
    delivered: list[str] = []
    tracker = SimpleNamespace(deliver=lambda folder, scores: delivered.append(folder.name))
    told: list[TrialRecord] = []
    progress = SimpleNamespace(dropped=lambda label, made: told.append(made))
    delivery = Delivery(tracker, lambda metrics: 0.0, progress)
    task = TrialTask(
        candidate=CandidateConfig().resolve(SimpleNamespace(name="digits", image_size=32), device="cpu"),
        worker=worker_of(quick().replace(out=tmp_path)),
        key="s/00003",
        folder=tmp_path / "00003",
        trial_number=3,
    )
    epoch = {"stage": "student", "epochs": 4, "train_loss": 1.0, "train_accuracy": 0.4, "val_loss": 1.1}
    epoch |= {"val_accuracy": 0.5, "learning_rate": 0.01, "seconds": 2.0, "steps": 6, "final": False} | SHAPE
    trial = SimpleNamespace(
        trial_id="t", config=task.tune_config(), last_result={"step": 2, "steps": 6}, error_file=None
    )
    delivery.on_trial_result(0, [], trial, {"stage": "shape", "final": False})
    for number in (1, 2, 2):  # one that was trained again after its process had died counts once
        delivery.on_trial_result(0, [], trial, epoch | {"epoch": number, "step": number})
    delivery.on_trial_complete(0, [], trial)
    made = read_trial(tmp_path / "00003")
    assert (made.status, made.reason) == ("stopped", "after 2 of 6 epochs")
    assert [(point.stage, point.epoch, point.val_accuracy) for point in made.curve] == [
        ("student", 1, 0.5),
        ("student", 2, 0.5),
    ]
    assert made.metrics == SHAPE
    assert delivered == ["00003"]
    assert told == [made]


def test_the_end_is_told_with_front_and_reuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = quick().replace(name="x", out=tmp_path)
    spent = {"size_bytes": 4e6, "train_time_s": 80.0, "reused_time_s": 0.0}
    leave(config.folder / "teacher", record(None, 0.97, 1.0, 4.0, stage="teacher", metrics=spent))
    leave(config.folder / "trials" / "00000", record(0, 0.9, 0.5, 1.0))
    leave(config.folder / "trials" / "00001", record(1, 0.8, 0.6, 1.0))
    tell_end(config, Screen("json"), 1)
    end = json.loads(capsys.readouterr().out)
    assert (end["event"], end["sweep"], end["exit_code"], end["trials"]) == ("finished", "x", 1, {"finished": 2})
    assert [member["trial"] for member in end["front"]] == [0]
    assert end["front"][0]["model"] == str(config.folder / "trials" / "00000" / "model.onnx")
    assert end["front"][0]["val_accuracy"] == 0.9
    assert end["reuse"] == {"trials": 2, "of": 2, "seconds": 40.0}
    tell_end(config, Screen("quiet"), 0)
    assert capsys.readouterr().out == ""
