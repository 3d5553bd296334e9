"""The search itself: what is missing of a sweep's trials, proposed, run, stopped early, delivered."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher
from rich.console import Console

from sweeps.cluster.interrupts import Interrupted
from sweeps.display.progress import Progress
from sweeps.planning.budget import Deadline, TimedSweep
from sweeps.running.outcome import headline, teacher_line
from sweeps.running.tune.delivery import Delivery
from sweeps.running.tune.recovery import fetch_late, recover, trial_dir
from sweeps.running.tune.retry import SayRetry
from sweeps.running.tune.stopper import FrontStopper
from sweeps.running.tune.tuning import place, tuner
from sweeps.search.config import STOPPERS, SweepConfig
from sweeps.search.folder import InputError, no_room
from sweeps.search.sampling.searcher import Proposing, StudySearcher, finished, open_study
from sweeps.search.space import tidy
from trainables.records.stages import DatasetRecord
from trainables.records.trial import TrialRecord, read_trial
from trainables.store.results import store_below
from trainables.tracking.deliveries import Score
from trainables.tracking.tracker import Tracker
from trainables.trials.candidate import CandidateTrial


class InTime(StudySearcher):
    """Proposes nothing that would end after the deadline, if there is one."""

    deadline: Deadline | None = None

    def late(self) -> bool:
        """Whether no further trial can be started."""
        return self.deadline is not None and self.deadline.over()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """As in `StudySearcher`; FINISHED when it is late."""
        self.exhausted = self.exhausted or self.late()
        return str(Searcher.FINISHED) if self.late() else super().suggest(trial_id)


def run_trials(
    config: SweepConfig,
    dataset: DatasetRecord,
    teacher: TrialRecord,
    tracker: Tracker,
    console: Console,
    *,
    score: Score,
) -> int:
    """Run what is missing of the sweep's trials; returns how many of all its trials failed or are out of reach.

    Raises:
        InputError: if what an earlier driver left cannot be read.
        Interrupted: if Ctrl-C or SIGTERM ended it early.
        NoRoomError: if a disk is full.
    """
    study = open_study(config.folder / "study.journal", config.name, objective=config.objective, space=config.space)
    trial_config = partial(_trial_config, config, dataset, teacher)
    searcher = _searcher(study, config, trial_config, score)
    recover(study, searcher, config, trial_config, teacher=teacher)
    done = len(finished(study))
    if done >= config.trials:
        more = "" if config.sampler == "grid" else f"; --trials {done + 10} adds some"
        console.print(f"Sweep {config.name} has all its {done} trials{more}.", soft_wrap=True)
        return _failed(config)
    progress = _progress(config, console, teacher, done)
    with progress:
        tuner(
            CandidateTrial,
            config,
            resources=config.resources,
            callbacks=[progress, Delivery(tracker, score, progress, config.storage), SayRetry(console)],
            name="trials",
            searcher=searcher,
            scheduler=_stopper(config),
            trials=config.trials - done,
        ).fit()
    if searcher.full is not None:
        raise no_room(searcher.full)
    away = fetch_late(study, config)
    if away:
        text = f"{config.storage} does not answer: {away} finished trials are still there; the same command has them."
        console.print(text, style="yellow", soft_wrap=True, markup=False)
    _say_end(config, study, searcher, console)
    return _failed(config) + away


def _trial_config(
    config: SweepConfig, dataset: DatasetRecord, teacher: TrialRecord, number: int, params: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        **place(config, trial_dir(config, number), number=number),
        "num_val": dataset.num_val,
        "teacher_val_accuracy": teacher.metrics["val_accuracy"],
        "limits": vars(config.limits),
        "candidate": config.base.replace(**tidy(params)).on(config.device).flat(),
    }


def _searcher(study: optuna.Study, config: SweepConfig, trial_config: Any, score: Score) -> InTime:
    how = Proposing(
        space=config.space,
        sampler=config.sampler,
        seed=config.search_seed,
        reuse_probability=config.reuse_probability,
        objective=config.objective,
        base=config.base,
    )
    searcher = InTime(study, how, trial_config=trial_config, score=score)
    searcher.deadline = config.deadline if isinstance(config, TimedSweep) else None
    return searcher


def _stopper(config: SweepConfig) -> FrontStopper | None:
    rule = STOPPERS[config.stopper]
    try:
        return FrontStopper(rule, config.rates, config.folder / "rungs.jsonl") if rule else None
    except ValueError as error:
        raise InputError(str(error)) from error


def _progress(config: SweepConfig, console: Console, teacher: TrialRecord, done: int) -> Progress:
    return Progress(
        console,
        gpus=config.gpus > 0,
        phase="trials",
        title=headline(config),
        trials=config.trials,
        done=done,
        concurrency=config.concurrency,
        teacher=teacher_line(config, teacher),
        folder=config.folder,
        store=store_below(config.out, config.storage),
        stops=STOPPERS[config.stopper] is not None,
        until=config.deadline.search_left if isinstance(config, TimedSweep) else None,
    )


def _say_end(config: SweepConfig, study: optuna.Study, searcher: InTime, console: Console) -> None:
    """Say why there are fewer trials than asked for, if there are.

    Raises:
        Interrupted: if somebody asked for it.
    """
    if searcher.ruled_out:
        console.print(f"{searcher.ruled_out} proposals cost no trial: a narrower shape is over the limits already.")
    done = len(finished(study))
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if searcher.late():
        if running:
            text = f"The time is over; trials that were cut off: {len(running)}. The same command goes on with them."
            console.print(text, soft_wrap=True)
        return
    if done < config.trials:
        if not searcher.exhausted or running:
            raise Interrupted
        what = "raise a limit or widen a range" if searcher.ruled_out else "widen a range"
        console.print(f"The space holds no more than these {done} trials; {what} to have {config.trials}.")


def _failed(config: SweepConfig) -> int:
    """Trials whose configuration or process could not give a candidate."""
    records = (read_trial(path.parent) for path in config.folder.glob("trials/*/record.json"))
    return sum(record.status == "failed" for record in records)
