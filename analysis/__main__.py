"""`python -m analysis`: print the Pareto front of a sweep and write its files."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from rich.console import Console


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"analysis: {message}; `python -m analysis --help` lists the flags.\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0 done, 1 no finished candidate yet, 2 bad input."""
    options = _parse(arguments)
    # MLflow and the plotting libraries take two seconds to import: too long for --help or a typing error.
    from analysis.controls import controls, print_controls, write_controls
    from analysis.front import choose, front_hypervolume, front_members, front_table, with_teacher, write_front
    from analysis.runs import read_runs

    tracking_uri = options.tracking_uri or f"sqlite:///{options.out / 'mlflow.db'}"
    try:
        if options.tracking_uri is None and not (options.out / "mlflow.db").is_file():
            raise ValueError(
                f"--out {options.out} has no mlflow.db; name the folder of a sweep or give --tracking-uri."
            )
        runs = read_runs(tracking_uri, options.name)
    except ValueError as error:
        return _refuse(str(error).replace("tracking_uri=", "--tracking-uri ").replace("sweep=", "--name "))
    folder = options.to or options.out / "sweeps" / runs.name / "front"
    try:
        arms = controls(runs.frame)
        paths = [*write_front(runs, folder), *write_controls(arms, folder)]
    except OSError as error:
        return _refuse(f"--to {folder} cannot be written ({error.strerror}); name another folder.")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    front = front_members(runs)
    if front.empty:
        counts = ", ".join(f"{n} {status}" for status, n in runs.frame["status"].value_counts().items())
        console.print(f"Sweep {runs.name} has no finished candidate yet ({counts or 'no trials'}).", markup=False)
        return 1
    console.print(f"Sweep {runs.name}: {len(front)} of {len(runs.frame)} runs are on the front.", markup=False)
    variants = choose(front, runs.sweep["teacher"])
    console.print(front_table(with_teacher(runs, front), variants=variants))
    reference = runs.sweep["reference_point"]
    corner = ", ".join(f"{axis} {value:g}" for axis, value in reference.items())
    console.print(f"hypervolume {front_hypervolume(runs):.2f} (reference point: {corner})", markup=False)
    print_controls(console, arms)
    for path in paths:
        print(os.path.relpath(path))
    return 0


def _refuse(message: str) -> int:
    print(f"analysis: {message}", file=sys.stderr)
    return 2


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m analysis",
        description="Print the Pareto front of a sweep and write its tables and pictures.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the sweeps, with mlflow.db (runs)")
    parser.add_argument("--name", help="sweep to show; without it, the newest")
    parser.add_argument("--tracking-uri", help="MLflow store to read instead of OUT/mlflow.db")
    parser.add_argument("--to", type=Path, help="folder to write to (OUT/sweeps/NAME/front)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
