"""Champions and their controls: which are chosen, and what is trained; tests/sweeps/test_kd_prune.py runs them all."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from sweeps.planning.budget import Deadline
from sweeps.running import champions
from sweeps.running.champions import ArmDelivery, arm_runs, arms, choose_champions, retrain
from sweeps.running.run import Run, worker_of
from sweeps.running.tune.fixed_runs import FixedRuns
from sweeps.search.config import SweepConfig
from sweeps.search.presets import quick
from trainables.config.candidate import CandidateConfig
from trainables.records.encoding import to_json
from trainables.records.stages import DatasetRecord
from trainables.records.trial import TrialRecord, read_trial
from trainables.stages.candidate.from_scratch import scratch_key, train_from_scratch
from trainables.stages.pruning.recovery import recover
from trainables.stages.training import loop as loop_module
from trainables.stages.training.student import train_student
from trainables.stages.training.teacher import teacher_key, train_teacher
from trainables.stages.workspace import Bench, Workspace
from trainables.store.results import Key, Store
from trainables.trials.task import TrialTask

TEACHER = {"val_accuracy": 0.95, "latency_p50_ms": 4.0, "size_bytes": 16e6}
CORNER = {"error_points": 90.0, "log2_latency_vs_teacher": 1.0, "log2_size_vs_teacher": 1.0}
ARMS = ("champion", "no_distillation", "from_scratch", "not_pruned")


def record(number: int, accuracy: float, latency: float, size: float, **changes: Any) -> TrialRecord:
    metrics = {"val_accuracy": accuracy, "latency_p50_ms": latency, "size_bytes": size}
    made = TrialRecord(
        key=f"x/{number:05}",
        trial_number=number,
        stage="candidate",
        status="finished",
        reason="",
        params={"alpha": number / 10},
        metrics=metrics | {"reference_latency_p50_ms": 4.0, "test_accuracy": 1 - accuracy},
        tags={},
        curve=(),
        files=(),
        started=0.0,
        ended=1.0,
    )
    return dataclasses.replace(made, **changes)


def chosen(records: list[TrialRecord], count: int) -> list[int]:
    return list(choose_champions(records, TEACHER, CORNER, count=count))


def test_champions_are_the_front_members_that_the_hypervolume_would_miss_most() -> None:
    # In points x doublings x doublings up to the corner: without 1 about 630 - 73 are lost; without 0 the (80 - 79) x 1
    # x 1 over 3; without 3, a sliver faster than 0, (79 - 70) x log2(4 / 3.9) = 0.33. 1 dominates 2.
    records = [
        record(0, 0.9, 4.0, 16e6),
        record(1, 0.8, 1.0, 4e6),
        record(2, 0.7, 1.0, 4e6),
        record(3, 0.89, 3.9, 16e6),
    ]
    assert chosen(records, 1) == [1]
    assert chosen(records, 2) == [1, 0]
    assert chosen(records, 9) == [1, 0, 3]


def test_the_uncut_teacher_is_on_the_front_and_no_champion() -> None:
    """It is not trained: another seed would be the same file, and from random weights it would have no epochs."""
    uncut = {"student_model": "teacher", "pruning_ratio": 0.0}
    records = [record(0, 0.9, 1.0, 4e6, params=uncut), record(1, 0.8, 0.9, 4e6, params=uncut | {"pruning_ratio": 0.5})]
    assert chosen(records, 9) == [1]
    assert chosen(records[:1], 9) == []


def test_ties_of_hypervolume_go_to_accuracy_then_to_the_earlier_trial() -> None:
    twins = [record(number, 0.9, 2.0, 8e6) for number in (5, 4)]  # each is worth nothing beside the other
    assert chosen(twins, 2) == [4, 5]
    far = [record(0, 0.5, 40.0, 16e6), record(1, 0.6, 41.0, 16e6)]  # both slower than the corner: no volume
    assert chosen(far, 1) == [1]


def test_only_finished_trials_of_the_search_can_be_champions() -> None:
    dream = record(1, 1.0, 0.1, 1e3, status="stopped")
    assert chosen([dream, record(0, 0.5, 2.0, 8e6), record(2, 1.0, 0.1, 1e3, trial_number=None)], 3) == [0]
    assert chosen([dream], 3) == []


def test_arms_differ_from_the_champion_in_one_thing_each() -> None:
    champion = CandidateConfig().replace(alpha=0.7, pruning_ratio=0.5, seed=2)
    found = arms(champion)
    assert tuple(found) == ARMS
    flat = champion.canonical().flat()
    changed = {arm: {n: v for n, v in config.flat().items() if v != flat[n]} for arm, config in found.items()}
    assert changed == {
        "champion": {},
        "no_distillation": {"alpha": 0.0},
        "from_scratch": {},
        "not_pruned": {"pruning_ratio": 0.0},
    }


def test_an_arm_that_is_not_taught_gets_the_champions_epochs() -> None:
    champion = CandidateConfig().replace(
        student_model="teacher", alpha=0.7, pruning_ratio=0.85, recovery_budget="time", kd_anneal=0.5
    )
    epochs = {
        arm: config.canonical().prune.recovery_epochs for arm, config in arms(champion).items() if arm != "not_pruned"
    }
    assert len(set(epochs.values())) == 1, epochs


def test_an_arm_that_is_the_champion_itself_is_left_out() -> None:
    assert "no_distillation" not in arms(CandidateConfig().replace(kd_loss="none"))
    assert "not_pruned" not in arms(CandidateConfig().replace(pruning_ratio=0.0))


def test_the_list_is_handed_out_once_and_in_order() -> None:
    searcher = FixedRuns({"n": n} for n in range(2))
    assert [searcher.suggest(str(n)) for n in range(3)] == [{"n": 0}, {"n": 1}, FixedRuns.FINISHED]


@pytest.mark.parametrize(("changes", "words"), [({"champions": -1}, "champions=-1"), ({"seeds": 0}, "seeds=0")])
def test_out_of_range_counts_are_named(changes: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SweepConfig(name="x").replace(**changes)


def test_champions_may_be_asked_for_later() -> None:
    assert quick().replace(champions=3, seeds=9).identity() == quick().identity()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[CandidateConfig, Workspace, DatasetRecord]:
    folder = tmp_path_factory.mktemp("scratch")
    words = {"train_limit": 100, "teacher_epochs": 1, "student_epochs": 2, "recovery_epochs": 1, "latency_seconds": 0.1}
    config = quick().search.base.replace(pruning_ratio=0.4, **words)
    place = Workspace(
        store=Store(folder / "store"),
        data=config.data,
        data_dir=folder / "data",
        device="cpu",
        threads=1,
        lock_dir=folder / "leases",
    )
    return config, place, place.dataset()


def bench_of(config: CandidateConfig, place: Workspace) -> Bench:
    return Bench.of(config.resolve(place.dataset(), device="cpu"), place)


def test_what_is_the_students_alone_does_not_retrain_the_teacher(
    small: tuple[CandidateConfig, Workspace, DatasetRecord],
) -> None:
    config, _, dataset = small

    def key_of(**changes: Any) -> Key:
        return teacher_key(config.replace(**changes).resolve(dataset, device="cpu"), dataset)

    for change in ({"seed": 5}, {"weight_decay": 0.5}, {"learning_rate": 0.5}, {"label_smoothing": 0.2}):
        assert key_of(**change) == key_of()
    own = [{"teacher_seed": 5}, {"teacher_weight_decay": 0.5}, {"teacher_optimizer": "sgd"}]
    own += [{"teacher_label_smoothing": 0.2}, {"teacher_weights": "0" * 16}]
    for change in own:
        assert key_of(**change) != key_of()


def test_the_teacher_is_trained_by_its_own_settings(
    small: tuple[CandidateConfig, Workspace, DatasetRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, place, _ = small
    loops: list[loop_module.Loop] = []

    def seen(model: nn.Module, loop: loop_module.Loop, *rest: Any, **more: Any) -> Any:
        loops.append(loop)
        return loop_module.train(model, loop, *rest, **more)

    monkeypatch.setattr("trainables.stages.training.stage.train", seen)
    own = {"teacher_optimizer": "sgd", "teacher_learning_rate": 2e-3, "teacher_weight_decay": 0.01, "teacher_seed": 3}
    result(train_teacher(bench_of(config.replace(weight_decay=0.25, seed=7, **own), place)))
    (loop,) = loops
    assert (loop.optimizer, loop.learning_rate) == ("sgd", 2e-3)
    assert (loop.training.weight_decay, loop.training.seed) == (0.01, 3)


def result(stage: Any) -> Any:
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("method", ["structured", "l1_unstructured"])
def test_from_scratch_trains_the_champions_shape_for_as_many_epochs(
    small: tuple[CandidateConfig, Workspace, DatasetRecord], method: str
) -> None:
    config, place, _ = small
    bench = bench_of(config.replace(pruning_method=method), place)
    teacher = result(train_teacher(bench))
    dense = result(train_student(bench, teacher))
    champion = result(recover(bench, teacher, dense, channel_ratio=0.4))
    alone = result(train_from_scratch(bench, teacher, channel_ratio=0.4))
    assert (alone.num_params, alone.macs) == (champion.num_params, champion.macs)
    assert alone.num_nonzero_params == pytest.approx(champion.num_nonzero_params, rel=0.01)
    assert (alone.num_params < dense.num_params) is (method == "structured")
    assert len(alone.curve) == len(dense.curve) + len(champion.curve) > len(dense.curve) > 0
    assert alone.key not in (champion.key, dense.key)


def test_what_decides_a_network_from_scratch_is_in_its_key(
    small: tuple[CandidateConfig, Workspace, DatasetRecord],
) -> None:
    config, place, dataset = small
    teacher = result(train_teacher(bench_of(config, place)))

    def key_of(*, ratio: float = 0.4, **changes: Any) -> Key:
        return scratch_key(bench_of(config.replace(**changes), place).candidate, dataset, teacher, channel_ratio=ratio)

    changes = ({"seed": 1}, {"recovery_epochs": 2}, {"student_epochs": 3}, {"alpha": 0.1}, {"data_seed": 1})
    keys = [key_of(), *(key_of(**change) for change in changes), key_of(ratio=0.5)]
    assert len(set(keys)) == len(keys)


def searched(out: Path) -> SweepConfig:
    """A sweep whose search is over, with one trial on disk."""
    config = quick().replace(name="x", out=out, champions=1, seeds=2)
    folder = config.folder / "trials" / "00000"
    folder.mkdir(parents=True)
    made = record(0, 0.9, 2.0, 8e6, params=config.search.base.replace(alpha=0.5).canonical().flat())
    (folder / "record.json").write_text(to_json(made))
    return config


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("nothing may be started")


def test_every_arm_gets_every_seed_and_a_folder_of_its_own(
    small: tuple[CandidateConfig, Workspace, DatasetRecord], tmp_path: Path
) -> None:
    teacher_record = record(0, 0.95, 4.0, 16e6, stage="teacher")
    runs = arm_runs(searched(tmp_path), teacher_record, small[2])
    assert {run.folder.name for run in runs} == {f"0-{arm}-seed{seed}" for arm in ARMS for seed in (1, 2)}
    assert {run.candidate.training.seed for run in runs} == {1, 2}
    assert {run.candidate.student.alpha for run in runs if run.arm == "champion"} == {0.5}
    assert {run.candidate.teacher.teacher_seed for run in runs} == {0}


def test_when_the_time_is_over_the_arms_are_left_to_the_next_command(
    small: tuple[CandidateConfig, Workspace, DatasetRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champions, "tuner", refuse)
    console = Console(width=200)
    late = Run(
        config=searched(tmp_path),
        dataset=small[2],
        teacher=record(0, 0.95, 4.0, 16e6, stage="teacher"),
        sweep_id="",
        tracker=Any,
        console=console,
        deadline=Deadline(at=0.0, trial_s=1.0, file_s=0.0),
    )
    with console.capture() as capture:
        failed = retrain(late)
    assert failed == 0
    assert "8 runs of champions and controls did not fit" in capture.get()


def test_a_run_that_was_cut_leaves_no_record_and_one_that_died_keeps_its_arm(
    small: tuple[CandidateConfig, Workspace, DatasetRecord], tmp_path: Path
) -> None:
    delivered: list[str] = []
    tracker = SimpleNamespace(deliver=lambda folder, scores: delivered.append(folder.name))
    progress = SimpleNamespace(dropped=lambda label, made: None)
    delivery = ArmDelivery(tracker, refuse, progress)
    folder = tmp_path / "7-not_pruned-seed1"
    config, _, dataset = small
    task = TrialTask(
        candidate=config.resolve(dataset, device="cpu"),
        worker=worker_of(quick().replace(out=tmp_path)),
        key=f"x/champions/{folder.name}",
        folder=folder,
        tags={"control": "not_pruned", "champion": "7"},
    )
    last = {"step": 1, "steps": 2}
    trial = SimpleNamespace(trial_id="t", config=task.tune_config(), last_result=last, error_file=None)
    delivery.on_trial_complete(0, [], trial)
    assert not (folder / "record.json").exists()
    delivery.on_trial_error(0, [], trial)
    assert delivered == [folder.name]
    made = read_trial(folder)
    assert (made.status, made.tags) == ("failed", {"control": "not_pruned", "champion": "7"})
