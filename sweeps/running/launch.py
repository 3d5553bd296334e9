"""Runs a sweep from its start to its end: teacher, trials, champions, front."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import partial

import ray
from rich.console import Console

from sweeps.cluster.interrupts import Interrupted
from sweeps.cluster.joining import cores_of_a_node, quiet, ray_for
from sweeps.cluster.mps import MpsError, mps
from sweeps.display.progress import Progress
from sweeps.running.champions import retrain
from sweeps.running.outcome import announce, finish, open_tracker, tracking_uri
from sweeps.running.trials import run_trials
from sweeps.running.tune.delivery import collected
from sweeps.running.tune.retry import SayRetry
from sweeps.running.tune.tuning import place, tuner
from sweeps.search.config import SweepConfig
from sweeps.search.folder import InputError, NoRoomError, check_identity, no_room, sole_driver, write_sweep_json
from trainables.config.score import composite_score
from trainables.layout import RECORD, SPENT, TEACHER, UNFINISHED, has_record
from trainables.records.stages import DatasetRecord
from trainables.records.trial import TrialRecord, read_trial
from trainables.tracking.tracker import Tracker
from trainables.trials.teacher import TeacherTrial


def run_sweep(config: SweepConfig, dataset: DatasetRecord, console: Console) -> int:
    """Run a sweep on a prepared data set, or go on with it; returns how many trials failed.

    Raises:
        InputError: if the name belongs to another sweep or is in use, or no teacher can be made.
        Interrupted: if Ctrl-C or SIGTERM ended it early.
    """
    quiet()
    with sole_driver(config.folder):
        sweep_id = check_identity(config, dataset)
        (config.folder / UNFINISHED).touch()
        tracker = open_tracker(tracking_uri(config), config, dataset, sweep_id)
        if tracker.away:
            console.print(f"MLflow is away ({tracker.away}); its records wait on disk.", style="yellow", markup=False)
        with _mps(config), ray_for(config):
            teacher = _teacher(config, console)
            write_sweep_json(config, teacher, dataset)
            score = partial(_score, config, teacher)
            announce(config, teacher, tracker, score)
            try:
                failed = run_trials(config, dataset, teacher, tracker, console, score=score)
                failed += _champions(config, teacher, dataset, tracker, console)
            except (Interrupted, NoRoomError):
                finish(config, tracker, console, "interrupted", score=score)
                raise
            finish(config, tracker, console, "finished", score=score)
            (config.folder / UNFINISHED).unlink(missing_ok=True)
            (config.folder / SPENT).unlink(missing_ok=True)
    return failed


def _teacher(config: SweepConfig, console: Console) -> TrialRecord:
    """The teacher's record, made by a Tune run of its own if there is none yet."""
    folder = config.folder / TEACHER
    if not has_record(folder):
        cores = cores_of_a_node(config)
        space = place(config, folder, number=None) | {
            "candidate": config.base.on(config.device).flat(),
            "threads": cores,
            "memory_share": 1.0,  # nobody else trains meanwhile
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
    if not has_record(folder):
        raise Interrupted
    record = read_trial(folder)
    if record.status != "finished":
        (folder / RECORD).unlink()
        raise InputError(f"teacher: {record.reason}")
    return record


def _champions(
    config: SweepConfig, teacher: TrialRecord, dataset: DatasetRecord, tracker: Tracker, console: Console
) -> int:
    """Train champions and controls as far as that is missing; returns how many of them failed."""
    score = partial(_score, config, teacher)
    failed = retrain(config, teacher, dataset, tracker, console, score=score)
    if failed is None:
        raise Interrupted
    return failed


def _score(config: SweepConfig, teacher: TrialRecord, metrics: Mapping[str, float]) -> float:
    return composite_score(metrics, teacher_size_bytes=teacher.metrics["size_bytes"], rates=config.rates)


@contextmanager
def _mps(config: SweepConfig) -> Generator[None, None, None]:
    """The Multi-Process Service of this machine, if trials run here and want it; a joined cluster's is `ray_for`'s.

    Raises:
        InputError: if there is none to be had, here or on a node, or Ray's workers may have been started without it.
    """
    if config.mps and ray.is_initialized():
        raise InputError("mps=True: Ray is running already; start nvidia-cuda-mps-control before Ray on every node.")
    try:
        with mps(config.mps and config.address is None):
            yield
    except MpsError as error:
        raise InputError(str(error)) from error
