"""Estimate what a sweep will cost in time, memory and disk, from a probe of a few steps."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optuna.distributions import CategoricalDistribution
from rich.console import Console

from sweeps.display.durations import Range, in_words
from sweeps.search.config import Search, SweepConfig
from sweeps.search.sampling.first_trials import average_cut, cuts_by_labels
from sweeps.search.space import STUDENT_PARAMS, Space, size, values_of
from trainables.config.candidate import TEACHER_ITSELF, CandidateConfig

MB = 1e6
# Ray, MLflow's database and the first worker took 10 to 15 s on two cores. Used until a sweep has measured it
# (`sweeps.planning.budget.start_seconds`).
START_S = 15.0
ARMS = 4  # runs per champion and seed: `sweeps.running.champions.arms`
# Of the arms, those that train a student or a shape of their own; `not_pruned` finds the champion's in the store.
ARM_STUDENTS = 3
# Shape and file together, in `latency_seconds`: 0.6 where every p50 is known at once, up to 4 where none ever is.
MEASURING = 1.0
QAT_COST = 1.5  # a quantisation-aware epoch, in epochs of recovery


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Seconds per step with the sweep's threads, alone on the machine, and how many steps the real stages have."""

    teacher_step_s: Sequence[float]
    student_step_s: Mapping[str, Sequence[float]]
    """Training with soft labels, of each student; the teacher is cut as in the first trials, on average."""
    labels_batch_s: Sequence[float]
    """The teacher's inference on `FILL_BATCH` images."""
    teacher_check_s: float
    """BatchNorm re-estimation and validation at an epoch's end."""
    student_check_s: Mapping[str, float]
    export_s: Mapping[str, float]
    teacher_steps: int
    """Per epoch; the teacher does not see images without labels."""
    steps: int
    """Of a student, per epoch."""
    label_batches: int
    """Per view."""
    peak_bytes: int
    """Most memory of the GPU that tensors took, or this process's resident memory."""
    student_bytes: int
    """ONNX file of the dense student."""
    teacher_bytes: int
    view_bytes: int
    """Soft labels of one view."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """Results that exist already: in the store from any sweep, in the folder from this one."""

    trials: int = 0
    """Trials of this sweep that need no more work."""
    teacher: bool = False
    views: int = 0
    """Views whose soft labels are in the store."""
    views_needed: int = 0
    students: int = 0
    """Students in the store, of the `first_students` different ones of the first trials."""
    first_students: int = 0
    champion_runs: int = 0
    """Runs of champions and controls that need no more work."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The expected cost of a sweep."""

    concurrency: int
    trials: int
    """Trials still to run."""
    students: float
    """Students that are expected to be trained."""
    start_s: float
    """From launch until the first trial begins."""
    teacher_s: Range
    labels_s: Range
    trial_s: Range
    """One whole trial that finds no student in the store."""
    networks_per_trial: float
    """Share of the trials that train a network; the others write the files of one in other precisions."""
    untrained: int
    """Of the trials to run, the first, those that write files of the teacher as it is."""
    file_s: float
    """A trial that trains nothing."""
    average_s: float
    """What one more of the others adds: a network is trained once for all its files."""
    champion_runs: int
    """Runs of champions and controls, trained when the search is over."""
    champions_s: Range
    alone_s: float
    """The part of a trial in which it measures, with the device to itself."""
    total_s: Range
    memory_bytes: int
    """Of one trial, at its peak."""
    trial_bytes: int
    disk_bytes: int


def distinct_students(space: Space, base: CandidateConfig, trials: float) -> float:
    """Expected number of different students among different trials drawn evenly from a space.

    With M students of P prunings each, and n trials: M (1 - C(MP - P, n) / C(MP, n)). If a parameter of the student is
    continuous, M is infinite and every trial has a student of its own.
    """
    students = size({name: values for name, values in space.items() if name in STUDENT_PARAMS}, base)
    everything = size(space, base)
    if not math.isfinite(students):
        return trials
    if not math.isfinite(everything):  # the formula's limit for P -> infinity
        return float(students * (1 - (1 - 1 / students) ** trials))
    others = everything - everything / students
    if trials > others:  # more trials than fit without one of the students
        return float(students)
    return float(students * (1 - math.exp(_log_choose(others, trials) - _log_choose(everything, trials))))


