"""One candidate, from data to measured file, in one process and without Ray.

python -m trainables.stages.candidate --dataset digits --teacher-model alexnet --student-model alexnet_small
"""

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

from trainables.configs import CandidateConfig
from trainables.flags import OneLineParser, add_config_flags, config_from_flags
from trainables.records import CandidateRecord, DatasetRecord, EpochRecord, to_json
from trainables.stages import data
from trainables.stages.exported import exported, recipe
from trainables.stages.measured import measured
from trainables.stages.models import check_model
from trainables.stages.recovery import recovery
from trainables.stages.student import student
from trainables.stages.teacher import teacher
from trainables.stages.tensors import load_images
from trainables.stages.workspace import Workspace
from trainables.store import Store

Epochs = Generator[EpochRecord, None, CandidateRecord]
Model = TypeVar("Model")


def teacher_candidate(config: CandidateConfig, place: Workspace) -> Epochs:
    """The teacher as everybody's reference: trained, exported, measured against itself; yields its epochs."""
    dataset = data.prepare(config.data, place.data_dir)
    model, spent = yield from _spending(teacher(config, dataset, load_images(dataset, place.device), place))
    made_by = recipe(config, dataset, "teacher")
    files = yield from exported(config, dataset, model, made_by, place)
    measurement = yield from measured(config, dataset, model, files, files, place)
    return CandidateRecord(
        stage="teacher",
        params=made_by | vars(config.measure),
        export=files,
        measurement=measurement,
        curve=model.curve,
        num_val=dataset.num_val,
        num_test=dataset.num_test,
        train_time_s=model.train_time_s,
        reused_time_s=max(0.0, model.train_time_s - spent),
    )


def candidate(config: CandidateConfig, place: Workspace) -> Epochs:
    """data -> teacher -> student -> pruned and recovered -> exported -> measured; yields every epoch trained.

    Stages that the store already holds yield nothing. Closing the generator, or a dead process, loses at most the
    running epoch.

    Raises:
        ValueError: if the configuration cannot give a candidate (it would fail again).
    """
    dataset: DatasetRecord = data.prepare(config.data, place.data_dir)
    images = load_images(dataset, place.device)
    teacher_model, teacher_spent = yield from _spending(teacher(config, dataset, images, place))
    student_model, student_spent = yield from _spending(student(config, dataset, images, teacher_model, place))
    pruned_model, recovery_spent = yield from _spending(
        recovery(config, dataset, images, teacher_model, student_model, place)
    )
    reference = yield from exported(config, dataset, teacher_model, recipe(config, dataset, "teacher"), place)
    made_by = recipe(config, dataset, "candidate")
    files = yield from exported(config, dataset, pruned_model, made_by, place)
    measurement = yield from measured(config, dataset, pruned_model, files, reference, place)
    spent = teacher_spent + student_spent + recovery_spent
    train_time_s = student_model.train_time_s + pruned_model.train_time_s
    return CandidateRecord(
        stage="candidate",
        params=made_by | vars(config.measure),
        export=files,
        measurement=measurement,
        curve=student_model.curve + pruned_model.curve,
        num_val=dataset.num_val,
        num_test=dataset.num_test,
        train_time_s=train_time_s,
        reused_time_s=max(0.0, teacher_model.train_time_s + train_time_s - spent),
    )


def _spending(stage: Generator[EpochRecord, None, Model]) -> Generator[EpochRecord, None, tuple[Model, float]]:
    """Pass a stage's epochs on; return its result and the seconds that were really trained now."""
    spent = 0.0
    while True:
        try:
            epoch = next(stage)
        except StopIteration as end:
            return end.value, spent
        spent += epoch.seconds
        yield epoch


def _shown(epochs: Epochs) -> CandidateRecord:
    """Run to the end, one line an epoch on standard error."""
    while True:
        try:
            epoch = next(epochs)
        except StopIteration as end:
            result: CandidateRecord = end.value
            return result
        sys.stderr.write(
            f"{epoch.stage} {epoch.epoch}/{epoch.epochs}  loss {epoch.train_loss:.3f}"
            f"  val {100 * epoch.val_accuracy:.1f} %  {epoch.seconds:.1f} s\n"
        )


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = OneLineParser(prog="python -m trainables.stages.candidate", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder that holds the store (default: runs)")
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="downloads and decoded images (default: data)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all)")
    add_config_flags(parser, CandidateConfig())
    flags = parser.parse_args(argv)
    try:
        config = config_from_flags(CandidateConfig(), flags)
        check_model(config.teacher.teacher_model)
        check_model(config.student.student_model)
        place = Workspace(
            store=Store(flags.out / "store"),
            data_dir=flags.data_dir,
            device=flags.device,
            threads=flags.threads,
            lease_dir=flags.out / "leases",
        )
        place.enter()
        record = _shown(candidate(config, place))
    except ValueError as error:
        parser.error(str(error))
    print(to_json(record.metrics()))
    print(f"files: {record.export.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
