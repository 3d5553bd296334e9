"""`python -m analysis`: look at a sweep, choose from it, ship a file. Without a command: `front`."""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from trainables.layout import DATABASE

COMMANDS: Mapping[str, str] = {
    "front": "print the Pareto front and write its tables, pictures and pages (what happens without a command)",
    "select": "the file that fits your limits, the runner-up, or what it would take; exit code 1 if nothing fits",
    "export": "write a folder to ship: ONNX, TorchScript, preprocessing, labels, a predict.py",
    "report": "write one page, HTML and Markdown: verdict, front, controls, ablations, latency, model cards",
    "importance": "which parameter moved accuracy, latency and size",
    "compare": "two sweeps: hypervolume, and how surely one is ahead",
    "du": "what the folder takes on disk",
}
SWEEP_FLAGS = ("front", "select", "report", "importance")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"analysis: {message}; `python -m analysis --help` lists the commands and flags.\n")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 nothing finished or nothing fits, 2 bad input."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["sync"]:
        from analysis.sync import main as sync

        return sync(words[1:])
    options = parser().parse_args(words if words[:1] and words[0] in (*COMMANDS, "-h", "--help") else ["front", *words])
    # pandas and the plotting libraries take two seconds to import: too long for --help or a typing error.
    from analysis import commands

    run: Callable[[argparse.Namespace], int] = getattr(commands, options.command)
    try:
        return run(options)
    except ValueError as error:
        print(f"analysis: {as_flags(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        place = f"--to {options.to}" if getattr(options, "to", None) else str(error.filename)
        print(f"analysis: {place} cannot be written ({error.strerror}); name another folder.", file=sys.stderr)
        return 2


def as_flags(message: str) -> str:
    """The message with `tracking_uri='x'` said as `--tracking-uri 'x'`: what the person typed."""
    names = {"sweep": "name"}
    for name in (
        "tracking_uri",
        "sweep",
        "max_latency_ms",
        "max_size_mb",
        "min_accuracy",
        "device",
        "out",
        "evaluator",
    ):
        message = message.replace(f"{name}=", f"--{names.get(name, name).replace('_', '-')} ")
    return message


def parser() -> argparse.ArgumentParser:
    """The command line."""
    more = "`sync` brings to MLflow what waits on disk because it was away; `sync --help` lists its flags."
    top = _Parser(prog="python -m analysis", description=__doc__, epilog=more, allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {
        name: commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        for name, text in COMMANDS.items()
    }
    for name, command in made.items():
        command.add_argument(
            "--out", type=Path, default=Path("runs"), help=f"folder of the sweeps, with {DATABASE} (runs)"
        )
        if name != "du":
            command.add_argument("--tracking-uri", help=f"MLflow store to read instead of OUT/{DATABASE}")
        if name in SWEEP_FLAGS:
            command.add_argument("--name", help="sweep; several with commas between; without it, the newest")
            command.add_argument(
                "--device", help="device of the latencies, such as cpu:1; needed where there are several"
            )
    for name in ("front", "report"):
        place = f"folder to write to (OUT/sweeps/NAME/{name}, of several OUT/together/NAMES/{name})"
        made[name].add_argument("--to", type=Path, help=place)
    select = made["select"]
    select.add_argument("--max-latency-ms", type=float, metavar="MS", help="median latency of one image, at most")
    select.add_argument("--max-size-mb", type=float, metavar="MB", help="ONNX file, at most (1 MB = 1,000,000 bytes)")
    select.add_argument("--min-accuracy", type=float, metavar="SHARE", help="on the validation split, 0 to 1, at least")
    export = made["export"]
    export.add_argument(
        "which",
        metavar="NAME@WHICH",
        help="sweep @ balanced, most_accurate, fastest, smallest, an alias of MLflow's registry, a trial, or teacher",
    )
    export.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")
    made["importance"].add_argument(
        "--evaluator", default="fanova", metavar="NAME", help="fanova or ped-anova (fanova)"
    )
    made["compare"].add_argument(
        "sweeps", nargs=2, metavar="NAME", help="a sweep; several taken together with commas between"
    )
    return top


if __name__ == "__main__":
    sys.exit(main())
