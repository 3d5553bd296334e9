"""Run a sweep from start to end: teacher, trials, champions, front."""

import dataclasses
from collections.abc import Generator
from contextlib import contextmanager

import ray
from rich.console import Console

from sweeps.cluster.interrupts import Interrupted
from sweeps.cluster.joining import cores_of_a_node, quiet, ray_for
from sweeps.cluster.mps import MpsError, mps
from sweeps.display.progress import Progress
from sweeps.planning.budget import Deadline
from sweeps.running.champions import retrain
from sweeps.running.outcome import announce, finish, open_tracker, tracking_uri
from sweeps.running.run import Run, worker_of
from sweeps.running.trials import run_trials
from sweeps.running.tune.delivery import fetch_record
from sweeps.running.tune.fixed_runs import FixedRuns
from sweeps.running.tune.retry import SayRetry, reason_in
from sweeps.running.tune.tuning import tuner
from sweeps.search.config import SweepConfig
from sweeps.search.folder import InputError, NoRoomError, check_identity, no_room, sole_driver, write_sweep_json
from trainables.files import write_text
from trainables.layout import RECORD, SPENT, SWEEP_TOML, TEACHER, UNFINISHED, has_record
from trainables.records.stages import DatasetRecord
from trainables.records.trial import TrialRecord, read_trial, set_damaged_aside
from trainables.store.references import forget_failures
from trainables.store.results import store_below
from trainables.tracking.deliveries import outbox
from trainables.trials.task import TrialTask
from trainables.trials.teacher import TeacherTrial


def run_sweep(
    config: SweepConfig,
    dataset: DatasetRecord,
    console: Console,
    *,
    deadline: Deadline | None = None,
    retry_failed: bool = False,
    sweep_toml: str | None = None,
) -> int:
    """Run a sweep on a prepared data set, or resume it; returns how many trials failed or wait for MLflow.

    Args:
        retry_failed: run trials again that failed, and forget which results the store knows to fail.
        sweep_toml: the file of its settings to leave in its folder.

    Raises:
        InputError: if the name belongs to another sweep or is in use, or the teacher fails.
        Interrupted: if Ctrl-C or SIGTERM ended it early.
    """
    quiet()
    with sole_driver(config.folder):
        sweep_id = check_identity(config, dataset)
        # Until it is removed below, garbage collection keeps the store's entries that this sweep may still read.
        (config.folder / UNFINISHED).touch()
        if sweep_toml is not None:
            write_text(config.folder / SWEEP_TOML, sweep_toml)
        _note_use(config, sweep_id)
        for record in set_damaged_aside(outbox(config.folder)):
            text = f"{record} was damaged and is set aside: that run is made again, from what is in the store."
            console.print(text, style="yellow", soft_wrap=True, markup=False)
        if retry_failed:
            forget_failures(store_below(config.places.out, config.places.storage))
        tracker = open_tracker(tracking_uri(config), config, dataset, sweep_id)
        if tracker.away:
            console.print(f"MLflow is away ({tracker.away}); its records wait on disk.", style="yellow", soft_wrap=True)
        with _mps(config), ray_for(config):
            task = _teacher_task(config, dataset, sweep_id)
            teacher = _make_teacher(task, config, console, deadline)
            write_sweep_json(config, teacher, dataset)
            run = Run(
                config=config,
                dataset=dataset,
                teacher=teacher,
                sweep_id=sweep_id,
                tracker=tracker,
                console=console,
                deadline=deadline,
                retry_failed=retry_failed,
            )
            announce(run)
            try:
                failed = run_trials(run)
                failed += retrain(run)
            except (Interrupted, NoRoomError):  # show what there is so far
                finish(run, "interrupted")
                raise
            failed += finish(run, "finished")
            if not failed:  # else --retry-failed may go on with what they left in the store
                (config.folder / UNFINISHED).unlink(missing_ok=True)
            (config.folder / SPENT).unlink(missing_ok=True)
    return failed


def _note_use(config: SweepConfig, sweep_id: str) -> None:
    """Put down in the store that this sweep uses it, so that nobody collects what it needs.

    Raises:
        InputError: if the storage does not answer.
    """
    try:
        store_below(config.places.out, config.places.storage).note_user(config.folder, sweep_id)
    except ConnectionError as error:
        raise InputError(
            f"--storage {config.places.storage}: {error}; run the same command when it answers."
        ) from error


def _make_teacher(task: TrialTask, config: SweepConfig, console: Console, deadline: Deadline | None) -> TrialRecord:
    """Train the teacher in a Tune run of its own, unless its record exists; returns the record."""
    folder = config.folder / TEACHER
    task.clear_folder()
    if not has_record(folder):
        _train_teacher(task, config, console, deadline)
    if config.places.storage is not None:
        fetch_record(task, config.places.storage)
    if not has_record(folder):
        raise Interrupted
    record = read_trial(folder)
    if record.status != "finished":
        (folder / RECORD).unlink()  # so that the same command tries again
        raise InputError(f"teacher: {record.reason}")
    return record


def _teacher_task(config: SweepConfig, dataset: DatasetRecord, sweep_id: str) -> TrialTask:
    return TrialTask(
        stage="teacher",
        candidate=config.search.base.resolve(dataset, device=config.devices.device),
        # no other trial runs meanwhile, so it gets all cores and all memory
        worker=dataclasses.replace(worker_of(config), threads=cores_of_a_node(config.devices), memory_share=1.0),
        key=f"{config.name}/teacher",
        folder=(config.folder / TEACHER).resolve(),
        sweep_id=sweep_id,
    )


def _train_teacher(task: TrialTask, config: SweepConfig, console: Console, deadline: Deadline | None) -> None:
    title = f"Sweep {config.name}: first its teacher, {task.candidate.teacher.teacher_model}"
    gpus = config.devices.gpus
    progress = Progress(console, gpus=gpus > 0, phase="teacher", title=title, trials=1, done=0, concurrency=1)
    with progress:
        results = tuner(
            TeacherTrial,
            config,
            name="teacher",
            callbacks=[progress, SayRetry(console)],
            searcher=FixedRuns([task.tune_config()]),
            resources={"cpu": task.worker.threads, "gpu": min(1, gpus)},
            seconds=deadline.left() if deadline else None,
            deadline=deadline,
        ).fit()
    if results.errors:
        raise InputError(f"no teacher could be made: {reason_in(str(results.errors[0]))}")
    if full := (results[0].metrics or {}).get("full"):
        raise no_room(str(full))


@contextmanager
def _mps(config: SweepConfig) -> Generator[None, None, None]:
    """Run the Multi-Process Service on this machine if trials run here and want it; for a cluster, `ray_for` does.

    Raises:
        InputError: if it cannot be started, here or on a node, or Ray's workers may have started without it.
    """
    if config.devices.mps and ray.is_initialized():
        raise InputError("mps=True: Ray is running already; start nvidia-cuda-mps-control before Ray on every node.")
    try:
        with mps(config.devices.mps and config.devices.address is None):
            yield
    except MpsError as error:
        raise InputError(str(error)) from error
