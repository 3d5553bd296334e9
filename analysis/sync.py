"""`python -m analysis sync`: deliver to MLflow what waits on disk because it was away, each trial once."""

from functools import partial
from pathlib import Path

from analysis.reading.doors import say
from trainables.layout import DRIVER_LOCK, SWEEP_JSON, SWEEPS

DELIVERED, WAITING = 0, 1


def sync(*, out: Path, name: str | None, tracking_uri: str | None) -> int:
    """Deliver the outboxes of one sweep, or of all below `out`; returns the exit code: 1 if something still waits.

    Args:
        out: folder of the sweeps.
        name: of the sweep; None for all.
        tracking_uri: the MLflow store; None for the database in OUT.

    Raises:
        ValueError: if there is no such sweep, its driver is running, or its store cannot be used.
    """
    return max([deliver(folder, tracking_uri) for folder in _sweeps(out, name)])


def deliver(folder: Path, tracking_uri: str | None) -> int:
    """Deliver one sweep's outbox and print the result; returns the exit code: 1 if something still waits.

    Raises:
        ValueError: if the sweep's driver is running (it delivers itself), or its store cannot be used.
    """
    # MLflow takes two seconds to import: too long for --help or a typing error.
    from trainables.config.score import ExchangeRates, composite_score
    from trainables.locks import file_lock_if_free
    from trainables.records.encoding import UndecodableError, read_json
    from trainables.tracking.deliveries import deliver_all, open_noted, outbox
    from trainables.tracking.tracker import TrackingError

    with file_lock_if_free(folder / DRIVER_LOCK) as free:
        if not free:
            raise ValueError(f"name={folder.name}: its sweep is running and delivers its trials itself.")
        try:
            described = read_json(folder / SWEEP_JSON)
            score = partial(
                composite_score,
                teacher_size_bytes=described["teacher"]["size_bytes"],
                rates=ExchangeRates(**described["config"]["rates"]),
            )
        except (UndecodableError, KeyError, TypeError):
            raise ValueError(f"{folder / SWEEP_JSON} is damaged; the sweep's own command writes it again.") from None
        folders = outbox(folder)
        try:
            tracker = open_noted(folder, tracking_uri)
            waiting = deliver_all(tracker, folders, score)
            if not waiting:
                tracker.sweep_artifacts([folder / SWEEP_JSON])
        except TrackingError as error:
            raise ValueError(
                f"tracking_uri={tracking_uri or ''}: {error}; name the store that the sweep wrote to."
            ) from error
    left = f"; {waiting} wait: {tracker.away}" if waiting else ""
    say(f"{folder.name}: {len(folders) - waiting} of {len(folders)} records are in MLflow{left}")
    return WAITING if waiting else DELIVERED


def _sweeps(out: Path, name: str | None) -> list[Path]:
    """Folders of the sweeps that have begun.

    Raises:
        ValueError: if there are none.
    """
    below = out / SWEEPS
    found = sorted(path.parent for path in below.glob(f"{name or '*'}/{SWEEP_JSON}"))
    if not found:
        what = f"name={name}: no such sweep in {below}" if name else f"out={out}: holds no sweep"
        raise ValueError(f"{what}; name the folder of a sweep.")
    return found
