"""Find a sweep's records and deliver them to MLflow, each trial exactly once."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from trainables.files import write_text
from trainables.layout import CELLS, CHAMPIONS, TEACHER, TRACKING, TRIALS, has_record, recorded
from trainables.records.encoding import to_json
from trainables.records.trial import TrialRecord, read_trial
from trainables.tracking.tracker import Tracker

Score = Callable[[Mapping[str, float]], float]
# The last @ ends the password, which may contain others.
_PASSWORD = re.compile(r"(?<=://)([^:/@]*):.*@(?=[^@]*$)")


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


def note_where(folder: Path, uri: str, *, experiment: str, sweep: str, sweep_id: str, artifacts: Path) -> None:
    """Write the address that a sweep is delivered to into its folder, without the password."""
    row = {"uri": hide_password(uri), "experiment": experiment, "sweep": sweep, "sweep_id": sweep_id}
    write_text(folder / TRACKING, to_json({**row, "artifacts": str(artifacts.resolve())}))


def open_noted(folder: Path, uri: str | None) -> Tracker:
    """Open the tracker that `note_where` described, at `uri` if one is given.

    Raises:
        ValueError: if no address was written, or it had a password.
        TrackingError: if that store cannot be used.
    """
    try:
        row = json.loads((folder / TRACKING).read_text(encoding="utf-8"))
        noted, rest = str(row.pop("uri")), {**row, "artifacts": Path(row["artifacts"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{folder} does not say where it is delivered to; run the sweep's own command.") from None
    # an address that hiding changes was written without its password, so that it cannot be opened
    if uri is None and noted != hide_password(noted, mark=""):
        raise ValueError(f"{folder.name} was delivered to {noted}; name that store, with password, by --tracking-uri.")
    return Tracker(uri or noted, **rest)


def hide_password(uri: str, *, mark: str = "***") -> str:
    """An address with its password replaced by `mark`.

    Example:
        >>> hide_password("postgresql://me:secret@db/mlflow"), hide_password("http://head:5000")
        ('postgresql://me:***@db/mlflow', 'http://head:5000')
    """
    return _PASSWORD.sub(rf"\1:{mark}@", uri)
