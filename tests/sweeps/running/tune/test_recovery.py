"""Trial folders and study agree again, wherever the driver died between the two."""

import dataclasses
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState
from ray.tune.experiment import Trial
from s3fs import S3FileSystem

from sweeps.planning.budget import Deadline
from sweeps.running.run import worker_of
from sweeps.running.trials import FAILED_ALIKE, SweepSearcher
from sweeps.running.tune import recovery
from sweeps.running.tune.delivery import fetch_record, left_record, write_record
from sweeps.running.tune.recovery import fetch_late, recover, to_repeat
from sweeps.running.tune.retry import reason_in
from sweeps.running.tune.upkeep import NODE_DEATHS, Allowance
from sweeps.search.config import Search, SweepConfig
from sweeps.search.folder import InputError
from sweeps.search.presets import quick
from sweeps.search.space import parse
from tests.sweeps.search.sampling.test_searcher import FINAL, ask, driver, space_of
from trainables.config.limits import Limits
from trainables.records.encoding import to_json
from trainables.records.trial import TrialRecord, read_trial, set_damaged_aside
from trainables.tracking.deliveries import outbox
from trainables.tracking.transport import INCOMING, fetch, send
from trainables.trials.task import TrialTask, task_of

# Of options of Optuna's samplers that it calls experimental; sweeps use them, and are silent about it.
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
SPACE = space_of(alpha="0.5:0.9", pruning_ratio="0.2:0.4")


def task(config: SweepConfig, number: int, params: Any, dataset: str = "digits") -> TrialTask:
    folder = config.folder / "trials" / f"{number:05}"
    images = SimpleNamespace(name=dataset, image_size=32)
    return TrialTask(
        candidate=config.search.base.replace(**params).resolve(images, device="cpu"),
        worker=worker_of(config),
        key=f"{config.name}/{folder.name}",
        folder=folder,
        trial_number=number,
    )


def record(folder: Path, number: int, status: str, **metrics: float) -> None:
    row = TrialRecord(
        key=f"night/{number:05}",
        trial_number=number,
        stage="candidate",
        status=status,
        reason="because" if status == "failed" else "",
        params={},
        metrics=metrics,
        tags={},
        curve=(),
        files=(),
        started=1.0,
        ended=2.0,
    )
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(to_json(row))


def recovered(tmp_path: Path, config: SweepConfig) -> tuple[Any, Any]:
    """Study and searcher of a new driver, after recovery."""
    study, searcher = driver(config.folder, SPACE)
    teacher_dir = tmp_path / "teacher"
    if not teacher_dir.exists():
        record(teacher_dir, 0, "finished", val_accuracy=0.95)
    teacher = read_trial(teacher_dir)
    recover(study, searcher, config, lambda n, p: task(config, n, p), teacher=teacher)
    return study, searcher


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    config = quick().replace(name="night", out=tmp_path / "runs")
    config.folder.mkdir(parents=True)
    return config


def test_a_trial_that_had_left_its_record_is_not_run_again(tmp_path: Path, config: SweepConfig) -> None:
    _, searcher = driver(config.folder, SPACE)
    ask(searcher, 4)  # and the driver dies
    trials = config.folder / "trials"
    metrics = {name: value for name, value in FINAL.items() if name != "final"}
    record(trials / "00000", 0, "finished", **metrics)
    record(trials / "00001", 1, "failed")
    record(trials / "00002", 2, "infeasible", latency_p50_ms=9.0, size_bytes=1e6, macs=1e6)
    config = config.replace(limits=Limits(max_latency_ms=3.0, max_drop=1.0))
    study, searcher = recovered(tmp_path, config)
    states = [trial.state for trial in study.trials[:4]]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.RUNNING]
    assert study.trials[0].value == pytest.approx(90.0)
    assert study.trials[1].user_attrs["reason"] == "because"
    assert study.trials[2].constraints["max_latency_ms"] == pytest.approx(2.0)
    assert ask(searcher, 2, name="next")[0]["trial_number"] == 3


