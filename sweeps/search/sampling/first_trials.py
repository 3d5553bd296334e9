"""The first trials of a search: the settings of papers, cuts of the teacher, far cuts of a good student."""

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from sweeps.search.space import STUDENT_PARAMS, Space, identify, in_order, is_inert, values_of
from trainables.config.candidate import TEACHER_ITSELF, CandidateConfig

_COMMON = {"learning_rate": 2e-3, "pruning_method": "structured", "pruning_ratio": 0.3}
# First trials of the teacher as its own student: untouched, then the cuts that a short budget gains most from. The
# labels alone teach them as well as the teacher does, in half of the time: LOG.md, 2026-11-29, "labels alone".
TEACHER_CUTS = (0.0, 0.7, 0.8, 0.85, 0.5, 0.3)
AVERAGED = 3  # cuts that every budget has time for
# First trials: the settings of papers, their weights as our alpha (`trainables.stages.training.losses` names them).
LITERATURE: tuple[Mapping[str, Any], ...] = (
    _COMMON | {"kd_loss": "kd", "alpha": 0.9, "temperature": 4.0, "pruning_ratio": 0.2},
    _COMMON | {"kd_loss": "kd", "alpha": 0.9, "temperature": 4.0},
    _COMMON | {"kd_loss": "logit_std", "alpha": 9 / 9.1, "temperature": 2.0},
    _COMMON | {"kd_loss": "dkd", "alpha": 0.5, "temperature": 4.0, "dkd_beta": 8.0},
    _COMMON | {"kd_loss": "dist", "alpha": 2 / 3, "temperature": 4.0},
    _COMMON | {"kd_loss": "wttm", "alpha": 0.8, "temperature": 5.0},
    _COMMON | {"kd_loss": "mse", "alpha": 1.0},
    _COMMON | {"kd_loss": "none"},
)


def first_trials(space: Space, base: CandidateConfig) -> list[dict[str, Any]]:
    """The literature's settings for every student and loss of the space, and cuts of the teacher if it is a student.

    Values outside the space move to the nearest inside.
    """
    points: list[dict[str, Any]] = []
    seen: set[CandidateConfig] = set()
    for wanted in _wanted(space, base):
        point: dict[str, Any] = {}
        for name in in_order(space):
            if name in wanted and not is_inert(name, point, space, base):
                point[name] = _nearest(space[name], wanted[name])
        if (same := identify(point, base)) not in seen:
            seen.add(same)
            points.append(point)
    return points


def in_turns(space: Space, base: CandidateConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The first trials: one of every student, and those that will then find theirs in the store.

    At the same time, these would wait for the student; a teacher that is its own student is there already.
    """
    first: list[dict[str, Any]] = []
    later: list[dict[str, Any]] = []
    students: list[dict[str, Any]] = []
    for point in first_trials(space, base):
        student = student_of(point)
        waits = student in students and not base.replace(**point).cuts_teacher
        (later if waits else first).append(point)
        students.append(student)
    return first, later


def student_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that decide the dense student."""
    return {name: params[name] for name in STUDENT_PARAMS if name in params}


def _wanted(space: Space, base: CandidateConfig) -> Iterator[dict[str, Any]]:
    """The first trials as they are written down, before they are fitted to the space."""
    students, losses = values_of(space, base, "student_model"), values_of(space, base, "kd_loss")
    literature = [dict(point) for point in LITERATURE if point["kd_loss"] in losses]
    cuts = list[dict[str, Any]]()
    if literature and TEACHER_ITSELF in students:
        taught = literature[0] | {"student_model": TEACHER_ITSELF, "alpha": 0.7, "temperature": 2.0}
        cuts = [taught | {"pruning_ratio": ratio} for ratio in TEACHER_CUTS]
    by_labels = [cut | {"alpha": 0.0} for cut in cuts] if cuts_by_labels(space, base) else []
    for student in students:
        if student == TEACHER_ITSELF and literature:
            yield from by_labels or cuts
        else:
            yield from (point | {"student_model": student} for point in literature)
    yield from cuts


def cuts_by_labels(space: Space, base: CandidateConfig) -> bool:
    """Whether the first cuts of the teacher learn from the labels alone."""
    # only a teacher can teach images without labels
    return 0 in values_of(space, base, "alpha") and not base.data.unlabeled


def first_cuts(space: Space, base: CandidateConfig) -> list[float]:
    """The ratios that the first trials cut the teacher by."""
    ratios = space.get("pruning_ratio")
    if ratios is None:
        return [base.prune.pruning_ratio]
    return list(dict.fromkeys(_nearest(ratios, ratio) for ratio in TEACHER_CUTS if ratio > 0))


def average_cut(space: Space, base: CandidateConfig) -> float:
    """The ratio at which the teacher has as many MACs as its networks of the first `AVERAGED` cuts on average.

    0 if a method that leaves the network dense is among those searched.
    """
    if values_of(space, base, "pruning_method") != ["structured"]:
        return 0.0
    left = [1 - ratio for ratio in first_cuts(space, base)[:AVERAGED]]
    if base.prune.pruning_of == "channels":
        return 1 - math.sqrt(statistics.mean(share**2 for share in left))
    return 1 - statistics.mean(left)


def far_cuts(space: Space, base: CandidateConfig, student: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Trials that prune a trained student hard: at the upper end of the ratio, and at two thirds of it.

    Empty if no ratio is searched. Such a trial costs only a recovery, and the literature's ratios leave that end of the
    front empty.
    """
    ratios = space.get("pruning_ratio")
    methods = values_of(space, base, "pruning_method")
    if ratios is None or "structured" not in methods:
        return []
    top = max(values_of(space, base, "pruning_ratio"))
    method = {"pruning_method": "structured"} if "pruning_method" in space else {}
    cuts = dict.fromkeys(_nearest(ratios, share * top) for share in (1, 2 / 3))
    return [{**student, **method, "pruning_ratio": ratio} for ratio in cuts if ratio > 0]


def _nearest(distribution: BaseDistribution, value: Any) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        if value in distribution.choices:
            return value
        numbers = [choice for choice in distribution.choices if isinstance(choice, float)]
        return min(numbers, key=lambda choice: abs(choice - value)) if numbers else distribution.choices[0]
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is not None:
        value = distribution.low + distribution.step * round((value - distribution.low) / distribution.step)
    return round(min(max(value, distribution.low), distribution.high), 10)
