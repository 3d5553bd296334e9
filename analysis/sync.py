"""`python -m analysis sync`: brings to MLflow what waits on disk because it was away; each trial once."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from trainables.config.flags import OneLineParser
from trainables.layout import DRIVER_LOCK, SWEEP_JSON, SWEEPS


def main(arguments: list[str]) -> int:
    """Run the command; returns its exit code: 0 all delivered, 1 some still wait, 2 bad input."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    try:
        codes = [sync(folder, flags.tracking_uri) for folder in _folders(flags)]
    except ValueError as error:
        parser.error(str(error))
    return max(codes)


def sync(folder: Path, uri: str | None) -> int:
    """Deliver one sweep's outbox and say so; returns 1 if something waits on.

    Raises:
        ValueError: if the sweep's driver runs (it delivers itself), or its store cannot be used.
    """
    # MLflow takes two seconds to import: too long for --help or a typing error.
    from trainables.config.score import ExchangeRates, composite_score
    from trainables.locks import file_lock_if_free
    from trainables.tracking.deliveries import deliver_all, open_noted, outbox
    from trainables.tracking.tracker import TrackingError

    with file_lock_if_free(folder / DRIVER_LOCK) as free:
        if not free:
            raise ValueError(f"--name {folder.name}: its sweep is running and delivers its trials itself.")
        described = json.loads((folder / SWEEP_JSON).read_text(encoding="utf-8"))
        score = partial(
            composite_score,
            teacher_size_bytes=described["teacher"]["size_bytes"],
            rates=ExchangeRates(**described["config"]["rates"]),
        )
        folders = outbox(folder)
        try:
            tracker = open_noted(folder, uri)
            waiting = deliver_all(tracker, folders, score)
            if not waiting:
                tracker.sweep_artifacts([folder / SWEEP_JSON])
        except TrackingError as error:
            raise ValueError(f"--tracking-uri {uri or ''}: {error}; name the store that the sweep wrote to.") from error
    print(f"{folder.name}: {len(folders) - waiting} of {len(folders)} records are in MLflow", end="")
    print(f"; {waiting} wait: {tracker.away}" if waiting else "")
    return int(waiting > 0)


def _folders(flags: argparse.Namespace) -> list[Path]:
    """Folders of the sweeps that have begun."""
    below = flags.out / SWEEPS
    found = sorted(path.parent for path in below.glob(f"{flags.name or '*'}/{SWEEP_JSON}"))
    if not found:
        what = f"--name {flags.name}: no such sweep in {below}" if flags.name else f"--out {flags.out}: holds no sweep"
        raise ValueError(f"{what}; name the folder of a sweep.")
    return found


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m analysis sync", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the sweeps (runs)")
    parser.add_argument("--name", help="sweep to deliver; without it, all")
    parser.add_argument("--tracking-uri", help="MLflow store, if it is not the one the sweep was started with")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
