"""Run the cells of the table of runtimes as Ray trials, and write the table."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune
from ray.tune.experiment import Trial
from rich.console import Console

from analysis.pages.runtime_table import runtime_frame, write_runtime_table
from sweeps.cluster.joining import quiet, ray_for
from sweeps.running.outcome import tracking_uri
from sweeps.running.tune.delivery import write_record
from sweeps.running.tune.fixed_runs import FixedRuns
from sweeps.running.tune.tuning import tuner
from sweeps.search.config import Places, SweepConfig
from sweeps.search.devices import Devices
from trainables.config.candidate import DataConfig
from trainables.files import digest_of
from trainables.layout import ARTIFACTS, CELLS, ONNX_FILE, has_record, recorded
from trainables.records.trial import TrialRecord, read_trial, set_damaged_aside
from trainables.stages.data.prepared import is_folder, prepare, public_name
from trainables.stages.models.devices.processor import usable_cores
from trainables.stages.runtimes.base import RUNTIMES
from trainables.stages.runtimes.cell import Cell
from trainables.store.results import store_below
from trainables.tracking.tracker import Tracker, TrackingError
from trainables.trials.runtime import RuntimeTrial
from trainables.trials.task import RuntimeTask, Worker, task_of


def measure_cells(
    flags: argparse.Namespace, cells: Sequence[Cell], models: Sequence[Path], *, sweep_id: str, console: Console
) -> pd.DataFrame:
    """Measure the missing cells, then write OUT/sweeps/NAME/runtimes/runtimes.csv and .md; returns the table.

    Raises:
        ValueError: if MLflow cannot be used, or the images are not on this machine.
    """
    quiet()
    on_gpu = flags.gpus > 0 and any(RUNTIMES[cell.runtime].on_gpu for cell in cells)
    config = SweepConfig(
        name=flags.name,
        places=Places(out=flags.out, data_dir=flags.data_dir, tracking_uri=flags.tracking_uri),
        # One cell at a time per GPU: a cell has its device to itself while it is timed.
        devices=Devices(gpus=flags.gpus if on_gpu else 0, cpus=max(1, flags.gpus)),
    )
    folder = config.folder / CELLS
    set_damaged_aside(recorded(folder))
    asked = [_task(config, flags, model, cell, sweep_id) for model in models for cell in cells]
    for task in asked:
        task.clear_folder()
    tasks = [task for task in asked if not done(task.folder, again=flags.again)]
    if tasks:
        _prepare_images(models, flags)
        store_below(flags.out, None).note_user(config.folder, sweep_id)
    tracker = _tracker(config, models[0], sweep_id)
    asked_for = f"{_plural(len(models), 'model')}, {_plural(len(cells), 'cell')} each, {len(tasks)} to measure"
    console.print(f"Runtimes of sweep {flags.name}: {asked_for}", soft_wrap=True)
    if tasks:
        with ray_for(config):
            tuner(
                RuntimeTrial,
                config,
                name="runtimes",
                callbacks=[_CellReports(console, tracker, len(tasks))],
                searcher=FixedRuns(task.tune_config() for task in tasks),
                trials=len(tasks),
            ).fit()
    for cell_folder in recorded(folder):
        tracker.deliver(cell_folder, {})
    frame = runtime_frame(folder)
    files = write_runtime_table(frame, folder, heading=f"Runtimes, sweep {flags.name}")
    try:
        tracker.sweep_artifacts(files)
    except TrackingError as error:
        console.print(
            f"MLflow went away ({error}); the same command delivers the table.", style="yellow", soft_wrap=True
        )
    console.print(f"Table: {files[1]} and {files[0].name}", soft_wrap=True)
    return frame


def _task(config: SweepConfig, flags: argparse.Namespace, model: Path, cell: Cell, sweep_id: str) -> RuntimeTask:
    record = read_trial(model)
    folder = config.folder / CELLS / f"{model.name}-{cell.name}"
    name = _called(record, model)
    kind = {"kind": "runtime", "model": name}  # distinguishes these runs from trials: they are never on the front
    pruning = {} if record.stage == "teacher" else {"pruning": str(record.params.get("pruning_method", ""))}
    return RuntimeTask(
        worker=Worker(
            out=config.places.out.resolve(),
            data=_images_of(record, flags),
            data_dir=config.places.data_dir.resolve(),
            storage=None,
            device="cpu",
            threads=max(1, len(usable_cores()) // config.devices.concurrency),
        ),
        key=f"{config.name}/runtimes/{folder.name}",
        folder=folder.resolve(),
        sweep_id=sweep_id,
        tags=kind | pruning,
        cell=cell,
        model=name,
        source=model.resolve(),
        model_digest=digest_of(model / ONNX_FILE, "model"),
        seconds=flags.seconds,
        models=tuple(flags.models.split(",")) if flags.models else (),
    )


def _called(record: TrialRecord, model: Path) -> str:
    """A model's name in the table: its architecture, and which of the sweep's networks it is."""
    if record.stage == "teacher":
        return f"{record.params.get('teacher_model', '')} (teacher)"
    which = model.name if record.trial_number is None else f"trial {record.trial_number}"
    return f"{record.params.get('student_model', '')} ({which})"


def _images_of(record: TrialRecord, flags: argparse.Namespace) -> DataConfig:
    """The data settings of a record; a record holds no path of a folder, so that one comes from the flag."""
    row = {name: record.params[name] for name in vars(DataConfig()) if name in record.params}
    if flags.dataset is not None:
        if public_name(flags.dataset) != row["dataset"]:
            raise ValueError(f"--dataset {flags.dataset}: the models were trained on {row['dataset']}.")
        row["dataset"] = flags.dataset
    return DataConfig(**row | {"unlabeled": None})  # nothing is measured on images without labels


def _prepare_images(models: Sequence[Path], flags: argparse.Namespace) -> None:
    """Prepare the images before the first cell needs them.

    Raises:
        ValueError: if they are not on this machine and cannot be downloaded.
    """
    for images in {_images_of(read_trial(model), flags) for model in models}:
        try:
            prepare(images, flags.data_dir)
        except ValueError as error:
            if flags.dataset is not None or not is_folder(images.dataset):
                raise
            raise ValueError(f"{error} Records hold its name alone: name its path by --dataset.") from error


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


def done(folder: Path, *, again: bool) -> bool:
    """Whether a cell needs no measurement: it finished and, with `again`, its latency was not in doubt.

    A cell whose runtime was absent, or that failed, is always tried again.
    """
    if not has_record(folder):
        return False
    record = read_trial(folder)
    return record.status == "finished" and not (again and record.tags["latency_verdict"] != "clean")


def _tracker(config: SweepConfig, model: Path, sweep_id: str) -> Tracker:
    """Open the sweep's own MLflow run: cells become runs under it, of another kind than trials."""
    uri = tracking_uri(config)
    experiment = str(read_trial(model).params["dataset"]).replace(":", "-")
    try:
        return Tracker(
            uri, experiment=experiment, sweep=config.name, sweep_id=sweep_id, artifacts=config.places.out / ARTIFACTS
        )
    except TrackingError as error:
        raise ValueError(f"--tracking-uri {uri}: {error}; start that server, or leave the flag out.") from error


