"""Honest selection: after the search, train its champions again with more seeds, beside control arms.

A search picks the luckiest of many runs of one seed each, so its numbers flatter the winners, and they do not show what
distillation or pruning contributed. New seeds show the first; control arms, which leave out one thing each at the same
budget, show the second. These runs are for the report: they are never on the front, and nothing is chosen by them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moocore
import numpy as np
from ray.tune.experiment import Trial

from analysis.findings.controls import CHAMPION
from analysis.findings.front import front_of
from analysis.findings.pareto import AXES, normalised
from sweeps.cluster.interrupts import Interrupted
from sweeps.display.progress import Progress
from sweeps.running.run import Run, worker_of
from sweeps.running.tune.delivery import Delivery, fetch_record, summary
from sweeps.running.tune.fixed_runs import FixedRuns
from sweeps.running.tune.tuning import tuner
from sweeps.search.config import SweepConfig
from sweeps.search.objectives import DIRECTIONS, reference_point
from sweeps.search.space import values_of
from trainables.config.candidate import TEACHER_ITSELF, CandidateConfig
from trainables.layout import CHAMPIONS, TRIALS, has_record, recorded
from trainables.records.stages import DatasetRecord
from trainables.records.trial import TrialRecord, read_trial
from trainables.tracking.deliveries import scores_of
from trainables.trials.candidate import CandidateTrial
from trainables.trials.task import TrialTask, task_of


@dataclass(frozen=True, kw_only=True)
class ArmRun:
    """One training run of one arm."""

    champion: int
    """Trial number in the search."""
    arm: str
    """`champion`, `no_distillation`, `from_scratch` or `not_pruned`."""
    candidate: CandidateConfig
    folder: Path
    """Its outbox: OUT/sweeps/NAME/champions/TRIAL-ARM-seedSEED."""

    @property
    def done(self) -> bool:
        """Whether it has written its record; then it is not run again."""
        return has_record(self.folder)

    @property
    def tags(self) -> dict[str, str]:
        """Tags that distinguish it from a trial of the search."""
        return {"control": self.arm, "champion": str(self.champion)}


class ArmProgress(Progress):
    """Progress that names a run by its folder: it has no trial number."""

    def label(self, trial: Trial) -> str:
        """The name of a run."""
        return str(task_of(trial).folder.name)


class ArmDelivery(Delivery):
    """Deliver runs under their folders' names."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a run has ended. One without a record was cut off by the deadline; the next command runs it."""
        task = task_of(trial)
        if self._storage is not None:
            fetch_record(task, self._storage)
        if has_record(task.folder):
            super().on_trial_complete(iteration, trials, trial, **info)

    def _deliver(self, folder: Path) -> None:
        record = read_trial(folder)
        scores = scores_of(record, self._score)
        if record.status == "finished":
            self._progress.finished(folder.name, record, scores["score"], summary(record, scores["score"]))
        else:
            self._progress.dropped(folder.name, record)
        self._tracker.deliver(folder, scores)


def retrain(run: Run) -> int:
    """Run the missing runs of the champions' arms; returns how many of all their runs failed.

    When the sweep's time is over, the missing ones are left to the next command.

    Raises:
        Interrupted: if Ctrl-C or SIGTERM ended it early.
    """
    arms = arm_runs(run.config, run.teacher, run.dataset)
    for arm in arms:  # of a champion that had the same number before its sweep's journal was cut short
        _task(run, arm).clear_folder()
    missing = [arm for arm in arms if not arm.done]
    if missing and not _late(run):
        _train(run, missing, champions=len({arm.champion for arm in arms}))
    left = sum(not arm.done for arm in arms)
    if left and not _late(run):  # there was time, so a signal has ended it
        raise Interrupted
    if left:
        text = f"{left} runs of champions and controls did not fit into the time; the same command runs them."
        run.console.print(text)
    return sum(read_trial(arm.folder).status == "failed" for arm in arms if arm.done)


def _train(run: Run, missing: Sequence[ArmRun], *, champions: int) -> None:
    config = run.config
    progress = ArmProgress(
        run.console,
        gpus=config.devices.gpus > 0,
        phase="champions",
        title=f"Sweep {config.name}: {champions} champions and their controls with {config.selection.seeds} seeds",
        trials=len(missing),
        done=0,
        concurrency=config.devices.concurrency,
    )
    with progress:
        tuner(
            CandidateTrial,
            config,
            name="champions",
            callbacks=[progress, ArmDelivery(run.tracker, run.score, progress, config.places.storage)],
            searcher=FixedRuns(_task(run, arm).tune_config() for arm in missing),
            trials=len(missing),
            seconds=run.deadline.left() if run.deadline else None,
            deadline=run.deadline,
        ).fit()