def test_a_trial_that_was_stopped_as_the_driver_died_gets_its_record(tmp_path: Path, config: SweepConfig) -> None:
    _, searcher = driver(config.folder, SPACE)
    ask(searcher, 2)
    searcher.on_trial_complete("t0", {"final": False, "step": 2, "steps": 6})
    searcher.on_trial_complete("t1", error=True)
    recovered(tmp_path, config)
    stopped, failed = (read_trial(config.folder / "trials" / name) for name in ("00000", "00001"))
    assert (stopped.status, stopped.reason) == ("stopped", "stopped before its end")
    assert (failed.status, failed.reason) == ("failed", "infrastructure error after retries")
    assert stopped.params["alpha"] == study_params(config)[0]["alpha"]


def study_params(config: SweepConfig) -> list[dict[str, Any]]:
    return [trial.params for trial in driver(config.folder, SPACE)[0].trials]


def test_a_record_that_is_still_in_storage_is_fetched(tmp_path: Path, config: SweepConfig) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    config = config.replace(storage=str(shared))
    _, searcher = driver(config.folder, SPACE)
    ask(searcher, 1)
    elsewhere = tmp_path / "node" / "00000"
    record(elsewhere, 0, "finished", **{name: value for name, value in FINAL.items() if name != "final"})
    send(elsewhere, "night/00000", str(shared))
    study, _ = recovered(tmp_path, config)
    assert study.trials[0].state == TrialState.COMPLETE
    assert read_trial(config.folder / "trials" / "00000") == read_trial(elsewhere)


@pytest.fixture
def no_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An S3 where nobody is; fsspec keeps its connections, and later tests shall not meet this one."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("no_s3")
def test_what_the_storage_did_not_give_is_fetched_later_and_never_taken_for_lost(
    tmp_path: Path, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "PATIENCE_S", 0.1)
    away = config.replace(storage="s3://bucket/runs")
    study, searcher = driver(config.folder, SPACE)
    ask(searcher, 1)
    searcher.on_trial_complete("t0", FINAL)
    assert fetch_late(study, away, partial(task, away)) == 1
    with pytest.raises(InputError, match=r"--storage s3://bucket/runs: .* run the same command"):
        recovered(tmp_path, away)
    assert not (config.folder / "trials" / "00000").exists()
    shared, elsewhere = tmp_path / "shared", tmp_path / "node" / "00000"
    shared.mkdir()
    record(elsewhere, 0, "finished", val_accuracy=0.9)
    send(elsewhere, "night/00000", str(shared))
    near = config.replace(storage=str(shared))
    assert fetch_late(study, near, partial(task, near)) == 0
    assert read_trial(config.folder / "trials" / "00000") == read_trial(elsewhere)


def test_dying_is_no_failure_as_long_as_epochs_are_finished_in_between() -> None:
    trial, allowance = Trial("a trainable", stub=True, max_failures=3), Allowance(3)
    for epoch in range(5):
        trial.run_metadata.num_failures += 3
        assert trial.should_recover()
        allowance.on_trial_result(0, [trial], trial, {"stage": "student", "epoch": epoch, "train_loss": 1.0})
    trial.run_metadata.num_failures += 4
    assert not trial.should_recover()


def test_the_death_of_a_node_counts_only_if_it_happens_again_and_again(tmp_path: Path) -> None:
    class OnNodes(Trial):
        error_file = str(tmp_path / "error.txt")

    trial, allowance, deaths = OnNodes("a trainable", stub=True, max_failures=3), Allowance(3), 0
    while trial.should_recover():
        deaths += 1
        trial.run_metadata.num_failures += 1
        text = f"Failure # {deaths}\nThe actor died because its node has died. Node Id: 1"
        Path(trial.error_file).write_text(text)
        if trial.should_recover():
            allowance.on_trial_recover(0, [trial], trial)
    assert deaths == 3 + NODE_DEATHS + 1


