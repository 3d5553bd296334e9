"""Look at a sweep, choose from it, ship a file; without a command, print the front."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from trainables.config import mlflow_settings  # noqa: F401 - before MLflow, whose telemetry it ends
from trainables.config.escaping import plain
from trainables.config.flags import OneLineParser, add_completion_flag, with_flags
from trainables.layout import DATABASE

COMMANDS: Mapping[str, str] = {
    "front": "Print the Pareto front and write its tables, pictures and pages (what happens without a command)",
    "select": "Name the file that fits your limits and the runner-up, or the nearest miss (exit code 1)",
    "export": "Write a folder to ship: ONNX, TorchScript, preprocessing, labels, a predict.py",
    "report": "Write one page, HTML and Markdown: verdict, front, controls, ablations, latency, model cards",
    "importance": "Say which setting moved accuracy, latency and size",
    "compare": "Compare two sweeps: hypervolume, and how surely one is ahead",
    "serve": "Serve the front as a live page: limits as sliders, each candidate's recipe, curves and files",
    "du": "Say what the folder takes on disk",
    "sync": "Deliver to MLflow what waits on disk because it was away, each trial once",
}
EXAMPLES: Mapping[str, str] = {
    "front": "front --name NAME,OTHER --to pictures",
    "select": "select --max-latency-ms 5 --min-accuracy 0.9",
    "export": "export NAME@balanced --to ship",
    "report": "report --name NAME",
    "importance": "importance --evaluator ped-anova",
    "compare": "compare NAME OTHER",
    "serve": "serve --port 8050",
    "du": "du --out runs",
    "sync": "sync --tracking-uri http://127.0.0.1:5000",
}
# Commands on one front: they take a sweep's name and the device of its latencies.
FRONT_COMMANDS = ("front", "select", "report", "importance", "serve")
PROGRAM = "python -m analysis"
BAD_INPUT = 2
EPILOG = """COMMAND --help shows the flags of a command.

examples:
  python -m analysis --out runs
  python -m analysis select --max-latency-ms 5 --max-size-mb 4 --min-accuracy 0.9
  python -m analysis export NAME@balanced --to ship
  python -m analysis serve
  python -m analysis compare NAME OTHER

exit codes: 0 done, 1 nothing finished, nothing fits or something still waits, 2 bad input
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code that `--help` explains."""
    words = sys.argv[1:] if arguments is None else arguments
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--print-completion")):
        words = ["front", *words]
    options = vars(parser().parse_args(words))
    command = options.pop("command")
    run = _function_of(command)
    try:
        return run(**options)
    except ValueError as error:
        # The one place where the library's `field=value` becomes the flag that was typed.
        message = with_flags(str(error), options)
    except OSError as error:
        place = f"--to {options['to']}" if options.get("to") else str(error.filename)
        message = f"{place} cannot be written ({error.strerror}); name another folder."
    print(plain(f"{PROGRAM} {command}: {message}"), file=sys.stderr)
    return BAD_INPUT


def parser() -> OneLineParser:
    """The command line; each command's flags are the arguments of the function that runs it."""
    top = OneLineParser(
        prog=PROGRAM,
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_completion_flag(top)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {
        name: commands.add_parser(
            name, help=text, description=f"{text}.", epilog=f"example: {PROGRAM} {EXAMPLES[name]}"
        )
        for name, text in COMMANDS.items()
    }
    for name, command in made.items():
        command.add_argument(
            "--out",
            type=Path,
            default=Path("runs"),
            metavar="DIR",
            help=f"Folder of the sweeps, with {DATABASE} (default: runs)",
        )
        if name in FRONT_COMMANDS:
            command.add_argument("--name", help="Sweep, or several such as A,B (default: the newest)")
            command.add_argument(
                "--device", help="Device of the latencies, such as cpu:1; needed where there are several"
            )
        if name not in ("du", "sync"):
            text = f"MLflow store to read instead of OUT/{DATABASE}"
            command.add_argument("--tracking-uri", metavar="URI", help=text)
    for name in ("front", "report"):
        place = f"Folder to write to (default: OUT/sweeps/NAME/{name}; of several sweeps OUT/together/NAMES/{name})"
        made[name].add_argument("--to", type=Path, metavar="DIR", help=place)
    _add_own_flags(made)
    return top


def _add_own_flags(made: Mapping[str, argparse.ArgumentParser]) -> None:
    """The flags that one command alone has."""
    select = made["select"]
    select.add_argument("--max-latency-ms", type=float, metavar="MS", help="Median latency of one image, at most")
    select.add_argument("--max-size-mb", type=float, metavar="MB", help="ONNX file, at most (1 MB = 1,000,000 bytes)")
    select.add_argument("--min-accuracy", type=float, metavar="SHARE", help="On the validation split, 0 to 1, at least")
    made["export"].add_argument(
        "which",
        metavar="NAME@WHICH",
        help="Sweep @ balanced, most_accurate, fastest, smallest, an alias of MLflow's registry, a trial, or teacher",
    )
    made["export"].add_argument("--to", type=Path, required=True, metavar="DIR", help="Folder to write")
    made["importance"].add_argument(
        "--evaluator", default="fanova", metavar="{fanova,ped-anova}", help="How shares are computed (default: fanova)"
    )
    made["compare"].add_argument(
        "sweeps", nargs=2, metavar="NAME", help="A sweep, or several taken together, such as A,B"
    )
    made["serve"].add_argument("--port", type=int, metavar="N", help="Port on loopback (default: 8050, or a free one)")
    made["sync"].add_argument("--name", help="Sweep to deliver (default: all)")
    made["sync"].add_argument("--tracking-uri", metavar="URI", help=f"MLflow store (default: OUT/{DATABASE})")


def _function_of(command: str) -> Callable[..., int]:
    if command == "sync":
        from analysis.sync import sync

        return sync
    # pandas and the plotting libraries take two seconds to import: too long for --help or a typing error.
    from analysis import commands

    run: Callable[..., int] = getattr(commands, command)
    return run


if __name__ == "__main__":
    sys.exit(main())
