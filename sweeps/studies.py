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

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from sweeps import ablation, runtimes
from sweeps.command import EXIT_CODES, FAILED, Help
from sweeps.config import SweepConfig
from trainables.flags import OneLineParser

EXAMPLES = f"""\
examples:
  python sweeps/studies.py distillation --teacher-epochs 30 --student-epochs 30
  python sweeps/studies.py pruning --gpus 1
  python sweeps/studies.py onnx --train-limit 5000 --teacher-epochs 5

{EXIT_CODES}
"""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is run for a table."""

    flags: str
    """Of sweeps/ablation.py; those that are typed go behind them."""
    exported: str | None = None
    """Family of runtimes that the teacher is measured in, beside eager PyTorch."""


_ALEXNET = "--base quick --dataset cifar10 --seeds 1 --pruning-ratio 0 --teacher-epochs 30 --student-epochs 30"
_TEACHER = f"--preset distillation {_ALEXNET}"
STUDIES: Mapping[str, Study] = {
    "onnx": Study(flags=_TEACHER, exported="onnxruntime"),
    "torchscript": Study(flags=_TEACHER, exported="torchscript"),
    # its teacher teaches nobody: one epoch, for the reference that latencies are divided by
    "amp": Study(flags=f"--preset amp {_ALEXNET} --student-model alexnet --kd-loss none --teacher-epochs 1"),
    "distillation": Study(flags=_TEACHER),
    "pruning": Study(
        flags="--preset pruned --base cifar10 --seeds 1 --image-size 224 --temperature 4 --alpha 0.9"
        " --label-smoothing 0.05 --teacher-epochs 3 --student-epochs 8 --recovery-epochs 2"
    ),
}


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 some trials failed, 2 bad input, 130 or 143 interrupted."""
    parser = OneLineParser(
        prog="studies.py",
        usage="python sweeps/studies.py STUDY [FLAGS of sweeps/ablation.py]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=Help,
    )
    parser.add_argument("study", choices=STUDIES, metavar="STUDY", help=f"one of {', '.join(STUDIES)}")
    flags, typed = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    study = STUDIES[flags.study]
    words = [*study.flags.split(), *typed]
    _, ablation_flags = ablation.parse(words)
    commands = [shlex.join(["python", "sweeps/ablation.py", *words])]
    print(commands[0], flush=True)
    code = ablation.main(words)
    if code != 0:
        return code
    config = ablation.config_from(ablation_flags)
    if study.exported is not None:
        words = _cells(config, study.exported)
        commands.append(shlex.join(["python", "sweeps/runtimes.py", *words]))
        print(commands[1], flush=True)
        code = runtimes.main(words)
        if code != 0:
            return code
    try:
        write(flags.study, config, commands)
    except ValueError as error:
        print(f"studies.py: {error}", file=sys.stderr)
        return FAILED
    return 0


def _cells(config: SweepConfig, exported: str) -> list[str]:
    """What measures the teacher in eager PyTorch and as a file."""
    words = ["--name", config.name, "--run", "teacher", "--precisions", "fp32", "--batches", "64"]
    words += ["--runtimes", f"eager_{config.device},{exported}_{config.device}"]
    words += ["--dataset", config.base.data.dataset, "--out", str(config.out), "--data-dir", str(config.data_dir)]
    words += ["--gpus", str(config.gpus)] if config.gpus else []
    return words + (["--tracking-uri", config.tracking_uri] if config.tracking_uri else [])


def write(name: str, config: SweepConfig, commands: Sequence[str]) -> None:
    """Table and picture of a study: on the screen, in OUT/sweeps/NAME/studies/, on the sweep's MLflow run.

    Raises:
        ValueError: if what the table needs is not there.
    """
    from analysis import studies
    from analysis.runs import read_curves, read_runs
    from sweeps.outcome import tracking_uri
    from trainables.stages import data

    uri = tracking_uri(config)
    runs = read_runs(uri, config.name)
    exported = STUDIES[name].exported
    if exported is not None:
        table = studies.inference_table(_measured(config), exported)
    elif name == "amp":
        table = studies.precision_table(runs, read_curves(uri, [str(run_id) for run_id in runs.frame.index]))
    else:
        table = {"distillation": studies.distillation_table, "pruning": studies.pruning_table}[name](runs)
    files = studies.write_study(table, config.folder / "studies", made_by=commands)
    ablation.deliver(config, data.prepare(config.base.data, config.data_dir), files)
    print(files[1].read_text(encoding="utf-8"))
    print(f"Study: {', '.join(str(file) for file in files)}")


def _measured(config: SweepConfig) -> pd.DataFrame:
    """The teacher's cells that this study compares."""
    from analysis.runtime_table import runtime_frame

    frame = runtime_frame(config.folder / "runtimes")
    return frame[(frame["of_trial"] == "teacher") & (frame["batch_images"] == 64)]