@dataclass(frozen=True, kw_only=True)
class _Prices:
    """Seconds of the parts of a trial."""

    taught: Range
    """Epochs before the cut, of students other than the teacher."""
    recovered: Range
    """What a trial trains after the cut, and its file: the share of a network that is its own."""
    whole: Range
    """A trial with a student of its own."""
    file_s: float
    """Exports: of the network and of the untrained shape."""
    alone_s: float
    """Measurements of both."""

    @classmethod
    def of(cls, probe: Probe, search: Search) -> "_Prices":
        """A trial costs its student's epochs, recovery at the dense student's cost (pruned, it is a little cheaper; the
        teacher was timed when it was cut, and takes its epochs by `recovery_budget`), its average share of
        quantisation-aware epochs, two exports and two measurements.
        """
        base, students = search.base, values_of(search.space, search.base, "student_model")
        file_s = 2 * statistics.mean(probe.export_s[name] for name in students)
        alone_s = MEASURING * base.measure.latency_seconds
        longer = {name: _epochs_factor(search) if name == TEACHER_ITSELF else 1.0 for name in students}
        steps = Range.of([longer[name] * seconds for name in students for seconds in probe.student_step_s[name]])
        epoch = steps * probe.steps + statistics.mean(longer[name] * probe.student_check_s[name] for name in students)
        taught, qat = epoch * base.student.student_epochs, QAT_COST * qat_epochs(search)
        # The teacher as the student takes all epochs after the cut, every trial anew.
        after_cut = base.prune.recovery_epochs + _share_of_teacher(search) * base.student.student_epochs
        return cls(
            taught=taught,
            # a trial of the same network in another precision only writes a file
            recovered=epoch * (after_cut / files_per_network(search) + qat) + file_s,
            whole=taught + epoch * (base.prune.recovery_epochs + qat) + file_s + alone_s,
            file_s=file_s,
            alone_s=alone_s,
        )


def estimate(probe: Probe, config: SweepConfig, hits: Hits, *, start_s: float = START_S) -> Plan:
    """Estimate the cost of the missing part of a sweep.

    Trials run in parallel, measurements one after the other. Low is the probe's fastest steps and the expected number
    of different students; high is the slowest steps and a student of its own for every trial. Champions are trained
    `seeds` times, beside `ARMS - 1` controls each, without early stopping.
    """
    search, selection, concurrency = config.search, config.selection, config.devices.concurrency
    prices = _Prices.of(probe, search)
    trials = int(max(0, min(search.trials, size(search.space, search.base)) - hits.trials))
    untrained = _untrained_trials(search, trials, hits)
    students = _new_students(search, trials, hits)
    taught = prices.taught
    work = Range(taught.low * students, taught.expected * students, taught.high * trials)
    work = work + prices.recovered * (trials - untrained) + prices.file_s * untrained
    teacher = Range.of(probe.teacher_step_s) * probe.teacher_steps + probe.teacher_check_s
    # the teacher's file is timed once, for as long as it may take
    teacher_s = teacher * search.base.teacher.teacher_epochs + prices.file_s + 3 * prices.alone_s / 2
    teacher_s = teacher_s * (not hits.teacher)
    missing_views = hits.views_needed - hits.views
    labels_s = Range.of(probe.labels_batch_s) * probe.label_batches * missing_views
    runs = max(0, ARMS * selection.champions * selection.seeds - hits.champion_runs)
    arms = taught * (runs * ARM_STUDENTS / ARMS) + prices.recovered * runs
    champions_s = arms * (1 / max(1, min(concurrency, runs))) + prices.alone_s * runs
    at_once = max(1, min(concurrency, trials))
    total_s = work * (1 / at_once) + prices.alone_s * trials + labels_s + teacher_s + champions_s + start_s
    file_s, trial_bytes = prices.file_s + prices.alone_s, 4 * probe.student_bytes  # two networks, ONNX, TorchScript
    view_bytes, teacher_bytes = missing_views * probe.view_bytes, (not hits.teacher) * 3 * probe.teacher_bytes
    return Plan(
        concurrency=concurrency,
        trials=trials,
        students=students,
        start_s=start_s,
        teacher_s=teacher_s,
        labels_s=labels_s,
        trial_s=prices.whole,
        networks_per_trial=1 / files_per_network(search),
        untrained=untrained,
        file_s=file_s,
        average_s=(prices.whole.expected - file_s) / files_per_network(search) + file_s,
        champion_runs=runs,
        champions_s=champions_s,
        alone_s=prices.alone_s,
        total_s=total_s * bool(trials or runs),
        memory_bytes=probe.peak_bytes,
        trial_bytes=trial_bytes,
        disk_bytes=(trials + runs) * trial_bytes + view_bytes + teacher_bytes,
    )


def _share_of_teacher(search: Search) -> float:
    """The share of trials whose student is the teacher itself."""
    students = values_of(search.space, search.base, "student_model")
    return students.count(TEACHER_ITSELF) / len(students)


