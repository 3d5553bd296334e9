"""Runs a sweep: the only `ray.init` and `Tuner`."""

import logging
import os
import signal
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

# Set before Ray is imported: its own output, usage reports and loggers are replaced by ours; a trial without GPUs
# must not see them.
os.environ |= {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_RESULT_DELIM": "/",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for one small file tears a live screen apart
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` every worker would sync the environment again
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled"),
}

import optuna
import ray
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher
from rich.console import Console

from sweeps.budget import Deadline, TimedSweep
from sweeps.champions import retrain
from sweeps.config import STOPPERS, SweepConfig
from sweeps.delivery import Delivery
from sweeps.mps import MpsError, mps
from sweeps.objectives import composite_score
from sweeps.outcome import announce, finish, headline, open_tracker, teacher_line, tracking_uri
from sweeps.progress import Progress
from sweeps.retry import RetryAlone, SayRetry
from sweeps.searcher import Proposing, StudySearcher, finished, open_study
from sweeps.stopper import FrontStopper
from sweeps.sweep_folder import InputError, check_identity, sole_driver, write_sweep_json
from trainables.records import DatasetRecord, TrialRecord, read_trial
from trainables.teacher import TeacherTrial
from trainables.tracking import Tracker
from trainables.trial import CandidateTrial, StageTrial

MAX_FAILURES = 3  # a died process is started again this often; invalid configurations are not


class Interrupted(Exception):  # noqa: N818  # like KeyboardInterrupt, not an error
    """The sweep was asked to stop; everything finished so far is on disk."""


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
        with _mps(config), local_ray(config):
            teacher = _teacher(config, console)
            write_sweep_json(config, teacher, dataset)
            score = partial(_score, config, teacher)
            announce(config, teacher, tracker, score)
            try:
                failed = _trials(config, dataset, teacher, tracker, console)
                failed += _champions(config, teacher, dataset, tracker, console)
            except Interrupted:
                finish(config, tracker, console, "interrupted", score=score)
                raise
            finish(config, tracker, console, "finished", score=score)
    return failed


def trial_dir(config: SweepConfig, number: int) -> Path:
    """The outbox folder of a trial."""
    return config.folder / "trials" / f"{number:05}"


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
    return tune.Tuner(
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
            callbacks=callbacks,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )


def _teacher(config: SweepConfig, console: Console) -> TrialRecord:
    """The teacher's record, made by a Tune run of its own if there is none yet."""
    folder = config.folder / "teacher"
    if not (folder / "record.json").exists():
        space = _place(config, folder, number=None) | {
            "candidate": config.base.on(config.device).flat(),
            "threads": config.cpus,
        }
        resources = {"cpu": config.cpus, "gpu": min(1, config.gpus)}
        title = f"Sweep {config.name}: first its teacher, {config.base.teacher.teacher_model}"
        progress = Progress(
            console, gpus=config.gpus > 0, phase="teacher", title=title, trials=1, done=0, concurrency=1
        )
        with progress:
            results = tuner(
                TeacherTrial, config, resources=resources, callbacks=[progress], name="teacher", param_space=space
            ).fit()
        if results.errors:
            raise InputError(f"no teacher could be made: {str(results.errors[0]).strip().splitlines()[-1]}")
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
    done = len(finished(study))
    if done >= config.trials:
        more = "" if config.sampler == "grid" else f"; --trials {done + 10} adds some"
        console.print(f"Sweep {config.name} has all its {done} trials{more}.", soft_wrap=True)
        return _failed(config)
    known = {"num_val": dataset.num_val, "teacher_val_accuracy": teacher.metrics["val_accuracy"]}
    searcher = _InTime(
        study,
        Proposing(
            space=config.space,
            sampler=config.sampler,
            seed=config.search_seed,
            reuse_probability=config.reuse_probability,
            objective=config.objective,
            limits=config.limits,
        ),
        trial_config=lambda number, params: {
            **_place(config, trial_dir(config, number), number=number),
            **known,
            "limits": vars(config.limits),
            "candidate": config.base.replace(**params).on(config.device).flat(),
        },
        score=lambda metrics: _score(config, teacher, metrics),
    )
    searcher.deadline = config.deadline if isinstance(config, TimedSweep) else None
    rule = STOPPERS[config.stopper]
    stopper = FrontStopper(rule, config.rates, config.folder / "rungs.json") if rule else None
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
    delivery = Delivery(tracker, lambda metrics: _score(config, teacher, metrics), progress)
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
    if config.mps and ray.is_initialized():
        raise InputError("mps=True: Ray is running already; start nvidia-cuda-mps-control before Ray on every node.")
    try:
        with mps(config.mps):
            yield
    except MpsError as error:
        raise InputError(str(error)) from error


@contextmanager
def local_ray(config: SweepConfig) -> Generator[None, None, None]:
    """A local Ray of the sweep's size, quiet, on loopback; an initialised one is used as it is."""
    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        num_cpus=config.cpus,
        num_gpus=config.gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    # Ray aborts on SIGTERM without saving; Tune stops in order on SIGUSR1.
    before = signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()


def quiet() -> None:
    """Our own table is what a person sees; libraries speak up for errors only."""
    for name in ("ray", "ray.tune", "ray.train", "ray.data", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
