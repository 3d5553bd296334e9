"""What is there already of a sweep that is about to run: in the store, and in its folder. Reads only."""

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.planning.cost import Hits, qat_epochs
from sweeps.search.config import SweepConfig
from trainables.layout import CHAMPIONS, TRIALS, recorded
from trainables.records.stages import DatasetRecord, read_model
from trainables.stages.training.soft_labels import soft_labels_key
from trainables.stages.training.student import student_key
from trainables.stages.training.teacher import teacher_key
from trainables.store.results import store_below


def look_up(config: SweepConfig, dataset: DatasetRecord, points: Sequence[Mapping[str, Any]]) -> Hits:
    """Count what an earlier sweep has left; `points` are the parameters of the first trials."""
    store = store_below(config.out, config.storage)
    own = config.base.on(config.device)
    base = [own.replace(**point) for point in points[: config.trials]] or [own]
    soft = any(candidate.student.soft_weight > 0 for candidate in base)
    quantising = own.export.qat_epochs * (qat_epochs(config) > 0)
    views_needed = (own.student.student_epochs + own.prune.recovery_epochs + quantising) * soft
    trials, runs = (len(recorded(config.folder / name)) for name in (TRIALS, CHAMPIONS))
    folder = store.find(teacher_key(own, dataset))
    if folder is None:
        return Hits(trials=trials, champion_runs=runs, views_needed=views_needed, first_students=len(points))
    record = read_model(folder)
    students = {student_key(candidate, dataset, record) for candidate in base}
    views = [soft_labels_key(record, dataset, own.augment, own.training, view=view) for view in range(views_needed)]
    return Hits(
        trials=trials,
        champion_runs=runs,
        teacher=True,
        views=sum(store.find(key) is not None for key in views),
        views_needed=views_needed,
        students=sum(store.find(key) is not None for key in students),
        first_students=len(students),
    )
