"""One candidate, from data to measured file, in one process and without Ray.

python -m trainables.stages.candidate --dataset digits --teacher-model alexnet --student-model alexnet_small
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from trainables.config import mlflow_settings  # noqa: F401 - before ONNX Runtime, whose telemetry it ends
from trainables.config.candidate import CandidateConfig
from trainables.config.flags import OneLineParser, add_config_flags, config_from_flags, flag_name, with_flags
from trainables.files import digest_of
from trainables.layout import LEASES, STORE
from trainables.locks import check_locks
from trainables.records.encoding import to_json
from trainables.records.stages import (
    CandidateRecord,
    ShapeRecord,
)
from trainables.stages.candidate.chain import Steps, make_candidate
from trainables.stages.candidate.networks import check_network
from trainables.stages.models.build import check_model
from trainables.stages.models.devices import accelerator
from trainables.stages.models.devices.elsewhere import check_elsewhere
from trainables.stages.models.devices.processor import usable_cores
from trainables.stages.models.stored import build_for
from trainables.stages.models.weights import import_weights
from trainables.stages.pruning.channels import check_ignored
from trainables.stages.pruning.cuts import check_cut
from trainables.stages.runtimes.absence import check_runtime
from trainables.stages.workspace import Workspace
from trainables.store.results import Store


def _show(steps: Steps) -> CandidateRecord:
    """Run a chain to its end; writes one line an epoch to standard error."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            result: CandidateRecord = end.value
            return result
        if isinstance(step, ShapeRecord):
            line = f"shape  {step.latency_p50_ms:.3f} ms  {step.size_bytes / 1e6:.2f} MB  {step.macs / 1e6:.1f} M MACs"
        else:
            line = (
                f"{step.stage} {step.epoch}/{step.epochs}  loss {step.train_loss:.3f}"
                f"  val {100 * step.val_accuracy:.1f} %  {step.seconds:.1f} s"
            )
        sys.stderr.write(line + "\n")


def _check(flags: argparse.Namespace, config: CandidateConfig) -> None:
    """Refuse what cannot work before anything is trained."""
    accelerator.find_device(flags.device)
    if flags.threads < 1:
        raise ValueError(f"--threads {flags.threads}: must be 1 or more.")
    for folder, flag in ((flags.out, "--out"), (flags.data_dir, "--data-dir")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_locks(folder)
        except OSError as error:
            raise ValueError(f"{flag} {folder}: cannot be written ({error.strerror}); name a folder you own.") from None
    if config.measure.measure_on is not None:
        check_elsewhere(config.measure.measure_on)
    config.check_unlabeled()
    check_runtime(config.measure.latency_runtime, on_gpu=flags.device != accelerator.CPU)
    for name, field in _networks(config).items():
        with _naming(field):
            check_model(name)


def _networks(config: CandidateConfig) -> dict[str, str]:
    """The names of the networks that are built, and the setting that each stands in."""
    return {config.network: "student_model", config.teacher.teacher_model: "teacher_model"}


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Put the flag in front of what is wrong with a network."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{flag_name(field)}: {error}") from error


def _make(flags: argparse.Namespace) -> CandidateRecord:
    """Make the candidate that the flags describe.

    Raises:
        ValueError: if it cannot be made.
    """
    weights = flags.teacher_weights
    if weights is not None:
        flags.teacher_weights = digest_of(Path(weights), "teacher_weights")
    config = config_from_flags(CandidateConfig(), flags)
    _check(flags, config)
    place = Workspace(
        store=Store(flags.out / STORE),
        data=config.data,
        data_dir=flags.data_dir,
        device=flags.device,
        threads=flags.threads,
        lock_dir=flags.out / LEASES,
    )
    place.enter()
    place.dataset()  # what is wrong with it is no network's fault
    for name, field in _networks(config).items():
        with _naming(field):
            check_network(name, place.dataset(), opset=config.export.opset)
    if weights is not None:
        model = build_for(config.teacher.teacher_model, place.dataset())
        import_weights(Path(weights), model, place.store)
    check_cut(config.network, config.prune, place.dataset())
    if config.prune.ignored:
        check_ignored([build_for(config.network, place.dataset())], config.prune.ignored)
    return _show(make_candidate(config.resolve(place.dataset(), device=flags.device), place))


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = OneLineParser(prog="python -m trainables.stages.candidate", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder that holds the store (default: runs)")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="downloads and decoded images (default: data)"
    )
    parser.add_argument(
        "--device",
        default="cpu",
        help="where to train: cpu, gpu, or that by PyTorch's name, such as cuda (default: cpu)",
    )
    parser.add_argument(
        "--threads", type=int, default=len(usable_cores()), help="CPU threads (default: all cores that it may use)"
    )
    add_config_flags(parser, CandidateConfig())
    flags = parser.parse_args(argv)
    try:
        with redirect_stdout(sys.stderr):  # for what the user's module prints
            record = _make(flags)
    except ValueError as error:
        parser.error(with_flags(str(error), ["device", *CandidateConfig().flat()]))
    print(to_json(record.metrics()))
    print(f"files: {record.export.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
