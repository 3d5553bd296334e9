"""Runs a sweep: the only `ray.init` and `Tuner`."""

import sweeps.ray_settings  # noqa: F401  # before anything imports Ray

# isort: split
import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher
from rich.console import Console

from sweeps.budget import Deadline, TimedSweep
from sweeps.champions import retrain
from sweeps.cluster import cores_of_a_node, ray_for
from sweeps.config import STOPPERS, SweepConfig
from sweeps.delivery import Allowance, Delivery, collected
from sweeps.interrupts import Interrupted, StoppableTuner
from sweeps.mps import MpsError, mps
from sweeps.objectives import composite_score
from sweeps.outcome import announce, finish, headline, open_tracker, teacher_line, tracking_uri
from sweeps.progress import Progress
from sweeps.recovery import recover, trial_dir
from sweeps.retry import RetryAlone, SayRetry
from sweeps.searcher import Proposing, StudySearcher, finished, open_study, ruled_out
from sweeps.stopper import FrontStopper
from sweeps.sweep_folder import InputError, NoRoomError, check_identity, no_room, sole_driver, write_sweep_json
from trainables.records import DatasetRecord, TrialRecord, read_trial
from trainables.teacher import TeacherTrial
from trainables.tracking import Tracker
from trainables.trial import CandidateTrial, StageTrial

MAX_FAILURES = 3  # so often may a trial's process die before an epoch is over; invalid configurations are run once


class _InTime(StudySearcher):
    """Proposes nothing that would end after the deadline, if there is one."""

    deadline: Deadline | None = None

    def late(self) -> bool:
        return self.deadline is not None and self.deadline.over()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self.exhausted = self.exhausted or self.late()
        return str(Searcher.FINISHED) if self.late() else super().suggest(trial_id)


def run_sweep(config: SweepConfig, dataset: DatasetRecord, console: Console) -> int:
    """Run a sweep on a prepared data set, or go on with it; returns how many trials failed.

    Raises:
        InputError: if the name belongs to another sweep or is in use, or no teacher can be made.
        Interrupted: if Ctrl-C or SIGTERM ended it early.
    """
    quiet()
    with sole_driver(config.folder):
        sweep_id = check_identity(config, dataset)
        tracker = open_tracker(tracking_uri(config), config, dataset, sweep_id)
        if tracker.away:
            console.print(f"MLflow is away ({tracker.away}); its records wait on disk.", style="yellow", markup=False)
        with _mps(config), ray_for(config):
            teacher = _teacher(config, console)
            write_sweep_json(config, teacher, dataset)
            score = partial(_score, config, teacher)
            announce(config, teacher, tracker, score)
            try:
                failed = _trials(config, dataset, teacher, tracker, console)
                failed += _champions(config, teacher, dataset, tracker, console)
            except (Interrupted, NoRoomError):
                finish(config, tracker, console, "interrupted", score=score)
                raise
            finish(config, tracker, console, "finished", score=score)
    return failed


def tuner(
    trainable: type[StageTrial],
    config: SweepConfig,
    *,
    resources: Mapping[str, float],
    callbacks: list[tune.Callback],
    name: str,
    param_space: Mapping[str, Any] | None = None,
    searcher: Searcher | None = None,
    scheduler: RetryAlone | None = None,
    trials: int = 1,
) -> tune.Tuner:
    """A Tuner for one of our trainables, its own output and checkpoints off."""
    scheduler = scheduler or RetryAlone()
    scheduler.alone = config.alone if 0 < config.share < 1 and config.gpus else None
    return StoppableTuner(
        tune.with_resources(trainable, dict(resources)),
        param_space=dict(param_space) if param_space is not None else None,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=trials,
            time_budget_s=config.deadline.left() if isinstance(config, TimedSweep) else None,
            max_concurrent_trials=config.concurrency if searcher else None,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config.get('trial_number')}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str((config.folder / "tune").resolve()),
            callbacks=[*callbacks, Allowance(MAX_FAILURES)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )


def _teacher(config: SweepConfig, console: Console) -> TrialRecord:
    """The teacher's record, made by a Tune run of its own if there is none yet."""
    folder = config.folder / "teacher"
    if not (folder / "record.json").exists():
        cores = cores_of_a_node(config)
        space = _place(config, folder, number=None) | {
            "candidate": config.base.on(config.device).flat(),
            "threads": cores,
        }
        resources = {"cpu": cores, "gpu": min(1, config.gpus)}
        title = f"Sweep {config.name}: first its teacher, {config.base.teacher.teacher_model}"
        progress = Progress(
            console, gpus=config.gpus > 0, phase="teacher", title=title, trials=1, done=0, concurrency=1
        )
        with progress:
            results = tuner(
                TeacherTrial,
                config,
                resources=resources,
                callbacks=[progress, SayRetry(console)],
                name="teacher",
                param_space=space,
            ).fit()
        if results.errors:
            raise InputError(f"no teacher could be made: {str(results.errors[0]).strip().splitlines()[-1]}")
        if full := (results[0].metrics or {}).get("full"):
            raise no_room(str(full))
    if config.storage is not None:
        collected(folder, f"{config.name}/teacher", config.storage)
    if not (folder / "record.json").exists():
        raise Interrupted
    record = read_trial(folder)
    if record.status != "finished":
        (folder / "record.json").unlink()
        raise InputError(f"teacher: {record.reason}")
    return record


