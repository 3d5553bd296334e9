"""What a trial's record becomes in MLflow's words: status, tags, curves (plain values, no MLflow)."""

from collections.abc import Iterator, Mapping

from trainables.records.trial import TrialRecord

STATUS = {"finished": "FINISHED", "stopped": "KILLED", "infeasible": "KILLED", "failed": "FAILED"}


def trial_tags(record: TrialRecord) -> dict[str, str]:
    """Tags to filter runs by."""
    tags = {"kind": "trial", "key": record.key, "stage": record.stage, "status": record.status}
    if record.trial_number is not None:
        tags["trial_number"] = str(record.trial_number)
    tags |= record.tags
    return tags | ({"control": "teacher"} if record.stage == "teacher" else {})


def version_tags(metrics: Mapping[str, float]) -> dict[str, str]:
    """The numbers that the page of a registered model's version shows: tags are text."""
    shown = ("val_accuracy", "test_accuracy", "latency_p50_ms", "size_bytes")
    return {name: f"{metrics[name]:.6g}" for name in shown if name in metrics}


def curve(record: TrialRecord) -> Iterator[tuple[str, float, int]]:
    """(metric, value, epoch) of everything that was noted while it trained."""
    for epoch in record.curve:
        for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate"):
            yield f"{epoch.stage}_{name}", getattr(epoch, name), epoch.epoch
