"""Count what exists already of a sweep that is about to run, in the store and in its folder; read only."""

import math
from collections.abc import Callable
from pathlib import Path

from sweeps.planning.cost import Hits, files_per_network, qat_epochs
from sweeps.search.config import SweepConfig
from sweeps.search.sampling.first_trials import first_trials
from trainables.config.candidate import CandidateConfig
from trainables.layout import CHAMPIONS, TRIALS, recorded
from trainables.records.stages import DatasetRecord, read_model
from trainables.stages.training.soft_labels import soft_labels_key
from trainables.stages.training.student import student_key
from trainables.stages.training.teacher import teacher_key
from trainables.store.results import Key, store_below

Find = Callable[[Key], Path | None]


def look_up(config: SweepConfig, dataset: DatasetRecord, find: Find | None = None) -> Hits:
    """Count the results that exist of the first trials, their teacher and its soft labels.

    Args:
        find: that of the sweep's store, if it is asked more than once.
    """
    search = config.search
    find = find or store_below(config.places.out, config.places.storage).find
    points = first_trials(search.space, search.base)
    device = config.devices.device
    base = search.base.resolve(dataset, device=device)
    reached = points[: math.ceil(search.trials / files_per_network(search))]
    candidates = [search.base.replace(**point).resolve(dataset, device=device) for point in reached]
    taught: list[CandidateConfig] = [one for one in candidates or [base] if one.learns_from_teacher]
    if qat_epochs(search):
        taught += [one.replace(precision="int8_qat") for one in taught]
    needed = {view for one in taught for view in one.taught_views()}
    trials, runs = (len(recorded(config.folder / name)) for name in (TRIALS, CHAMPIONS))
    folder = find(teacher_key(base, dataset))
    if folder is None:  # keys of students and soft labels contain the teacher's, so none of them can exist
        return Hits(trials=trials, champion_runs=runs, views_needed=len(needed), first_students=len(points))
    teacher = read_model(folder, base.teacher.teacher_model)
    students = {student_key(c, dataset, teacher) for c in candidates or [base] if not c.cuts_teacher}
    views = [soft_labels_key(base, dataset, teacher, view=view) for view in needed]
    return Hits(
        trials=trials,
        champion_runs=runs,
        teacher=True,
        views=sum(find(key) is not None for key in views),
        views_needed=len(needed),
        students=sum(find(key) is not None for key in students),
        first_students=len(students),
    )
