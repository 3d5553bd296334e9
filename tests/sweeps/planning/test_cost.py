import argparse
import itertools
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeps import kd_prune
from sweeps.display.durations import Range, duration, in_words
from sweeps.planning.budget import (
    FINISH_S,
    MIN_NETWORKS,
    Deadline,
    fit_to_budget,
    remember_start,
    scaled,
    spent_seconds,
    start_seconds,
    trials_within,
)
from sweeps.planning.cost import QAT_COST, START_S, Hits, Plan, Probe, distinct_students, estimate
from sweeps.planning.reuse import look_up
from sweeps.running.tune.upkeep import Timesheet
from sweeps.search.config import SweepConfig
from sweeps.search.presets import quick
from sweeps.search.sampling.first_trials import average_cut
from sweeps.search.space import parse, values_of
from trainables.config.candidate import CandidateConfig
from trainables.config.compression import PruneConfig
from trainables.files import write_text
from trainables.layout import SPENT
from trainables.records.encoding import to_json
from trainables.stages.data import prepared

PROBE = Probe(
    teacher_step_s=(1.0, 2.0, 4.0),
    student_step_s={"alexnet_small": (0.5, 1.0, 1.5), "teacher": (0.2, 0.2)},
    labels_batch_s=(3.0,),
    teacher_check_s=5.0,
    student_check_s={"alexnet_small": 2.0, "teacher": 2.0},
    export_s={"alexnet_small": 4.0, "teacher": 4.0},
    teacher_steps=10,
    steps=10,
    label_batches=2,
    peak_bytes=500,
    student_bytes=100,
    teacher_bytes=1000,
    view_bytes=30,
)
SMALL = ["--preset", "quick", "--train-limit", "100", "--teacher-epochs", "1", "--student-epochs", "1"]


def sweep(**changes: object) -> SweepConfig:
    """Teacher 2 epochs, student 3, recovery 1, 4 s of timing, two at once, every trial its own student."""
    base = quick().search.base.replace(teacher_epochs=2, student_epochs=3, recovery_epochs=1, latency_seconds=4.0)
    space = {"learning_rate": parse("learning_rate", "1e-4:1e-2"), "pruning_ratio": parse("pruning_ratio", "0.2,0.3")}
    settings = {"base": base, "space": space, "trials": 6, "cpus": 2, "reuse_probability": 0.0} | changes
    return quick().replace(**settings)


def test_a_plan_by_hand() -> None:
    plan = estimate(PROBE, sweep(), Hits(views_needed=4))
    # teacher: 2 epochs of 10 steps and a check, two exports, one and a half times a trial's timings
    assert plan.teacher_s == Range(2 * 15 + 8 + 6, 2 * 25 + 8 + 6, 2 * 45 + 8 + 6)
    assert plan.labels_s == Range(24, 24, 24)
    # trial: 4 epochs of 10 steps and a check, two exports, timings
    assert plan.trial_s == Range(4 * 7 + 8 + 4, 4 * 12 + 8 + 4, 4 * 17 + 8 + 4)
    assert plan.alone_s == 4
    # six trials, two at once but for measuring
    assert plan.total_s.expected == pytest.approx(6 * 56 / 2 + 6 * 4 + 24 + 64 + START_S)
    assert plan.total_s.high == pytest.approx(6 * 76 / 2 + 6 * 4 + 24 + 104 + START_S)
    assert (plan.trials, plan.students, plan.concurrency, plan.memory_bytes) == (6, 6, 2, 500)
    assert (plan.trial_bytes, plan.disk_bytes) == (400, 6 * 400 + 4 * 30 + 3 * 1000)


@pytest.mark.parametrize(("asked", "share"), [("fp32,int8_qat", 0.5), ("fp32,int8_ptq", 0.0)])
def test_quantisation_aware_epochs_are_reckoned_with_by_their_share(asked: str, share: float) -> None:
    config = sweep(space=sweep().search.space | {"precision": parse("precision", asked)})
    config = config.replace(base=config.search.base.replace(qat_epochs=2))
    plain = estimate(PROBE, sweep(), Hits(views_needed=4)).trial_s.expected
    assert estimate(PROBE, config, Hits(views_needed=4)).trial_s.expected - plain == pytest.approx(
        2 * share * QAT_COST * 12
    )


def test_what_is_in_the_store_costs_nothing() -> None:
    hits = Hits(trials=2, teacher=True, views=4, views_needed=4, students=1)
    plan = estimate(PROBE, sweep(), hits)
    assert (plan.trials, plan.students) == (4, 3)
    assert plan.teacher_s == plan.labels_s == Range(0, 0, 0)
    assert plan.total_s.expected == pytest.approx((3 * 36 + 4 * 20) / 2 + 4 * 4 + START_S)
    assert plan.disk_bytes == 4 * 400