@pytest.mark.parametrize("other", ["a configuration", "a sweep"])
def test_the_record_of_another_trial_under_the_same_number_is_not_taken(
    tmp_path: Path, config: SweepConfig, other: str
) -> None:
    """A journal that was cut short proposes a number again; another sweep of the name left its folder here."""
    _, searcher = driver(config.folder, SPACE)
    ask(searcher, 1)
    asked = study_params(config)[0]
    folder = config.folder / "trials" / "00000"
    record(folder, 0, "finished", **{name: value for name, value in FINAL.items() if name != "final"})
    left = json.loads((folder / "record.json").read_text())
    changes = {"params": {"alpha": asked["alpha"] + 0.1}} if other == "a configuration" else {"sweep_id": "theirs"}
    (folder / "record.json").write_text(json.dumps(left | changes))
    study, searcher = recovered(tmp_path, config)
    assert study.trials[0].state == TrialState.RUNNING
    assert not folder.exists()
    (aside,) = (config.folder / "trials" / ".replaced").iterdir()
    assert (aside / "record.json").exists()
    assert outbox(config.folder) == []
    assert ask(searcher, 1, name="next")[0]["trial_number"] == 0


def test_another_sweep_of_the_name_in_the_storage_is_not_taken_for_this_one(
    tmp_path: Path, config: SweepConfig
) -> None:
    """Two people, one bucket, one name: neither overwrites the other, nor is given the other's result."""
    shared = tmp_path / "shared"
    mine, theirs = (dataclasses.replace(task(config, 0, {}), sweep_id=sweep_id) for sweep_id in ("a", "b"))
    shared.mkdir()
    for task_, accuracy in ((theirs, 0.1), (mine, 0.9)):
        node = tmp_path / task_.sweep_id / "00000"
        node.mkdir(parents=True)
        made = task_.record(status="finished", started=1.0, ended=2.0, metrics={"val_accuracy": accuracy})
        (node / "record.json").write_text(to_json(made))
        send(node, task_.address, str(shared))
        if task_ is theirs:
            assert not fetch_record(mine, str(shared))
    assert fetch_record(mine, str(shared))
    assert read_trial(mine.folder).metrics["val_accuracy"] == 0.9
    (mine.folder / "record.json").unlink()
    other = dataclasses.replace(task(config, 0, {"learning_rate": 0.5}), sweep_id="a")
    assert not fetch_record(other, str(shared))
    assert not (mine.folder / "record.json").exists()


@pytest.mark.parametrize("report", [{"stage": "shape"}, {"stage": "student", "epoch": 1, "train_loss": 1.0}])
def test_what_every_attempt_reports_again_is_no_progress(report: dict[str, Any]) -> None:
    trial, allowance = Trial("a trainable", stub=True, max_failures=3), Allowance(3)
    for _ in range(4):
        allowance.on_trial_result(0, [trial], trial, report)
        trial.run_metadata.num_failures += 1
    assert not trial.should_recover()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("Traceback\n  File\nTypeError: no tuple\n", "TypeError: no tuple"),
        ("The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR", "was killed"),
        ("The actor died because its node has died. Node Id: 1", "its node died"),
        ("", "its process died"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(failure: str, reason: str) -> None:
    assert reason in reason_in(failure)
    assert "\n" not in reason_in(failure)


def test_half_a_trial_on_its_way_is_no_trial(tmp_path: Path, config: SweepConfig) -> None:
    """A driver that was killed while it fetched: the half lies beside, is not delivered, and is fetched again."""
    elsewhere, folder = tmp_path / "node" / "00000", config.folder / "trials" / "00000"
    record(elsewhere, 0, "finished", val_accuracy=0.9)
    shared = tmp_path / "shared"
    shared.mkdir()
    send(elsewhere, "night/00000", str(shared))
    half = folder.parent / INCOMING / "00000.download"
    record(half, 0, "finished", val_accuracy=0.1)
    assert outbox(config.folder) == list(config.folder.glob("trials/*/record.json")) == []
    assert fetch(folder, "night/00000", str(shared), fits=lambda record: True)
    assert outbox(config.folder) == [folder]
    assert read_trial(folder) == read_trial(elsewhere)
    assert not half.exists()


def test_a_full_disk_leaves_the_trial_to_the_next_driver(tmp_path: Path) -> None:
    study, searcher = driver(tmp_path, SPACE)
    ask(searcher, 1)
    searcher.on_trial_complete("t0", {"full": "/out: No space left on device", "final": False})
    assert searcher.full == "/out: No space left on device"
    assert searcher.suggest("t1") == "FINISHED"
    assert study.trials[0].state == TrialState.RUNNING
    _, again = driver(tmp_path, SPACE)
    assert ask(again, 1)[0]["trial_number"] == 0


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"final": True}, True),
        ({"invalid": "why", "final": False}, True),
        ({"excess/max_drop": 1.0, "final": False}, True),
        ({"step": 2, "final": False}, False),
        ({"full": "disk", "final": False}, False),
    ],
)
def test_who_has_left_a_record_is_known_from_the_last_report(result: dict[str, Any], expected: bool) -> None:
    assert left_record(result) is expected


