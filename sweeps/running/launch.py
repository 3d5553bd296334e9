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
from trainables.layout import RECORD, SPENT, TEACHER, UNFINISHED, has_record
from trainables.records.stages import DatasetRecord
from trainables.records.trial import TrialRecord, read_trial
from trainables.trials.task import TrialTask
from trainables.trials.teacher import TeacherTrial


def run_sweep(
    config: SweepConfig, dataset: DatasetRecord, console: Console, *, deadline: Deadline | None = None
) -> int:
    """Run a sweep on a prepared data set, or resume it; returns how many trials failed.

    Raises:
        InputError: if the name belongs to another sweep or is in use, or the teacher fails.
        Interrupted: if Ctrl-C or SIGTERM ended it early.
    """
    quiet()
    with sole_driver(config.folder):
        sweep_id = check_identity(config, dataset)
        # Until it is removed below, garbage collection keeps the store's entries that this sweep may still read.
        (config.folder / UNFINISHED).touch()
        tracker = open_tracker(tracking_uri(config), config, dataset, sweep_id)
        if tracker.away:
            console.print(f"MLflow is away ({tracker.away}); its records wait on disk.", style="yellow", markup=False)
        with _mps(config), ray_for(config):
            teacher = _make_teacher(config, dataset, console, deadline)
            write_sweep_json(config, teacher, dataset)
            run = Run(
                config=config, dataset=dataset, teacher=teacher, tracker=tracker, console=console, deadline=deadline
            )
            announce(run)
            try:
                failed = run_trials(run)
                failed += retrain(run)
            except (Interrupted, NoRoomError):  # show what there is so far
                finish(run, "interrupted")
                raise
            finish(run, "finished")
            (config.folder / UNFINISHED).unlink(missing_ok=True)
            (config.folder / SPENT).unlink(missing_ok=True)
    return failed


def _make_teacher(
    config: SweepConfig, dataset: DatasetRecord, console: Console, deadline: Deadline | None
) -> TrialRecord:
    """Train the teacher in a Tune run of its own, unless its record exists; returns the record."""
    folder = config.folder / TEACHER
    if not has_record(folder):
        _train_teacher(config, dataset, console, deadline)
    if config.places.storage is not None:
        fetch_record(folder, f"{config.name}/teacher", config.places.storage)
    if not has_record(folder):
        raise Interrupted
    record = read_trial(folder)
    if record.status != "finished":
        (folder / RECORD).unlink()  # so that the same command tries again
        raise InputError(f"teacher: {record.reason}")
    return record


def _train_teacher(config: SweepConfig, dataset: DatasetRecord, console: Console, deadline: Deadline | None) -> None:
    base, cores = config.search.base, cores_of_a_node(config.devices)
    task = TrialTask(
        stage="teacher",
        candidate=base.resolve(dataset, device=config.devices.device),
        # no other trial runs meanwhile, so it gets all cores and all memory
        worker=dataclasses.replace(worker_of(config), threads=cores, memory_share=1.0),
        key=f"{config.name}/teacher",
        folder=(config.folder / TEACHER).resolve(),
    )
    title = f"Sweep {config.name}: first its teacher, {base.teacher.teacher_model}"
    gpus = config.devices.gpus
    progress = Progress(console, gpus=gpus > 0, phase="teacher", title=title, trials=1, done=0, concurrency=1)
    with progress:
        results = tuner(
            TeacherTrial,
            config,
            name="teacher",
            callbacks=[progress, SayRetry(console)],
            searcher=FixedRuns([task.tune_config()]),
            resources={"cpu": cores, "gpu": min(1, gpus)},
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