def _late(run: Run) -> bool:
    return run.deadline is not None and run.deadline.left() < run.deadline.trial_s


def arm_runs(config: SweepConfig, teacher: TrialRecord, dataset: DatasetRecord) -> list[ArmRun]:
    """Every run of the sweep's champions and controls, done or not; after seed 0 of the search, seeds are 1 to S."""
    if not config.selection.champions:
        return []
    # a record may not name a network, and so a module, that the sweep was not asked for
    asked = values_of(config.search.space, config.search.base, "student_model")
    read = [read_trial(trial) for trial in recorded(config.folder / TRIALS)]
    records = [record for record in read if record.params.get("student_model") in asked]
    corner = reference_point(dataset.num_classes)
    chosen = choose_champions(records, teacher.metrics, corner, count=config.selection.champions)
    base, first = config.search.base, config.search.base.training.seed + 1
    return [
        ArmRun(
            champion=number,
            arm=arm,
            candidate=candidate.replace(seed=seed),
            folder=config.folder / CHAMPIONS / f"{number}-{arm}-seed{seed}",
        )
        for number, params in chosen.items()
        for seed in range(first, first + config.selection.seeds)
        for arm, candidate in arms(base.replace(**{name: params[name] for name in config.search.space})).items()
    ]


def choose_champions(
    records: Sequence[TrialRecord], teacher: Mapping[str, float], corner: Mapping[str, float], *, count: int
) -> dict[int, Mapping[str, Any]]:
    """Trial number -> parameters of the `count` front members that are worth most, best first.

    A member is worth the hypervolume that the front loses without it (moocore, HVC3D; Guerreiro and Fonseca, IEEE TEC
    22(3), 2018), on the axes of `normalised`. Ties are broken by validation accuracy, then by trial number. The test
    split is not used.
    """
    finished = {r.trial_number: r for r in records if r.status == "finished" and r.trial_number is not None}
    if not finished:
        return {}
    front = front_of(finished, DIRECTIONS)
    points = normalised(front, teacher)[list(AXES)].to_numpy()
    worth = np.asarray(moocore.hv_contributions(points, ref=[corner[axis] for axis in AXES]))
    ranked = front.assign(worth=worth, number=front.index)
    # The teacher's own network, uncut, is not trained: no seed and no control would tell anything of it.
    ranked = ranked[[not _is_uncut_teacher(finished[int(number)].params) for number in ranked["number"]]]
    ranked = ranked.sort_values(["worth", "val_accuracy", "number"], ascending=[False, False, True])
    return {int(number): finished[int(number)].params for number in ranked["number"].head(count)}


def _is_uncut_teacher(params: Mapping[str, Any]) -> bool:
    return params.get("student_model") == TEACHER_ITSELF and float(params["pruning_ratio"]) == 0


def arms(champion: CandidateConfig) -> dict[str, CandidateConfig]:
    """Arm -> configuration, with the same epochs or, by `recovery_budget`, time in every arm. One that equals the
    champion itself is left out.

    `from_scratch` has the champion's configuration; its `TrialTask` says that this shape is trained from random weights
    (`trainables.stages.candidate.from_scratch`). It is also the smaller dense model: `structured` pruning of every
    layer by one ratio leaves a narrower dense student, which is the dense model with the champion's latency. Zeroed
    weights do not change latency: there the dense model with the champion's latency is `not_pruned`.
    """
    found = {
        CHAMPION: champion,
        # canonical: by `recovery_budget` it would get more epochs than the champion, which is taught
        "no_distillation": champion.canonical().replace(alpha=0.0),
        "from_scratch": champion,
        "not_pruned": champion.replace(pruning_ratio=0.0),
    }
    # Canonical: a champion without distillation may differ from its arm in settings that change nothing.
    same = {arm for arm in ("no_distillation", "not_pruned") if found[arm].canonical() == champion.canonical()}
    return {arm: candidate for arm, candidate in found.items() if arm not in same}


def _task(run: Run, arm: ArmRun) -> TrialTask:
    """The task of one run, without the sweep's limits: a control may be slower than what is allowed to ship."""
    config = run.config
    return TrialTask(
        candidate=arm.candidate.resolve(run.dataset, device=config.devices.device),
        worker=worker_of(config),
        key=f"{config.name}/champions/{arm.folder.name}",
        folder=arm.folder.resolve(),
        sweep_id=run.sweep_id,
        tags=arm.tags,
        teacher_val_accuracy=run.teacher.metrics["val_accuracy"],
        from_scratch=arm.arm == "from_scratch",
    )