def test_a_finished_sweep_costs_nothing() -> None:
    plan = estimate(PROBE, sweep(), Hits(trials=6, teacher=True))
    assert (plan.trials, plan.students, plan.total_s) == (0, 0, Range(0, 0, 0))


def test_distinct_students_are_counted_as_by_drawing_all_subsets() -> None:
    space = {"temperature": parse("temperature", "1,2,4"), "pruning_ratio": parse("pruning_ratio", "0.2,0.3")}
    everything = list(itertools.product("abc", range(2)))
    for trials in range(7):
        draws = list(itertools.combinations(everything, trials))
        mean = sum(len({student for student, _ in draw}) for draw in draws) / len(draws)
        assert distinct_students(space, CandidateConfig(), trials) == pytest.approx(mean)


def test_a_continuous_parameter_gives_every_trial_its_own_student() -> None:
    assert distinct_students({"learning_rate": parse("learning_rate", "1e-4:1e-2")}, CandidateConfig(), 30) == 30


def budgeted() -> Plan:
    """Before the first trial: teacher 64 s, labels 24 s, start; a trial 60 s, 4 of them alone, two at once."""
    return estimate(PROBE, sweep(), Hits(views_needed=4))


@pytest.mark.parametrize(("left", "trials"), [(59, 0), (60, 1), (78, 1), (79, 2), (142, 2), (143, 4)])
def test_trials_within_a_budget_come_in_rounds_of_two(left: float, trials: int) -> None:
    """A round takes 64 s, one trial of 60 s and the second's measurements; 15 s are kept for one that is slower."""
    assert trials_within(88 + START_S + left, budgeted()) == trials


def test_a_budget_too_small_says_what_one_trial_needs() -> None:
    needs = in_words(88 + START_S + 60)
    with pytest.raises(ValueError, match=rf"--budget 2 min: one trial needs about {needs} .*trial 60 s"):
        fit_to_budget(sweep(), reckoned, at=time.monotonic() + 120 + FINISH_S, budget_s=120.0, shares=(1.0,))


