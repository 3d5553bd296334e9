"""The search space: one Optuna distribution for every parameter that a sweep varies.

It is conditional: a parameter is left out if, given the earlier ones, it would change nothing
(`CandidateConfig.inert`), such as the temperature of a loss that has none. `base` holds all other settings.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.trial import Trial

from trainables.config.candidate import DECIDING, TEACHER_ITSELF, CandidateConfig

# They decide the dense student: a trial with the same values finds it in the store and only prunes and recovers.
STUDENT_PARAMS = ("student_model", "kd_loss", "temperature", "alpha", "dkd_beta", "learning_rate")

# What a plain sweep searches.
SEARCHED = ("kd_loss", "alpha", "temperature", "dkd_beta", "learning_rate", "pruning_ratio")
# Searched if a flag or preset gives more than one value, settings otherwise.
OPTIONAL = ("student_model", "pruning_method", "pruning_criterion", "pruning_scope", "precision")
WORDS = ("kd_loss", *OPTIONAL)
# Whether a parameter exists depends on earlier ones.
ORDER = ("student_model", *SEARCHED[:-1], "pruning_method", "pruning_ratio", *OPTIONAL[2:])
# Step of a range LOW:HIGH: coarse, so that trials share stages. A learning rate has none: it is searched in log.
STEPS = {"temperature": 0.5, "alpha": 0.1, "dkd_beta": 0.5, "pruning_ratio": 0.05}

Space = Mapping[str, BaseDistribution]


def parse(name: str, text: str) -> BaseDistribution:
    """The distribution of a flag such as `--alpha 0.5:1.0`.

    Args:
        name: one of `SEARCHED` or `OPTIONAL`.
        text: `LOW:HIGH`, a comma-separated list of choices, or one value.

    Raises:
        ValueError: if the text is malformed, or a value is out of the parameter's range.
    """
    if name in WORDS:
        return _choices(name, [part.strip() for part in text.split(",")])
    try:
        values = [float(part) for part in text.replace(":", ",").split(",")]
    except ValueError:
        raise ValueError(f"{name}={text!r} must be a number, LOW:HIGH or a list such as 1,2,4.") from None
    if ":" not in text:
        return _choices(name, values)
    if len(values) != 2 or not values[0] < values[1]:
        raise ValueError(f"{name}={text!r} must be LOW:HIGH with LOW < HIGH.")
    low, high = (_checked(name, value) for value in values)
    if name == "learning_rate":
        return FloatDistribution(low, high, log=True)
    step = STEPS[name]
    # Optuna would shorten a range that is no whole number of steps, with a warning; 1e-9 absorbs rounding.
    top = low + step * math.floor((high - low) / step + 1e-9)
    return FloatDistribution(low, round(top, 10), step=step)


def split(texts: Mapping[str, str]) -> tuple[dict[str, BaseDistribution], dict[str, Any]]:
    """(Distributions to search, settings to fix) from the flags of `SEARCHED` and `OPTIONAL`.

    Raises:
        ValueError: as `parse` does.
    """
    asked = {name: parse(name, text) for name, text in texts.items()}
    fixed = {name: asked[name].choices[0] for name in OPTIONAL if name in asked and len(asked[name].choices) == 1}
    return {name: values for name, values in asked.items() if name not in fixed}, fixed


def default_space() -> dict[str, BaseDistribution]:
    """The space of a plain `kd_prune` sweep."""
    return {
        "kd_loss": parse("kd_loss", "kd"),
        "alpha": parse("alpha", "0:1"),
        "temperature": parse("temperature", "1:8"),
        "dkd_beta": parse("dkd_beta", "1:8"),
        "learning_rate": parse("learning_rate", "1e-3,2e-3,4e-3"),
        "pruning_ratio": parse("pruning_ratio", "0:0.85"),
    }


def suggest(trial: Trial, space: Space, base: CandidateConfig) -> dict[str, Any]:
    """Suggest a trial's parameters, one after the other, without inert ones.

    Parameters that the trial already has, queued or from before a crash, are kept.
    """
    params: dict[str, Any] = {}
    for name in in_order(space):
        if not is_inert(name, params, space, base):
            params[name] = _ask(trial, name, space[name])
    return params


def tidy(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without the rounding errors of a range's steps.

    Example:
        >>> tidy({"alpha": 0.1 + 0.2, "kd_loss": "kd"})
        {'alpha': 0.3, 'kd_loss': 'kd'}
    """
    return {name: round(value, 10) if isinstance(value, float) else value for name, value in params.items()}


def identify(params: Mapping[str, Any], base: CandidateConfig) -> CandidateConfig:
    """A trial's identity: its canonical configuration, which is hashable."""
    return base.replace(**tidy(params)).canonical()


