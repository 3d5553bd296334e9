"""Count what exists already of a sweep that is about to run, in the store and in its folder; read only."""

import math

from sweeps.planning.cost import Hits, files_per_network, qat_epochs
from sweeps.search.config import SweepConfig
from sweeps.search.sampling.first_trials import first_trials
from trainables.layout import CHAMPIONS, TRIALS, recorded
from trainables.records.stages import DatasetRecord, read_model
from trainables.stages.training.soft_labels import soft_labels_key
from trainables.stages.training.student import student_key
from trainables.stages.training.teacher import teacher_key
from trainables.store.results import store_below


def look_up(config: SweepConfig, dataset: DatasetRecord) -> Hits:
    """Count the results that exist of the first trials, their teacher and its soft labels."""
    search, store = config.search, store_below(config.places.out, config.places.storage)
    points = first_trials(search.space, search.base)
    device = config.devices.device
    base = search.base.resolve(dataset, device=device)
    reached = points[: math.ceil(search.trials / files_per_network(search))]
    candidates = [search.base.replace(**point).resolve(dataset, device=device) for point in reached]
    quantising = base.export.qat_epochs * (qat_epochs(search) > 0)
    taught = [one for one in candidates or [base] if one.student.soft_weight > 0 and one.needs_training]
    needed = sorted({view for one in taught for view in one.taught_views()})
    views_needed = len(needed) + quantising * bool(taught)
    trials, runs = (len(recorded(config.folder / name)) for name in (TRIALS, CHAMPIONS))
    folder = store.find(teacher_key(base, dataset))
    if folder is None:  # keys of students and soft labels contain the teacher's, so none of them can exist
        return Hits(trials=trials, champion_runs=runs, views_needed=views_needed, first_students=len(points))
    teacher = read_model(folder, base.teacher.teacher_model)
    students = {student_key(c, dataset, teacher) for c in candidates or [base] if not c.cuts_teacher}
    views = [soft_labels_key(base, dataset, teacher, view=view) for view in needed]
    return Hits(
        trials=trials,
        champion_runs=runs,
        teacher=True,
        views=sum(store.find(key) is not None for key in views),
        views_needed=views_needed,
        students=sum(store.find(key) is not None for key in students),
        first_students=len(students),
    )