@pytest.mark.parametrize(
    ("text", "seconds"), [("6h", 21600), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("1.5h", 5400), ("1h5s", 3605)]
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "6", "h", "6x", "30m1h", "-6h", "0s", "nan", "1h 30m"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no length of time; write it as 6h"):
        duration(text)


def reckoned(config: SweepConfig) -> tuple[Plan, Hits]:
    hits = Hits(views_needed=config.search.base.student.student_epochs + config.search.base.prune.recovery_epochs)
    return estimate(PROBE, config, hits), hits


@pytest.mark.parametrize(
    ("seconds", "epochs", "trials"),
    [(1280, (16, 8), 6), (800, (13, 7), 4), (360, (8, 3), 2), (4000, (37, 18), 10), (60000, (64, 32), 100)],
    ids=["as asked", "two rounds", "one round", "more", "four times at most"],
)
def test_a_budget_chooses_trials_and_their_epochs(
    tmp_path: Path, seconds: float, epochs: tuple[int, int], trials: int
) -> None:
    base = sweep().search.base.replace(student_epochs=16, recovery_epochs=8)
    asked = sweep(base=base, out=tmp_path)
    fit, _ = fit_to_budget(asked, reckoned, at=time.monotonic() + seconds, budget_s=seconds)
    assert (fit.search.base.student.student_epochs, fit.search.base.prune.recovery_epochs) == epochs
    assert fit.search.trials == trials
    needs = reckoned(asked.replace(base=fit.search.base, trials=trials))[0].total_s.expected
    assert needs <= seconds - FINISH_S
    fit.folder.mkdir(parents=True)
    write_text(fit.folder / "identity.json", to_json({"settings": {"base": fit.search.base.flat()}}))
    again, _ = fit_to_budget(asked, reckoned, at=time.monotonic() + 5000, budget_s=5000)
    assert again.search.base == fit.search.base  # whatever else would fit now


@pytest.mark.parametrize(
    ("seconds", "keeps", "students", "epochs"),
    [
        (950, False, ["teacher", "alexnet_small"], (16, 8)),
        (650, False, ["teacher"], (15, 7)),
        (650, True, ["teacher", "alexnet_small"], (15, 7)),
        (340, False, ["teacher"], (10, 5)),
    ],
    ids=["enough", "too short for both", "both were named", "shorter still"],
)
def test_a_short_budget_cuts_the_teacher_alone(
    tmp_path: Path, seconds: float, keeps: bool, students: list[str], epochs: tuple[int, int]
) -> None:
    base = sweep().search.base.replace(student_epochs=16, recovery_epochs=8)
    space = sweep().search.space | {"student_model": parse("student_model", "teacher,alexnet_small")}
    asked = sweep(base=base, space=space, out=tmp_path)
    fit, _ = fit_to_budget(asked, reckoned, at=time.monotonic() + seconds, budget_s=seconds, keeps_students=keeps)
    assert values_of(fit.search.space, fit.search.base, "student_model") == students
    assert (fit.search.base.student.student_epochs, fit.search.base.prune.recovery_epochs) == epochs
    fit.folder.mkdir(parents=True)
    write_text(fit.folder / "identity.json", to_json({"settings": {"base": fit.identity()["base"]}}))
    again, _ = fit_to_budget(asked, reckoned, at=time.monotonic() + 9000, budget_s=9000)
    assert again.identity() == fit.identity()  # whatever else would fit now


def test_a_command_that_was_cut_off_leaves_the_rest_of_its_budget(tmp_path: Path) -> None:
    asked = sweep(out=tmp_path)
    path, now = asked.folder / SPENT, time.monotonic()
    asked.folder.mkdir(parents=True)
    Timesheet(path, Deadline(at=now + 90 - FINISH_S, trial_s=1.0, file_s=0.0, budget_s=300.0)).on_step_end(0, [])
    assert spent_seconds(asked.folder, 300.0) == pytest.approx(210, abs=1)
    assert spent_seconds(asked.folder, 200.0) == spent_seconds(tmp_path, 300.0) == 0, "that budget is over; none"

    def there(config: SweepConfig) -> tuple[Plan, Hits]:
        plan, _ = reckoned(config)
        return plan, Hits(views_needed=4, trials=7)

    fit, deadline = fit_to_budget(asked, there, at=now + 20, budget_s=300.0)
    assert fit.search.trials > 7, "that rest is too short for another one: a whole budget begins"
    assert deadline.spent() == pytest.approx(70, abs=1)
    assert deadline.spent_before(now) == pytest.approx(70, abs=1)
    path.unlink()
    with pytest.raises(ValueError, match="--budget 20 s: one trial needs"):
        fit_to_budget(asked, there, at=now + 20, budget_s=20.0)
    write_text(asked.folder / "identity.json", to_json({"settings": {"base": asked.identity()["base"]}}))
    fit, deadline = fit_to_budget(asked, there, at=now + 20, budget_s=20.0)
    assert fit.search.trials > 7, "it has begun, and what it trains may be nearly done"
    assert not deadline.over()


@pytest.mark.parametrize(
    ("epochs", "share", "left"),
    [
        ((12, 12), 0.125, (2, 1)),
        ((12, 12), 4, (48, 48)),
        ((16, 8), 0.08, (1, 1)),
        ((0, 24), 0.08, (0, 2)),
        ((9, 0), 0.5, (4, 0)),
    ],
)
def test_a_share_of_all_epochs(epochs: tuple[int, int], share: float, left: tuple[int, int]) -> None:
    base = CandidateConfig().replace(student_epochs=epochs[0], recovery_epochs=epochs[1])
    row = scaled(base, share).flat()
    assert (row["student_epochs"], row["recovery_epochs"]) == left


def test_a_network_that_is_cut_deep_is_reckoned_with_more_epochs_in_about_the_same_time() -> None:
    base = sweep().search.base.replace(student_model="teacher", student_epochs=0, recovery_epochs=24, alpha=0.0)
    space = {"pruning_ratio": parse("pruning_ratio", "0:0.85")}
    by_epochs, by_time = (
        estimate(PROBE, sweep(base=base.replace(recovery_budget=budget), space=space), Hits())
        for budget in ("epochs", "time")
    )
    cut = PruneConfig(recovery_budget="time", pruning_ratio=average_cut(space, base))
    times = cut.epochs_factor(taught=False)
    assert 8 < times < 20
    without = by_epochs.alone_s + 2 * PROBE.export_s["teacher"]
    assert by_time.trial_s.expected - without == pytest.approx(times * (by_epochs.trial_s.expected - without))


def test_epochs_that_were_asked_for_are_kept(tmp_path: Path) -> None:
    asked = sweep(base=sweep().search.base.replace(student_epochs=16, recovery_epochs=8), out=tmp_path)
    fit, _ = fit_to_budget(asked, reckoned, at=time.monotonic() + 535, budget_s=535, shares=(1.0,))
    assert fit.search.base == asked.search.base
    assert 0 < fit.search.trials < MIN_NETWORKS


def test_the_search_leaves_their_time_to_the_champions() -> None:
    deadline = Deadline(at=time.monotonic() + 100, trial_s=30, file_s=0.0, champions_s=80)
    assert deadline.over()
    assert deadline.left() > 90
    assert deadline.search_left() == pytest.approx(20, abs=1)


def test_a_deadline_is_over_when_no_trial_fits_any_more() -> None:
    now = time.monotonic()
    assert not Deadline(at=now + 100, trial_s=50, file_s=0.0).over()
    assert Deadline(at=now + 100, trial_s=150, file_s=0.0).over()
    assert Deadline(at=now - 1, trial_s=0.5, file_s=0.0).left() == 0


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        kd_prune.main(list(words))
    error = capsys.readouterr().err
    assert caught.value.code == kd_prune.BAD_INPUT
    assert error.count("\n") == 1
    return error


def test_bad_budgets_are_named_on_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "argument --budget: '6x' is no length of time" in refused(capsys, "--budget", "6x")
    both = refused(capsys, *SMALL, "--out", str(tmp_path / "runs"), "--budget", "6h", "--trials", "5")
    assert "--budget and --trials 5" in both
    assert not (tmp_path / "runs").exists()


def test_a_budget_too_small_is_refused_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    where = ["--out", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data")]
    assert "--budget 2 s: one trial needs about" in refused(capsys, *SMALL, *where, "--budget", "2s")
    assert list((tmp_path / "runs").rglob("*")) == []


def test_a_plan_writes_nothing_and_says_what_it_would_cost(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(kd_prune.__file__)), *SMALL, "--plan", "--trials", "3", "--cpus", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "runs").rglob("*")) == []
    for words in ("alexnet, 1 epochs", "0 of 0 views", "3 to run, 0 there; 1 at once on 1 CPU cores", "MB a trial"):
        assert words in done.stdout


