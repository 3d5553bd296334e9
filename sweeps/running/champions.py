"""Honest selection: after the search its champions are trained again with more seeds, beside control arms.

A search picks the luckiest of many runs of one seed each, so what it found flatters the winners, and it cannot say what
distillation or pruning was worth. New seeds, and arms that lack one thing each at the same budget, can. What is
trained here is for the report: it is never on the front, and nothing is chosen by it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moocore
import numpy as np
from ray.tune.experiment import Trial
from rich.console import Console

from analysis.findings.controls import CHAMPION
from analysis.findings.front import front_of
from analysis.findings.pareto import AXES, normalised
from sweeps.display.progress import Progress
from sweeps.planning.budget import TimedSweep
from sweeps.running.tune.delivery import Delivery, collected, summary
from sweeps.running.tune.fixed_runs import FixedRuns
from sweeps.running.tune.tuning import place, tuner
from sweeps.search.config import SweepConfig
from sweeps.search.objectives import DIRECTIONS, reference_point
from trainables.config.candidate import CandidateConfig
from trainables.files import write_text
from trainables.records.encoding import to_json
from trainables.records.stages import DatasetRecord
from trainables.records.trial import TrialRecord, read_trial
from trainables.tracking.deliveries import Score, scores_of
from trainables.tracking.tracker import Tracker
from trainables.trials.candidate import CandidateTrial


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
        """Whether it has left its record; what has is not run again."""
        return (self.folder / "record.json").exists()

    @property
    def tags(self) -> dict[str, str]:
        """What tells it from a trial of the search."""
        return {"control": self.arm, "champion": str(self.champion)}


class ArmProgress(Progress):
    """Names a run by its folder: it has no trial number."""

    def label(self, trial: Trial) -> str:
        """What a run is called."""
        return Path(trial.config["trial_dir"]).name


class ArmDelivery(Delivery):
    """Delivers runs under their folders' names, with their tags even where Tune gave up on them."""

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a run has ended; one that leaves no record was cut by the sweep's time and is for the next command."""
        folder = Path(trial.config["trial_dir"])
        if self._storage is not None:
            collected(folder, trial.config["key"], self._storage)
        if (folder / "record.json").exists():
            super().on_trial_complete(iteration, trials, trial, **info)

    def _deliver(self, folder: Path) -> None:
        record = read_trial(folder)
        if "control" not in record.tags:
            champion, arm, _ = folder.name.split("-")
            record = dataclasses.replace(record, tags={**record.tags, "control": arm, "champion": champion})
            write_text(folder / "record.json", to_json(record))
        scores = scores_of(record, self._score)
        if record.status == "finished":
            self._progress.finished(folder.name, record, scores["score"], summary(record, scores["score"]))
        else:
            self._progress.dropped(folder.name, record)
        self._tracker.deliver(folder, scores)


def retrain(
    config: SweepConfig,
    teacher: TrialRecord,
    dataset: DatasetRecord,
    tracker: Tracker,
    console: Console,
    *,
    score: Score,
) -> int | None:
    """Run what is missing of the champions' arms; returns how many runs have failed, None if it was interrupted.

    When the sweep's time is over, what is missing is left to the next command.

    Args:
        score: a finished run's metrics -> points.
    """
    runs = arm_runs(config, teacher, dataset)
    missing = [run for run in runs if not run.done]
    if missing and not _late(config):
        count = len({run.champion for run in runs})
        title = f"Sweep {config.name}: {count} champions and their controls with {config.seeds} seeds"
        progress = ArmProgress(
            console,
            gpus=config.gpus > 0,
            phase="champions",
            title=title,
            trials=len(missing),
            done=0,
            concurrency=config.concurrency,
        )
        with progress:
            tuner(
                CandidateTrial,
                config,
                resources=config.resources,
                callbacks=[progress, ArmDelivery(tracker, score, progress, config.storage)],
                name="champions",
                searcher=FixedRuns(_tune_config(config, run, teacher) for run in missing),
                trials=len(missing),
            ).fit()
    left = sum(not run.done for run in runs)
    if left and not _late(config):
        return None
    if left:
        console.print(f"{left} runs of champions and controls did not fit into the time; the same command runs them.")
    return sum(read_trial(run.folder).status == "failed" for run in runs if run.done)


