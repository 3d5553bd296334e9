"""Translate a trial's record into MLflow's status, tags and curves (plain values, no MLflow import)."""

from collections.abc import Iterator, Mapping

from trainables.records.trial import TrialRecord

# MLflow has no status for a trial that was stopped early or is over a limit; the tag `status` keeps our own word.
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "infeasible": "KILLED", "failed": "FAILED"}


def run_name(record: TrialRecord) -> str:
    """The number and, of a candidate, what became of which network; MLflow's pages list and draw runs by it.

    Example: `00009 teacher structured 0.3, int8_ptq`.
    """
    number, made = record.key.rpartition("/")[2], record.params
    if record.stage != "candidate" or not {"student_model", "pruning_method", "pruning_ratio"} <= made.keys():
        return number
    cut = f"{made['pruning_method']} {made['pruning_ratio']:g}" if made["pruning_ratio"] else "uncut"
    return f"{number} {made['student_model']} {cut}, {made['precision']}"


def trial_tags(record: TrialRecord) -> dict[str, str]:
    """The tags that runs can be filtered by."""
    tags = {"kind": "trial", "key": record.key, "stage": record.stage, "status": record.status}
    if record.trial_number is not None:
        tags["trial_number"] = str(record.trial_number)
    tags |= record.tags
    return tags | ({"control": "teacher"} if record.stage == "teacher" else {})


def version_tags(metrics: Mapping[str, float]) -> dict[str, str]:
    """The metrics shown on the page of a model version, as text, because versions have only tags."""
    shown = ("val_accuracy", "test_accuracy", "latency_p50_ms", "size_bytes")
    return {name: f"{metrics[name]:.6g}" for name in shown if name in metrics}


def curve(record: TrialRecord) -> Iterator[tuple[str, float, int]]:
    """Yield (metric, value, epoch) for every number recorded during training."""
    for epoch in record.curve:
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate"):
            yield f"{epoch.stage}_{name}", getattr(epoch, name), epoch.epoch