def _trials(
    config: SweepConfig, dataset: DatasetRecord, teacher: TrialRecord, tracker: Tracker, console: Console
) -> int:
    """Run what is missing of the sweep's trials; returns how many of all its trials failed."""
    study = open_study(config.folder / "study.journal", config.name, objective=config.objective, space=config.space)
    known = {"num_val": dataset.num_val, "teacher_val_accuracy": teacher.metrics["val_accuracy"]}

    def trial_config(number: int, params: Mapping[str, Any]) -> dict[str, Any]:
        return {
            **_place(config, trial_dir(config, number), number=number),
            **known,
            "limits": vars(config.limits),
            "candidate": config.base.replace(**params).on(config.device).flat(),
        }

    searcher = _InTime(
        study,
        Proposing(
            space=config.space,
            sampler=config.sampler,
            seed=config.search_seed,
            reuse_probability=config.reuse_probability,
            objective=config.objective,
            base=config.base,
        ),
        trial_config=trial_config,
        score=partial(_score, config, teacher),
    )
    recover(study, searcher, config, trial_config, teacher=teacher)
    done = len(finished(study))
    if done >= config.trials:
        more = "" if config.sampler == "grid" else f"; --trials {done + 10} adds some"
        console.print(f"Sweep {config.name} has all its {done} trials{more}.", soft_wrap=True)
        return _failed(config)
    searcher.deadline = config.deadline if isinstance(config, TimedSweep) else None
    rule = STOPPERS[config.stopper]
    try:
        stopper = FrontStopper(rule, config.rates, config.folder / "rungs.jsonl") if rule else None
    except ValueError as error:
        raise InputError(str(error)) from error
    progress = Progress(
        console,
        gpus=config.gpus > 0,
        phase="trials",
        title=headline(config),
        trials=config.trials,
        done=done,
        concurrency=config.concurrency,
        teacher=teacher_line(config, teacher),
        folder=config.folder,
        stops=rule is not None,
        until=config.deadline.left if isinstance(config, TimedSweep) else None,
    )
    delivery = Delivery(tracker, partial(_score, config, teacher), progress, config.storage)
    with progress:
        tuner(
            CandidateTrial,
            config,
            resources=config.resources,
            callbacks=[progress, delivery, SayRetry(console)],
            name="trials",
            searcher=searcher,
            scheduler=stopper,
            trials=config.trials - done,
        ).fit()
    if searcher.full is not None:
        raise no_room(searcher.full)
    if over := ruled_out(study):
        console.print(f"{over} proposals cost no trial: a narrower shape is over the limits already.")
    done = len(finished(study))
    if cut := len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))) if searcher.late() else 0:
        text = f"The time is over; trials that were cut off: {cut}. The same command goes on with them."
        console.print(text, soft_wrap=True)
    if done < config.trials and not searcher.late():
        if not searcher.exhausted or study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            raise Interrupted
        console.print(f"The space holds no more than these {done} trials; widen a range to have {config.trials}.")
    return _failed(config)


def _champions(
    config: SweepConfig, teacher: TrialRecord, dataset: DatasetRecord, tracker: Tracker, console: Console
) -> int:
    """Train champions and controls as far as that is missing; returns how many of them failed."""
    score = partial(_score, config, teacher)
    failed = retrain(config, teacher, dataset, tracker, console, score=score, tuner=tuner, place=_place)
    if failed is None:
        raise Interrupted
    return failed


def _failed(config: SweepConfig) -> int:
    """Trials whose configuration or process could not give a candidate."""
    records = (read_trial(path.parent) for path in config.folder.glob("trials/*/record.json"))
    return sum(record.status == "failed" for record in records)


def _place(config: SweepConfig, folder: Path, *, number: int | None) -> dict[str, Any]:
    """The part of a Tune config that says where a trial works."""
    return {
        "out": str(config.out.resolve()),
        "data_dir": str(config.data_dir.resolve()),
        "storage": config.storage,
        "device": config.device,
        "memory_share": min(1.0, config.share),
        "threads": config.threads,
        "trial_number": number,
        "trial_dir": str(folder.resolve()),
        "key": f"{config.name}/{folder.name}",
    }


def _score(config: SweepConfig, teacher: TrialRecord, metrics: Mapping[str, float]) -> float:
    return composite_score(metrics, teacher_size_bytes=teacher.metrics["size_bytes"], rates=config.rates)


@contextmanager
def _mps(config: SweepConfig) -> Generator[None, None, None]:
    """The Multi-Process Service, if the sweep wants it.

    Raises:
        InputError: if there is none to be had, or Ray's workers may be on other nodes, which it does not reach.
    """
    if config.mps and (config.address is not None or ray.is_initialized()):
        raise InputError("mps=True: Ray is running already; start nvidia-cuda-mps-control before Ray on every node.")
    try:
        with mps(config.mps):
            yield
    except MpsError as error:
        raise InputError(str(error)) from error


def quiet() -> None:
    """Our own table is what a person sees; libraries speak up for errors only."""
    for name in ("ray", "ray.tune", "ray.train", "ray.data", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # the traceback of every process that dies, also where its trial goes on elsewhere: `SayRetry` has a line for it
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
