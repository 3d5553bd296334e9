"""Measure finished models in every runtime, precision and batch.

Every cell is a Ray trial that has the machine to itself while it is timed,
and a run in MLflow under the sweep's. What this machine lacks gets a row that
says so. A cell is measured once; --again repeats those that are not clean.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # modules on PYTHONPATH must not hide our packages, nor those beside this file the user's
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join([sys.path[0], os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)

from analysis.reading.doors import Terminal
from trainables.config.compression import PRECISIONS
from trainables.config.flags import OneLineParser, add_completion_flag
from trainables.layout import (
    DATABASE,
    DELIVERED,
    ONNX_FILE,
    SWEEPS,
    TEACHER,
    TRIALS,
    has_record,
    recorded,
    sweep_folder,
    trial_folder,
)
from trainables.records.trial import read_delivered, read_sweep_id, read_trial
from trainables.stages.runtimes.base import RUNTIMES
from trainables.stages.runtimes.cell import Cell

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
EXAMPLES = """\
examples:
  python sweeps/runtimes.py --name NAME             the teacher and the front
  python sweeps/runtimes.py --name NAME --run 12 --runtimes onnxruntime_cpu
  python sweeps/runtimes.py --name NAME --batches 1,8,64 --again

exit codes: 0 done, 1 a cell failed, 2 bad input, 130 interrupted
"""


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    parser = _parser()
    flags = parser.parse_args(sys.argv[1:] if argv is None else argv)
    console = Terminal()
    try:
        cells = list(_cells(flags))
        folders = _models(flags)
        sweep_id = read_sweep_id(sweep_folder(flags.out, flags.name))
    except ValueError as error:
        parser.error(str(error))
    from sweeps.running.runtime_cells import measure_cells  # Ray takes a second; bad flags need not wait for it

    try:
        frame = measure_cells(flags, cells, folders, sweep_id=sweep_id, console=console)
    except KeyboardInterrupt:
        console.print("Stopped. What is measured stays; the same command goes on from there.")
        return INTERRUPTED
    except ValueError as error:
        parser.error(str(error))
    asked = frame["of_trial"].isin([folder.name for folder in folders]) & frame["runtime"].isin(
        {cell.runtime for cell in cells}
    )
    return FAILED if (frame.loc[asked, "status"] == "failed").any() else 0


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="runtimes.py",
        usage="python sweeps/runtimes.py --name NAME [FLAGS]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_completion_flag(parser)
    parser.add_argument("--name", required=True, metavar="NAME", help="The sweep whose models are measured")
    parser.add_argument("--run", metavar="RUN", help="One model: a trial's number, an MLflow run id, or teacher")
    parser.add_argument("--front", action="store_true", help="The teacher and every member of the front (the default)")
    parser.add_argument(
        "--runtimes", default=",".join(RUNTIMES), metavar="LIST", help=f"Of {', '.join(RUNTIMES)} (default: all)"
    )
    parser.add_argument(
        "--precisions", default=",".join(PRECISIONS), metavar="LIST", help=f"Of {', '.join(PRECISIONS)} (default: all)"
    )
    parser.add_argument(
        "--models",
        metavar="LIST",
        help="Models of your own, package.module:function, for PyTorch's runtimes (default: none)",
    )
    parser.add_argument("--batches", default="1,8,64", metavar="LIST", help="Images a call (default: 1,8,64)")
    parser.add_argument(
        "--runtime-threads", default="1", metavar="LIST", help="CPU threads, a list such as 1,4 (default: 1)"
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="X", help="Time of a cell (default: 2; slow ones 8)"
    )
    parser.add_argument(
        "--again", action="store_true", help="Measure the cells again whose latency is not clean (default: off)"
    )
    parser.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="GPUs to use, needed for CUDA runtimes (default: 0)"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="Where the images lie now, for folder: data sets (default: as recorded)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="PATH", help="Folder of the sweep (default: runs)"
    )
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), metavar="PATH", help="Decoded images (default: data)"
    )
    parser.add_argument("--tracking-uri", metavar="NAME", help=f"MLflow server or database (default: OUT/{DATABASE})")
    return parser


def _cells(flags: argparse.Namespace) -> Iterator[Cell]:
    """Every combination; threads are varied on the CPU only.

    Raises:
        ValueError: if a name or number is not known.
    """
    names = _known("--runtimes", flags.runtimes, tuple(RUNTIMES))
    precisions = _known("--precisions", flags.precisions, PRECISIONS)
    batches = _counts("--batches", flags.batches)
    threads = _counts("--runtime-threads", flags.runtime_threads)
    if not flags.seconds > 0:
        raise ValueError(f"--seconds {flags.seconds}: must be above 0.")
    for name in names:
        for precision in precisions:
            for batch in batches:
                for count in threads if RUNTIMES[name].device == "cpu" else threads[:1]:
                    yield Cell(runtime=name, precision=precision, batch_images=batch, runtime_threads=count)


def _models(flags: argparse.Namespace) -> list[Path]:
    """Folders of the trials to measure.

    Raises:
        ValueError: if there is no such sweep, trial or run, or it left no model.
    """
    sweep = sweep_folder(flags.out, flags.name)
    if not has_record(sweep / TEACHER):
        raise ValueError(f"--name {flags.name}: {sweep} holds no sweep with a teacher; see `ls {flags.out}/{SWEEPS}`.")
    if flags.run is None:
        return [sweep / TEACHER, *_front(sweep)]
    folder = sweep / TEACHER if flags.run == "teacher" else _of_run(sweep, flags.run)
    if folder is None or not (folder / ONNX_FILE).exists():
        raise ValueError(f"--run {flags.run}: no finished trial of sweep {flags.name} has this number or run id.")
    return [folder]


def _of_run(sweep: Path, run: str) -> Path | None:
    if run.isdecimal() and len(run) <= 5:
        return trial_folder(sweep, int(run))
    for marker in (*sweep.glob(f"{TEACHER}/{DELIVERED}"), *sweep.glob(f"*/*/{DELIVERED}")):
        if read_delivered(marker.parent).get("run_id") == run:
            return marker.parent
    return None


def _front(sweep: Path) -> list[Path]:
    """Members of the front, by trial number."""
    from analysis.findings.front import front_of
    from sweeps.search.objectives import DIRECTIONS

    folders = recorded(sweep / TRIALS)
    return sorted(front_of({folder: read_trial(folder) for folder in folders}, DIRECTIONS).index)


def _known(flag: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise ValueError(f"{flag} {name}: must be of {', '.join(known)}.")
    return names


def _counts(flag: str, text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word.isdecimal() or not 1 <= int(word) <= 4096:
            raise ValueError(f"{flag} {word}: must be whole numbers from 1 to 4096, such as 1,8,64.")
    return tuple(dict.fromkeys(map(int, words)))


if __name__ == "__main__":
    raise SystemExit(main())