class _CellReports(tune.Callback):
    """Print one line per cell that can be measured here, and deliver every cell to MLflow, which may be away."""

    def __init__(self, console: Console, tracker: Tracker, cells: int) -> None:
        self._console, self._tracker, self._cells, self._done = console, tracker, cells, 0
        self._absent: Counter[str] = Counter()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles callbacks, and consoles and connections cannot be pickled."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a cell has its numbers, or the reason why it has none. Print and deliver them."""
        folder = task_of(trial).folder
        record = read_trial(folder)
        found = record.metrics
        told = f"{record.status}: {record.reason}"
        if record.status == "finished":
            told = f"{found['latency_p50_ms']:.3f} ms  {found['throughput_ips']:.0f} images/s"
            told += f"  test {100 * found['test_accuracy']:.2f} %"
        self._done += 1
        if record.status == "infeasible":  # a line each would bury the numbers: they are counted by reason
            self._absent[record.reason] += 1
        else:
            self._console.print(f"[{self._done}/{self._cells}] {folder.name}  {told}", soft_wrap=True)
        self._tracker.deliver(folder, {})

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Tune: all cells are done. Print how many are not available on this machine or for this model, and why."""
        for reason, count in self._absent.most_common():
            self._console.print(f"{_plural(count, 'cell')} absent: {reason}", soft_wrap=True)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: the cell's process has died for good. Record that, print and deliver it."""
        reason = f"its process died; see {trial.error_file}"
        write_record(task_of(trial), status="failed", reason=reason, seconds=0.0)
        self.on_trial_complete(iteration, trials, trial)