def test_a_record_that_the_driver_writes_hides_local_paths(tmp_path: Path, config: SweepConfig) -> None:
    config = config.replace(base=config.search.base.replace(dataset="folder:/home/me/photos"))
    write_record(task(config, 3, {}, "folder:photos"), status="stopped", reason="r", seconds=2.0)
    written = read_trial(config.folder / "trials" / "00003")
    assert written.params["dataset"] == "folder:photos"
    assert written.ended - written.started == pytest.approx(2.0)


def new_driver(config: SweepConfig, *, failed: bool = False) -> tuple[SweepSearcher, list[int]]:
    """The searcher of a sweep's next command, and the numbers of the trials that it runs again."""
    study, _ = driver(config.folder, SPACE)
    make_task = partial(task, config)
    again = to_repeat(study, config, make_task, failed=failed)
    made = SweepSearcher(
        study,
        Search(space=SPACE, objective="composite", reuse_probability=0.0),
        task_of=make_task,
        score=lambda metrics: 90.0,
        again=again,
    )
    return made, [trial.number for trial in again]


def numbers(searcher: SweepSearcher, count: int) -> list[int]:
    return [task_of(SimpleNamespace(config=config)).trial_number for config in ask(searcher, count, name="again")]


@pytest.mark.parametrize("damage", ["", "{", "null", '{"key": 1}'])
def test_a_finished_trial_whose_record_is_damaged_is_made_again_under_its_number(
    config: SweepConfig, damage: str
) -> None:
    _, searcher = driver(config.folder, SPACE)
    ask(searcher, 2)
    for number in range(2):
        searcher.on_trial_complete(f"t{number}", FINAL)
        record(config.folder / "trials" / f"{number:05}", number, "finished", val_accuracy=0.9)
    folder = config.folder / "trials" / "00001"
    (folder / "record.json").write_text(damage)
    (folder / "delivered.json").write_text("{}")
    assert set_damaged_aside(outbox(config.folder)) == [folder / "record.json.corrupt-1"]
    before = driver(config.folder, SPACE)[0].trials
    again, which = new_driver(config)
    assert which == [1]
    assert numbers(again, 2)[0] == 1
    assert again.repeating
    again.on_trial_complete("again0", FINAL)
    assert not again.repeating
    assert not (folder / "delivered.json").exists()
    assert driver(config.folder, SPACE)[0].trials[:2] == before[:2]


def test_failed_trials_run_again_if_asked_for_also_after_a_crash(config: SweepConfig) -> None:
    _, searcher = driver(config.folder, SPACE)
    ask(searcher, 3)
    searcher.on_trial_complete("t0", FINAL)
    searcher.on_trial_complete("t1", {"invalid": "because", "final": False})
    searcher.on_trial_complete("t2", error=True)
    for number, status in enumerate(("finished", "failed", "failed")):
        record(config.folder / "trials" / f"{number:05}", number, status)
    assert new_driver(config)[1] == []
    assert new_driver(config, failed=True)[1] == [1, 2]
    again, which = new_driver(config)  # the driver that should have run them died
    assert which == [1, 2]
    assert numbers(again, 2) == [1, 2]


