"""What all sweep commands share: checks of a `SweepConfig` before anything runs, the run itself and its exit code."""

import errno
import shutil
from pathlib import Path

from sweeps.cluster.address import check_shared
from sweeps.display.console import Screen
from sweeps.planning.budget import Deadline, remember_start
from sweeps.running.interface.flags import with_flags
from sweeps.search.config import SweepConfig
from sweeps.search.space import values_of
from trainables.config.candidate import TEACHER_ITSELF
from trainables.config.flags import OneLineParser, flag_name
from trainables.config.limits import Limits
from trainables.layout import ONNX_FILE, STORE, database_uri, trial_folder
from trainables.locks import check_locks
from trainables.records.stages import DatasetRecord
from trainables.stages.models.devices.elsewhere import check_elsewhere
from trainables.store.entries import check_format, moved_aside
from trainables.store.results import store_below

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
TRACKING_SCHEMES = ("sqlite:///", "http://", "https://", "postgresql", "mysql", "mssql")
LEAST_FREE_BYTES = 100e6  # MLflow's database, a teacher and a few trials of the smallest sweep
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
EXIT_CODES = "exit codes: 0 all done, 1 some trials failed or wait for MLflow, 2 bad input, 130 or 143 interrupted"


def check(config: SweepConfig) -> None:
    """Refuse a sweep that cannot work, before anything is trained.

    Raises:
        ValueError: naming the flag, what is wrong and the fix.
    """
    # By locking a file: permission bits say nothing of read-only mounts or quotas.
    for folder, flag in ((config.places.out, "--out"), (config.places.data_dir, "--data-dir")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_locks(folder)
        except OSError as error:
            raise ValueError(f"{flag} {folder}: cannot be written ({error.strerror}); name a folder you own.") from None
    free = shutil.disk_usage(config.places.out).free
    if free < LEAST_FREE_BYTES:
        raise ValueError(
            f"--out {config.places.out}: {free / 1e6:.1f} MB are free on its disk, and the smallest sweep takes"
            f" {LEAST_FREE_BYTES / 1e6:.0f} MB. {_room(config)} or name a folder on another disk."
        )
    try:
        check_format(config.places.out / STORE, None, str(config.places.out / STORE))
    except ValueError as error:
        raise ValueError(f"--out {config.places.out}: {error}") from error
    check_shared(config.places.out, config.devices.address, config.places.storage)
    uri = config.places.tracking_uri or database_uri(config.places.out)
    if not uri.startswith(TRACKING_SCHEMES):
        raise ValueError(f"--tracking-uri {uri}: must begin with {', '.join(TRACKING_SCHEMES)}.")
    if config.search.base.measure.measure_on is not None:
        check_elsewhere(config.search.base.measure.measure_on)
    # importing torch takes seconds: wrong paths and addresses are reported before
    from trainables.stages.models.build import check_model
    from trainables.stages.models.devices.accelerator import count_gpus
    from trainables.stages.runtimes.absence import check_runtime

    for field, names in _networks(config).items():
        try:
            for name in names:
                check_model(name)
        except ValueError as error:
            raise ValueError(f"{flag_name(field)}: {error}") from error
    _check_unlabeled(config)
    check_runtime(config.search.base.measure.latency_runtime, on_gpu=config.devices.gpus > 0)
    there = count_gpus()
    if config.devices.gpus > there and config.devices.address is None:
        raise ValueError(
            f"--gpus {config.devices.gpus}: this machine has {there}; ask for at most that, or 0 for the CPU."
        )


def _networks(config: SweepConfig) -> dict[str, list[str]]:
    """Setting -> the names of the networks that it asks for."""
    base = config.search.base
    students = [name for name in values_of(config.search.space, base, "student_model") if name != TEACHER_ITSELF]
    return {"teacher_model": [base.teacher.teacher_model], "student_model": students}


def _check_unlabeled(config: SweepConfig) -> None:
    """Refuse images without labels if no value of the space has a teacher."""
    space, base = config.search.space, config.search.base
    losses = values_of(space, base, "kd_loss")
    taught = next((loss for loss in losses if loss != "none"), losses[0])
    base.replace(kd_loss=taught, alpha=max(values_of(space, base, "alpha"))).check_unlabeled()


def check_networks(config: SweepConfig, dataset: DatasetRecord, weights: str | None) -> None:
    """Put the teacher's given weights into the store; refuse networks that cannot be trained, cut or exported.

    Weights or layers to ignore that fit no network are refused, too.

    Args:
        weights: the file that the user has named.
    """
    from trainables.stages.candidate.networks import check_network
    from trainables.stages.models.build import MODEL_NAMES
    from trainables.stages.models.stored import build_for
    from trainables.stages.models.weights import import_weights
    from trainables.stages.pruning.channels import check_ignored
    from trainables.stages.pruning.cuts import check_cut

    base = config.search.base
    for field, names in _networks(config).items():
        try:
            for name in names:
                check_network(name, dataset, opset=base.export.opset)
        except ValueError as error:
            raise ValueError(f"{flag_name(field)}: {error}") from error
    if weights is not None:
        teacher = build_for(base.teacher.teacher_model, dataset)
        import_weights(Path(weights), teacher, store_below(config.places.out, config.places.storage))
    names = [base.replace(student_model=name).network for name in values_of(config.search.space, base, "student_model")]
    if base.prune.ignored:
        check_ignored([build_for(name, dataset) for name in names], base.prune.ignored)
    ratio = max(values_of(config.search.space, base, "pruning_ratio"))
    if "structured" in values_of(config.search.space, base, "pruning_method"):
        cut = base.replace(pruning_method="structured", pruning_ratio=ratio).prune
        for name in names:
            if name not in MODEL_NAMES:  # those are known to be cut rightly
                try:
                    check_cut(name, cut, dataset)
                except ValueError as error:
                    raise ValueError(f"student_model={name}: {error}") from error


def check_limits(config: SweepConfig, dataset: DatasetRecord) -> None:
    """Refuse limits that no candidate of the space can meet; takes a second or two, and only if limits are set."""
    if config.limits != Limits():
        from sweeps.planning.reachable import check_reach

        check_reach(config, dataset)


def run(
    config: SweepConfig,
    dataset: DatasetRecord,
    parser: OneLineParser,
    screen: Screen,
    *,
    deadline: Deadline | None = None,
    retry_failed: bool = False,
    sweep_toml: str | None = None,
) -> int:
    """Run a sweep; returns the exit code. `sweep_toml` is the file of its settings to leave in its folder."""
    # Ray's import takes a second, which bad flags should not cost
    from sweeps.cluster.interrupts import Interrupted, RayDiedError
    from sweeps.running.launch import run_sweep
    from sweeps.search.folder import InputError

    store = store_below(config.places.out, config.places.storage)
    damaged = moved_aside(store.here)  # workers print nothing, so this command reports the new ones at the end
    code = 0
    screen.launch()
    screen.wait("Starting Ray and MLflow")
    try:
        failed = run_sweep(config, dataset, screen, deadline=deadline, retry_failed=retry_failed, sweep_toml=sweep_toml)
        code = FAILED if failed else 0
    except InputError as error:
        screen.go_on()
        parser.error(with_flags(str(error)))
    except RayDiedError as died:
        text = (
            f"Ray's {died.process} has died, and all trials with it. What is finished is in {config.folder}; the same"
            " command goes on from there."
        )
        screen.print(text, style="yellow", soft_wrap=True, markup=False)
        code = FAILED
    except KeyboardInterrupt as stop:
        text = f"Stopped. What is finished is in {config.folder}; the same command goes on from there."
        screen.print(text, soft_wrap=True)
        asked = stop.code if isinstance(stop, Interrupted) else INTERRUPTED
        # At the end of a budget Tune is stopped, too: then the sweep did what it was asked to do.
        code = 0 if deadline is not None and deadline.over() else asked
    except Exception as error:  # Tune wraps what its callbacks raise in errors of its own
        if (full := _full_disk(error)) is None:
            raise
        text = f"{full.filename or config.places.out}: {full.strerror}. {_room(config)}; the same command goes on."
        screen.print(text, style="yellow", soft_wrap=True)
        code = FAILED
    finally:
        screen.go_on()
    if screen.start_s is not None:
        remember_start(config.places.out, screen.start_s)
    for folder in sorted(moved_aside(store.here) - damaged):
        screen.print(f"{folder} was damaged: it was moved aside and computed again.", style="yellow", soft_wrap=True)
    tell_end(config, screen, code)
    return code


def tell_end(config: SweepConfig, screen: Screen, code: int) -> None:
    """Write the last JSON event of a sweep; nothing in other modes."""
    if screen.mode != "json":
        return
    from sweeps.display.standing import Standing

    there = Standing(phase="end", title="", trials=0, done=0, concurrency=1, folder=config.folder)
    reused, models = there.reused(), config.folder
    screen.event(
        "finished",
        sweep=config.name,
        exit_code=code,
        trials=dict(there.states),
        front=[
            {"trial": int(str(label)), "model": str(trial_folder(models, int(str(label))) / ONNX_FILE), **row}
            for label, row in there.front().to_dict("index").items()
        ],
        reuse={"trials": reused.trials, "of": reused.of, "seconds": round(reused.seconds, 1)},
        folder=str(config.folder),
    )


def _full_disk(error: BaseException | None) -> OSError | None:
    """The full disk or quota that caused an error; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _room(config: SweepConfig) -> str:
    return f"Make room (python -m trainables.store gc --out {config.places.out})"
