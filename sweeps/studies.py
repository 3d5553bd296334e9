"""The tables of two well-known studies, each by one command, from runs in MLflow.

onnx          AlexNet: inference time over the test set, ONNX Runtime against
              eager PyTorch
torchscript   the same for a TorchScript trace
amp           AlexNet trained in FP32 against AMP: accuracy, loss, times
distillation  AlexNet teacher, small student from scratch, student with the
              teacher
pruning       ResNet-18 -> MobileNetV3-Small by distillation at 224 pixels, then
              L1 pruning of 20 and 30 %

What follows the study's name are flags of sweeps/ablation.py, which does the
training; what is in MLflow already is not trained again. The ablations of the
second study (T x alpha x ratio, augmentation, structured against unstructured,
INT8) are sweeps/ablation.py --preset kd-grid, augmentation, pruning, precision.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

if __name__ == "__main__":  # modules on PYTHONPATH must not hide our packages, nor those beside this file the user's
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)

from sweeps import ablation, runtimes
from sweeps.display.console import Screen
from sweeps.running.interface.command import EXIT_CODES, FAILED, INTERRUPTED
from sweeps.running.interface.flags import Help, screen_of
from sweeps.search.config import SweepConfig
from trainables.config.flags import OneLineParser, as_typed
from trainables.stages.data import prepared
from trainables.stages.runtimes.base import name_on_device

BATCH = 64  # images per call over the test set
OWN_SIZE = 32  # pixels per side of CIFAR's images, if no --image-size is given
EXAMPLES = f"""\
examples:
  python sweeps/studies.py onnx --train-limit 5000 --teacher-epochs 5 --student-epochs 5
  python sweeps/studies.py distillation --gpus 1
  python sweeps/studies.py pruning --gpus 1

{EXIT_CODES}
"""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is run for a table."""

    flags: str
    """Of sweeps/ablation.py; those that are typed go behind them."""
    exported: str | None = None
    """Family of runtimes that the teacher is measured in, beside eager PyTorch."""
    pretrained: bool = False
    """Whether the teacher starts from ImageNet weights where they can be had."""


_ALEXNET = (
    "--base quick --dataset cifar10 --seeds 1 --pruning-ratio 0 --recovery-epochs 0 --teacher-epochs 30"
    " --student-epochs 30"
)
_TEACHER = f"--preset distillation {_ALEXNET}"
STUDIES: Mapping[str, Study] = {
    "onnx": Study(flags=_TEACHER, exported="onnxruntime"),
    "torchscript": Study(flags=_TEACHER, exported="torchscript"),
    # its teacher teaches nobody: one epoch, for the reference that latencies are divided by
    "amp": Study(flags=f"--preset amp {_ALEXNET} --student-model alexnet --kd-loss none --teacher-epochs 1"),
    "distillation": Study(flags=_TEACHER),
    "pruning": Study(
        flags="--preset pruned --base cifar10 --seeds 1 --image-size 224 --temperature 4 --alpha 0.9"
        " --label-smoothing 0.05 --teacher-label-smoothing 0.05 --learning-rate 3e-4"
        " --teacher-epochs 3 --student-epochs 8 --recovery-epochs 2",
        pretrained=True,
    ),
}
# Flags of ablation.py that a study refuses: its grid is fixed, and its table is measured on this machine.
FIXED = ("--preset", "--storage", "--address")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 some trials failed, 2 bad input, 130 or 143 interrupted."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:  # before a sweep had begun
        return INTERRUPTED


def _run(argv: Sequence[str]) -> int:
    parser = OneLineParser(
        prog="studies.py",
        usage="python sweeps/studies.py STUDY [FLAGS of sweeps/ablation.py]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=Help,
    )
    parser.add_argument("study", choices=STUDIES, metavar="STUDY", help=f"one of {', '.join(STUDIES)}")
    flags, typed = parser.parse_known_args(argv)
    for word in typed:
        if word.partition("=")[0] in FIXED:
            parser.error(
                f"{word}: a study has its own grid, on this machine; leave it out, or take sweeps/ablation.py."
            )
    study = STUDIES[flags.study]
    words = [*study.flags.split(), *typed]
    _, ablation_flags = ablation.parse(words)
    screen = screen_of(ablation_flags)
    if study.pretrained and ablation_flags.pretrained is None and _pretrained(ablation_flags, screen):
        words.append("--pretrained")
        _, ablation_flags = ablation.parse(words)
    commands = [_command("ablation", words)]
    screen.print(commands[0], markup=False, soft_wrap=True)
    code = ablation.main(words)
    if code not in (0, FAILED):
        return code
    config = ablation.config_from(ablation_flags)
    if study.exported is not None:
        words = _cells(config, study.exported)
        commands.append(_command("runtimes", words))
        screen.print(commands[1], markup=False, soft_wrap=True)
        code = max(code, measured := runtimes.main(words))
        if measured not in (0, FAILED):
            return measured
    try:
        write(flags.study, config, commands, screen)
    except (ValueError, OSError) as error:  # what the table needs is missing, MLflow is away, the disk is full
        screen.print(f"No table: {error}", style="yellow", markup=False, soft_wrap=True)
        return FAILED
    return code