def test_a_failed_record_is_not_fetched_again_for_the_next_attempt(tmp_path: Path, config: SweepConfig) -> None:
    config = config.replace(storage=str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    _, searcher = driver(config.folder, SPACE)
    ask(searcher, 1)
    searcher.on_trial_complete("t0", {"invalid": "because", "final": False})
    asked = study_params(config)[0]
    failed = task(config, 0, asked)
    failed.folder.mkdir(parents=True)
    made = failed.record(status="failed", reason="because", started=1.0, ended=2.0)
    (failed.folder / "record.json").write_text(to_json(made))
    send(failed.folder, failed.address, str(tmp_path / "shared"))
    assert new_driver(config, failed=True)[1] == [0]
    assert not fetch_record(failed, str(tmp_path / "shared"))
    assert new_driver(config)[1] == [0], "its driver died"


def test_a_sweep_whose_trials_all_fail_alike_stops_and_says_why(config: SweepConfig) -> None:
    for reasons, said in (
        (["no such file"] * FAILED_ALIKE, "no such file"),
        (["no such file"] * (FAILED_ALIKE - 1) + ["diverged"] * FAILED_ALIKE, None),
        ([None] + ["no such file"] * FAILED_ALIKE, None),
    ):
        searcher, _ = new_driver(config)
        for reason in reasons:
            assert searcher.hopeless is None
            ask(searcher, 1)
            searcher.on_trial_complete("t0", {"invalid": reason, "final": False} if reason else FINAL)
        assert searcher.hopeless == said
        assert (searcher.suggest("next") == "FINISHED") == (said is not None)


def test_when_it_is_too_late_for_another_network_files_of_those_that_run_are_written_still(config: SweepConfig) -> None:
    space = SPACE | {"precision": parse("precision", "fp32,int8_ptq")}
    study, _ = driver(config.folder, space)
    deadline = Deadline(at=time.monotonic() + 1000, trial_s=60.0, file_s=5.0)
    searcher = SweepSearcher(
        study,
        Search(space=space, objective="composite", reuse_probability=0.0),
        task_of=partial(task, config),
        score=lambda metrics: 90.0,
        deadline=deadline,
    )
    one, _ = ask(searcher, 2)
    late = dataclasses.replace(deadline, at=time.monotonic() + 30)
    searcher._deadline = late
    assert searcher.suggest("more") is None, "it waits for the two that run"
    searcher.on_trial_complete("t0", FINAL)
    (other,) = ask(searcher, 1, name="file")
    first, second = (task_of(SimpleNamespace(config=found)).candidate for found in (one, other))
    assert {first.export.precision, second.export.precision} == {"fp32", "int8_ptq"}
    assert first.student == second.student and first.prune == second.prune
    searcher.on_trial_complete("t1", FINAL)
    searcher.on_trial_complete("file0", FINAL)
    ask(searcher, 1, name="last")  # the file of the other network
    searcher.on_trial_complete("last0", FINAL)
    assert searcher.suggest("end") == "FINISHED" and searcher.exhausted


def test_what_trials_have_taken_decides_whether_there_is_time_for_another(config: SweepConfig) -> None:
    study, _ = driver(config.folder, SPACE)
    searcher = SweepSearcher(
        study,
        Search(space=SPACE, objective="composite", reuse_probability=0.0),
        task_of=partial(task, config),
        score=lambda metrics: 90.0,
        deadline=Deadline(at=time.monotonic() + 100, trial_s=60.0, file_s=5.0),
    )
    ask(searcher, 3)
    trained = FINAL | {"training_iteration": 4}  # shape, two epochs, end
    searcher.on_trial_complete("t0", FINAL | {"training_iteration": 2, "time_total_s": 3.0})
    searcher._deadline = Deadline(at=time.monotonic() + 50, trial_s=60.0, file_s=5.0)
    assert searcher.late(), "one that trained nothing says nothing"
    searcher.on_trial_complete("t1", trained | {"time_total_s": 40.0})
    assert not searcher.late(), "slower was expected"
    searcher.on_trial_complete("t2", trained | {"time_total_s": 70.0})
    searcher._deadline = Deadline(at=time.monotonic() + 65, trial_s=60.0, file_s=5.0)
    assert searcher.late(), "quicker was expected"