def active(params: Mapping[str, Any], base: CandidateConfig) -> dict[str, Any]:
    """The parameters that are not inert, given the others."""
    inert = base.replace(**tidy(params)).inert()
    return {name: value for name, value in params.items() if name not in inert}


def size(space: Space, base: CandidateConfig) -> float:
    """How many different trials the space has, not counting inert parameters; infinity if one is continuous."""
    ratios = values_of(space, base, "pruning_ratio")
    cut = base.replace(pruning_ratio=max(ratios))
    sizes = {
        name: _size_of_part({key: space[key] for key in space if key in vars(part)}, cut)
        for name, part in vars(base).items()
    }
    whole = math.prod(sizes.values())
    students = values_of(space, base, "student_model")
    if not math.isfinite(whole) or TEACHER_ITSELF not in students or 0 not in ratios or max(ratios) == 0:
        return whole
    # The uncut teacher does without the settings of its training, unless it is trained for INT8.
    untrained = [word for word in values_of(space, base, "precision") if word != "int8_qat"]
    files = {name: space[name] for name in space if name in vars(base.export)}
    files_of_it = sum(_size_of_part(files | {"precision": _choices("precision", [word])}, cut) for word in untrained)
    taught = {name: space[name] for name in space if name in vars(base.student)}
    ways = _size_of_part(taught | {"student_model": _choices("student_model", [TEACHER_ITSELF])}, cut)
    others = math.prod(sizes[name] for name in sizes if name not in ("student", "prune", "export"))
    return whole - (ways - 1) * files_of_it * others


def values_of(space: Space, base: CandidateConfig, name: str) -> list[Any]:
    """Every value that a parameter takes: those of a list or stepped range, or the one of `base`."""
    return _values(space[name]) if name in space else [base.flat()[name]]


def _size_of_part(space: Space, base: CandidateConfig) -> float:
    """`size` of one part: try every value of the deciding settings, and multiply by the others that are not inert."""
    counts = {name: _count(values) for name, values in space.items()}
    deciding = {name: _values(space[name]) for name in space if name in DECIDING}
    different: dict[CandidateConfig, float] = {}
    for point in itertools.product(*deciding.values()):
        config = base.replace(**dict(zip(deciding, point, strict=True)))
        read = counts.keys() - deciding.keys() - config.inert()
        different[config.canonical()] = math.prod(counts[name] for name in read)
    return sum(different.values())


def describe(space: Space) -> dict[str, str]:
    """The space in the notation of its flags, with the steps of ranges, for people."""
    return {name: show(values) + _steps(values) for name, values in space.items()}


def _steps(distribution: BaseDistribution) -> str:
    step = getattr(distribution, "step", None)
    return f" in steps of {_number(step)}" if step else " (log scale)" if getattr(distribution, "log", False) else ""


def show(distribution: BaseDistribution) -> str:
    """A distribution in the notation of its flag."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(
            _number(choice) if isinstance(choice, float) else str(choice) for choice in distribution.choices
        )
    assert isinstance(distribution, FloatDistribution)
    return f"{_number(distribution.low)}:{_number(distribution.high)}"


def _number(value: float) -> str:
    return f"{value:.12g}"


def in_order(names: Mapping[str, Any]) -> Iterator[str]:
    """The names in the order of suggestion: the student first, whose choice makes others inert; unknown ones last."""
    yield from (name for name in ORDER if name in names)
    yield from (name for name in names if name not in ORDER)


def is_inert(name: str, given: Mapping[str, Any], space: Space, base: CandidateConfig) -> bool:
    """Whether a parameter changes nothing, given the earlier ones; later ones are assumed at their upper ends."""
    later = {other: max(_ends(space[other])) for other in DECIDING.difference(given, WORDS).intersection(space)}
    return name in base.replace(**later | tidy(given)).inert()


def _ask(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, FloatDistribution)
    value = trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    return tidy({name: value})[name]


def _values(distribution: BaseDistribution) -> list[Any]:
    """Every value of a list or a stepped range."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution) and distribution.step is not None
    return [round(distribution.low + i * distribution.step, 10) for i in range(int(_count(distribution)))]


def _ends(distribution: BaseDistribution) -> list[Any]:
    """All choices of a list, or both ends of a range."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution)
    return [distribution.low, distribution.high]


def _choices(name: str, values: list[Any]) -> CategoricalDistribution:
    return CategoricalDistribution([_checked(name, value) for value in dict.fromkeys(values)])


def _checked(name: str, value: Any) -> Any:
    """The value, after the configuration's own check of its range."""
    CandidateConfig().replace(**{name: value})
    return value


def _count(distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, FloatDistribution)
    return (
        math.inf if distribution.step is None else round((distribution.high - distribution.low) / distribution.step) + 1
    )