def test_looking_up_an_empty_store(tmp_path: Path) -> None:
    config = sweep(out=tmp_path / "runs", base=quick().search.base.replace(train_limit=100))
    dataset = prepared.prepare(config.search.base.data, tmp_path / "data")
    found = look_up(config, dataset)
    assert (found.trials, found.teacher, found.views, found.students) == (0, False, 0, 0)
    assert found.views_needed == 2 + 1, "the first halves of 3 epochs and of 1.8, rounded"
    alone = config.replace(space={"kd_loss": parse("kd_loss", "none")})
    assert look_up(alone, dataset) == Hits(first_students=1)
    assert math.isclose(Range.of([3.0, 1.0, 2.0]).expected, 2.0)


def test_champions_and_controls_are_part_of_the_cost() -> None:
    """2 champions x 3 seeds x 4 arms = 24 runs, 2 of them there; of 4 arms 3 train a student of their own."""
    config = sweep(champions=2, seeds=3)
    plan = estimate(PROBE, config, Hits(views_needed=4, champion_runs=2))
    assert plan.champion_runs == 22
    # taught 3 epochs of 12 s, recovered 1 epoch and two exports, timings alone
    assert plan.champions_s.expected == pytest.approx((36 * 22 * 3 / 4 + 20 * 22) / 2 + 22 * 4)
    without = estimate(PROBE, sweep(), Hits(views_needed=4))
    assert plan.total_s.expected == pytest.approx(without.total_s.expected + plan.champions_s.expected)
    assert plan.disk_bytes == without.disk_bytes + 22 * 400


def test_champions_come_out_of_a_budget() -> None:
    plan = estimate(PROBE, sweep(champions=1, seeds=1), Hits(views_needed=4))
    seconds = 88 + START_S + plan.champions_s.expected + 2 * 64 + 15
    assert trials_within(seconds, plan) == 4
    with pytest.raises(ValueError, match=r"trial 60 s, champions 110 s, probe and start"):
        fit_to_budget(sweep(), lambda _: (plan, Hits()), at=time.monotonic() + 60, budget_s=60.0, shares=(1.0,))


def test_a_measured_start_replaces_the_guess(tmp_path: Path) -> None:
    assert start_seconds(tmp_path) is None
    (tmp_path / "start.json").write_text("garbled")
    assert start_seconds(tmp_path) is None
    remember_start(tmp_path, 8.126)
    assert start_seconds(tmp_path) == 8.13
    guessed = estimate(PROBE, sweep(), Hits())
    measured = estimate(PROBE, sweep(), Hits(), start_s=8.0)
    assert guessed.total_s.expected - measured.total_s.expected == START_S - 8.0
    remember_start(tmp_path / "nowhere", 1.0)  # costs nobody a sweep