def _late(config: SweepConfig) -> bool:
    return isinstance(config, TimedSweep) and config.deadline.left() < config.deadline.trial_s


def arm_runs(config: SweepConfig, teacher: TrialRecord, dataset: DatasetRecord) -> list[ArmRun]:
    """Every run that the sweep's champions ask for, done or not; after seed 0 of the search, seeds are 1 to S."""
    if not config.champions:
        return []
    records = [read_trial(path.parent) for path in sorted(config.folder.glob("trials/*/record.json"))]
    corner = reference_point(dataset.num_classes)
    chosen = choose_champions(records, teacher.metrics, corner, count=config.champions)
    first = config.base.training.seed + 1
    return [
        ArmRun(
            champion=number,
            arm=arm,
            candidate=candidate.replace(seed=seed),
            folder=config.folder / "champions" / f"{number}-{arm}-seed{seed}",
        )
        for number, params in chosen.items()
        for seed in range(first, first + config.seeds)
        for arm, candidate in arms(config.base.replace(**{name: params[name] for name in config.space})).items()
    ]


def choose_champions(
    records: Sequence[TrialRecord], teacher: Mapping[str, float], corner: Mapping[str, float], *, count: int
) -> dict[int, Mapping[str, Any]]:
    """Trial number -> parameters of the `count` front members worth most, best first.

    Worth is what the front's hypervolume loses without the member (moocore, HVC3D; Guerreiro and Fonseca, IEEE TEC
    22(3), 2018), on the axes of `normalised`; ties by validation accuracy, then by trial number. Test is not looked at.
    """
    finished = {r.trial_number: r for r in records if r.status == "finished" and r.trial_number is not None}
    if not finished:
        return {}
    front = front_of(finished, DIRECTIONS)
    points = normalised(front, teacher)[list(AXES)].to_numpy()
    worth = np.asarray(moocore.hv_contributions(points, ref=[corner[axis] for axis in AXES]))
    ranked = front.assign(worth=worth, number=front.index)
    ranked = ranked.sort_values(["worth", "val_accuracy", "number"], ascending=[False, False, True])
    return {int(number): finished[int(number)].params for number in ranked["number"].head(count)}


def arms(champion: CandidateConfig) -> dict[str, CandidateConfig]:
    """Arm -> configuration; the same epochs in every arm. An arm that is the champion itself is left out.

    `from_scratch` has the champion's configuration: that its shape is trained from random weights is said in the Tune
    config (`trainables.stages.candidate.from_scratch`). It is also the smaller dense model: `structured` pruning of
    every layer by one ratio leaves a narrower dense student, and at the champion's latency that is this shape. Zeroed
    weights change no latency: there the dense student at the champion's is `not_pruned`.
    """
    found = {
        CHAMPION: champion,
        "no_distillation": champion.replace(alpha=0.0),
        "from_scratch": champion,
        "not_pruned": champion.replace(pruning_ratio=0.0),
    }
    same = {arm for arm in ("no_distillation", "not_pruned") if found[arm].canonical() == champion.canonical()}
    return {arm: candidate for arm, candidate in found.items() if arm not in same}


def _tune_config(config: SweepConfig, run: ArmRun, teacher: TrialRecord) -> dict[str, Any]:
    """Without the sweep's limits: a control may well be slower than what is allowed to ship."""
    return {
        **place(config, run.folder, number=None),
        "key": f"{config.name}/champions/{run.folder.name}",
        "candidate": run.candidate.flat(),
        "teacher_val_accuracy": teacher.metrics["val_accuracy"],
        "tags": run.tags,
        "from_scratch": run.arm == "from_scratch",
    }