def _pretrained(flags: argparse.Namespace, screen: Screen) -> bool:
    """Whether the teacher's ImageNet weights are on this machine now; says so if they are not."""
    from trainables.stages.models.build import build_model

    try:
        base = ablation.config_from(flags).search.base
    except ValueError:  # the ablation itself says what is wrong
        return False
    name, size = base.teacher.teacher_model, base.data.image_size or OWN_SIZE
    try:
        with screen.busy(f"Looking for ImageNet weights of {name}"):
            build_model(name, num_classes=2, image_size=size, pretrained=True)
    except ValueError as error:
        text = f"The teacher starts from random weights. {error}"
        screen.print(text, style="yellow", markup=False, soft_wrap=True)
        return False
    return True


def _command(script: str, words: Sequence[str]) -> str:
    """The command as it can be typed on another machine: without paths and addresses."""
    from sweeps.search.folder import public_words

    return as_typed(shlex.join(["python", f"sweeps/{script}.py", *public_words(words)]))


def _runtimes(config: SweepConfig, exported: str) -> tuple[str, str]:
    """Original and exported, on the device of the sweep."""
    original, shipped = (name_on_device(family, on_gpu=config.devices.gpus > 0) for family in ("eager", exported))
    return original, shipped


def _cells(config: SweepConfig, exported: str) -> list[str]:
    """The words for runtimes.py that measure the teacher in eager PyTorch and as a file."""
    words = ["--name", config.name, "--run", "teacher", "--precisions", "fp32", "--batches", str(BATCH)]
    words += ["--runtimes", ",".join(_runtimes(config, exported)), "--dataset", config.search.base.data.dataset]
    words += ["--out", str(config.places.out), "--data-dir", str(config.places.data_dir)]
    words += ["--gpus", str(config.devices.gpus)] if config.devices.gpus else []
    return words + (["--tracking-uri", config.places.tracking_uri] if config.places.tracking_uri else [])


def write(name: str, config: SweepConfig, commands: Sequence[str], screen: Screen) -> None:
    """Write a study's table and picture to the screen, OUT/sweeps/NAME/studies/ and the sweep's MLflow run.

    Raises:
        ValueError: if what the table needs is not there, or MLflow is away.
    """
    from analysis.pages import study_tables
    from analysis.reading.runs import Runs, read_cells, read_curves
    from sweeps.running.outcome import add_files, tracking_uri

    exported = STUDIES[name].exported

    def make(runs: Runs) -> list[Path]:
        if exported is not None:
            cells = _of_the_teacher(read_cells(tracking_uri(config), runs))
            table = study_tables.inference_table(cells, *_runtimes(config, exported))
        elif name == "amp":
            run_ids = [str(run_id) for run_id in runs.frame.index]
            table = study_tables.precision_table(runs, read_curves(tracking_uri(config), run_ids))
        else:
            table = {"distillation": study_tables.distillation_table, "pruning": study_tables.pruning_table}[name](runs)
        return study_tables.write_study(table, config.folder / "studies", made_by=commands)

    files = add_files(config, prepared.prepare(config.search.base.data, config.places.data_dir), make)
    screen.print(files[1].read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    screen.print(f"Study: {', '.join(str(file) for file in files)}", markup=False, soft_wrap=True)


def _of_the_teacher(frame: pd.DataFrame) -> pd.DataFrame:
    """The teacher's cells in one thread and calls of `BATCH` images."""
    wanted = {"of_trial": "teacher", "batch_images": BATCH, "precision": "fp32", "runtime_threads": 1}
    if frame.empty:
        raise ValueError("MLflow has no cells of runtimes yet; the same command delivers them.")
    return frame[(frame[list(wanted)] == pd.Series(wanted)).all(axis=1)]


if __name__ == "__main__":
    raise SystemExit(main())