def _untrained_trials(search: Search, trials: int, hits: Hits) -> int:
    """Trials of the uncut teacher, whose files need no training."""
    students, ratios = (values_of(search.space, search.base, name) for name in ("student_model", "pruning_ratio"))
    as_it_is = TEACHER_ITSELF in students and 0 in ratios
    return min(trials, max(0, len(_untrained_precisions(search)) * as_it_is - hits.trials))


def _new_students(search: Search, trials: int, hits: Hits) -> float:
    """Expected number of students, other than the teacher, that are in no store yet."""
    # Trials that reuse a student are not drawn evenly from the space, so the formula does not count them.
    fresh = max(1.0, trials * (1 - search.reuse_probability)) if trials else 0.0
    expected = max(0.0, distinct_students(search.space, search.base, fresh) - hits.students)
    return expected * (1 - _share_of_teacher(search))


def _epochs_factor(search: Search) -> float:
    """How many times as many epochs as an uncut one the teacher's network of average first trials takes."""
    ratio = average_cut(search.space, search.base)
    kinds = values_of(search.space, search.base, "kd_loss")
    prune = replace(search.base.prune, pruning_method="structured", pruning_ratio=ratio)
    return prune.epochs_factor(taught=not cuts_by_labels(search.space, search.base) and kinds != ["none"])


def files_per_network(search: Search) -> int:
    """How many files are written from one trained network."""
    return len(_untrained_precisions(search)) or 1


def _untrained_precisions(search: Search) -> list[str]:
    """The searched precisions whose files need no training of their own."""
    return [word for word in values_of(search.space, search.base, "precision") if word != "int8_qat"]


def qat_epochs(search: Search) -> float:
    """Quantisation-aware epochs of an average trial: those of `int8_qat` times its share of the searched precisions."""
    asked = search.space.get("precision")
    precisions = asked.choices if isinstance(asked, CategoricalDistribution) else (search.base.export.precision,)
    return search.base.export.qat_epochs * precisions.count("int8_qat") / len(precisions)


def _log_choose(n: float, k: float) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def show(console: Console, plan: Plan, config: SweepConfig, hits: Hits, *, measured_start: bool = False) -> None:
    """Print a plan; `measured_start` says whether a sweep on this machine has measured the time until it begins."""
    for name, text in _lines(plan, config, hits, measured_start).items():
        console.print(f"{name:<12} {text}", soft_wrap=True, markup=False)


def _lines(plan: Plan, config: SweepConfig, hits: Hits, measured_start: bool) -> dict[str, str]:
    base, selection = config.search.base, config.selection
    students = " or ".join(values_of(config.search.space, base, "student_model"))
    of_memory = "CUDA memory" if config.devices.gpus else "resident memory, Ray's own not counted"
    start = "as the last sweep here needed" if measured_start else "on other machines; the first sweep here measures it"
    controls = f"with {selection.seeds} seeds and {ARMS - 1} controls each"
    champions = f"{selection.champions} {controls}, {plan.champions_s}"
    quantising = f" {qat:g} quantising," if (qat := qat_epochs(config.search)) else ""
    early = "; trials that are stopped early make it less" if config.search.stopper != "off" else ""
    return {
        f"Plan of sweep {config.name}:": "nothing is trained but a few steps of a probe",
        "start": f"{in_words(plan.start_s)} {start}",
        "teacher": f"{base.teacher.teacher_model}, "
        + ("in the store" if hits.teacher else f"{base.teacher.teacher_epochs} epochs, {plan.teacher_s}"),
        "soft labels": f"{hits.views} of {hits.views_needed} views in the store; the rest {plan.labels_s}",
        "students": f"{students}, {hits.students} of the first {hits.first_students} in the store;"
        f" about {plan.students:.0f} to train",
        "one trial": f"{plan.trial_s}: {base.student.student_epochs} + {base.prune.recovery_epochs} epochs,"
        f"{quantising} export, {in_words(plan.alone_s)} of measuring",
        "trials": f"{plan.trials} to run, {hits.trials} there; {plan.concurrency} at once on {config.devices}",
        **({"champions": champions} if plan.champion_runs else {}),
        "in all": f"{plan.total_s}{early}",
        "memory": f"{plan.memory_bytes / MB:.0f} MB a trial, {plan.memory_bytes * plan.concurrency / MB:.0f} MB at once"
        f" ({of_memory})",
        "disk": f"{plan.disk_bytes / MB:.0f} MB, of which {plan.trial_bytes / MB:.1f} MB a trial",
    }
