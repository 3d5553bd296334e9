"""Find a sweep's records and deliver them to MLflow, each trial exactly once."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from trainables.config.escaping import hide_password
from trainables.files import write_text
from trainables.layout import (
    ARTIFACTS,
    CELLS,
    CHAMPIONS,
    TEACHER,
    TRACKING,
    TRIALS,
    database_uri,
    has_record,
    out_of,
    recorded,
)
from trainables.records.encoding import to_json
from trainables.records.trial import TrialRecord, read_trial
from trainables.tracking.tracker import Tracker

Score = Callable[[Mapping[str, float]], float]


def outbox(folder: Path) -> list[Path]:
    """The folders below OUT/sweeps/NAME that hold a record: of teacher, trials, champions and runtime cells."""
    teacher = folder / TEACHER
    runs = [run for part in (TRIALS, CHAMPIONS, CELLS) for run in recorded(folder / part)]
    return [teacher, *runs] if has_record(teacher) else runs


def scores_of(record: TrialRecord, score: Score) -> dict[str, float]:
    """The score that the driver adds to a trial's metrics; none for unfinished trials and runtime cells."""
    return {"score": score(record.metrics)} if record.status == "finished" and record.stage != "runtime" else {}


def deliver_all(tracker: Tracker, folders: Iterable[Path], score: Score) -> int:
    """Deliver all records not delivered yet; return how many MLflow did not accept."""
    return sum(not tracker.deliver(folder, scores_of(read_trial(folder), score)) for folder in folders)


def note_where(folder: Path, uri: str, *, experiment: str, sweep: str, sweep_id: str) -> None:
    """Write where a sweep is delivered to into its folder, without the password; null is the database in OUT."""
    noted = None if uri == database_uri(out_of(folder)) else hide_password(uri)
    row = {"uri": noted, "experiment": experiment, "sweep": sweep, "sweep_id": sweep_id}
    write_text(folder / TRACKING, to_json(row))


def open_noted(folder: Path, uri: str | None) -> Tracker:
    """Open the tracker that `note_where` described, at `uri` or else in the database in OUT.

    Raises:
        ValueError: if nothing is noted, or another store: the user has to name it, because a folder from elsewhere
            must not choose who gets the records and the credentials of this machine.
        TrackingError: if that store cannot be used.
    """
    out = out_of(folder)
    own = database_uri(out)
    try:
        row = json.loads((folder / TRACKING).read_text(encoding="utf-8"))
        noted, names = row["uri"], {name: str(row[name]) for name in ("experiment", "sweep", "sweep_id")}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder} does not say where it is delivered to; run the sweep's own command.") from None
    if uri is None and noted not in (None, own):
        raise ValueError(f"{folder.name} was delivered to {noted}; if that store is yours, name it by --tracking-uri.")
    return Tracker(uri or own, **names, artifacts=out / ARTIFACTS)
