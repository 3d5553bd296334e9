"""What waits in a sweep's folder for MLflow, and its delivery: trial after trial, each exactly once."""

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
_PASSWORD = re.compile(r"(?<=://)([^:/@]*):.*@(?=[^@]*$)")


def outbox(folder: Path) -> list[Path]:
    """Folders below OUT/sweeps/NAME that hold a record: the teacher's, the trials', the champions', the runtimes'."""
    teacher = folder / TEACHER
    runs = [run for part in (TRIALS, CHAMPIONS, CELLS) for run in recorded(folder / part)]
    return [teacher, *runs] if has_record(teacher) else runs


def scores_of(record: TrialRecord, score: Score) -> dict[str, float]:
    """The numbers the driver adds to a trial's own; none for a trial without a result, or a cell of runtimes."""
    return {"score": score(record.metrics)} if record.status == "finished" and record.stage != "runtime" else {}


def deliver_all(tracker: Tracker, folders: Iterable[Path], score: Score) -> int:
    """Deliver what is still in the outbox; returns how many trials MLflow did not take."""
    return sum(not tracker.deliver(folder, scores_of(read_trial(folder), score)) for folder in folders)


def note_where(folder: Path, uri: str, *, experiment: str, sweep: str, sweep_id: str, artifacts: Path) -> None:
    """Write down where a sweep is delivered to, without a password."""
    row = {"uri": hidden(uri), "experiment": experiment, "sweep": sweep, "sweep_id": sweep_id}
    write_text(folder / TRACKING, to_json({**row, "artifacts": str(artifacts.resolve())}))


def open_noted(folder: Path, uri: str | None) -> Tracker:
    """The tracker that `note_where` describes, at `uri` if that is given.

    Raises:
        ValueError: if nothing is noted, or the address had a password.
        TrackingError: if that store cannot be used.
    """
    try:
        row = json.loads((folder / TRACKING).read_text(encoding="utf-8"))
        noted, rest = str(row.pop("uri")), {**row, "artifacts": Path(row["artifacts"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise ValueError(f"{folder} does not say where it is delivered to; run the sweep's own command.") from None
    if uri is None and noted != hidden(noted, mark=""):
        raise ValueError(f"{folder.name} was delivered to {noted}; name that store, with password, by --tracking-uri.")
    return Tracker(uri or noted, **rest)


def hidden(uri: str, *, mark: str = "***") -> str:
    """An address with its password replaced.

    Example:
        >>> hidden("postgresql://me:secret@db/mlflow"), hidden("http://head:5000")
        ('postgresql://me:***@db/mlflow', 'http://head:5000')
    """
    return _PASSWORD.sub(rf"\1:{mark}@", uri)
