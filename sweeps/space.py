"""The search space: one Optuna distribution for every parameter that a sweep varies."""

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)

from trainables.configs import PRUNING_METHODS, CandidateConfig

SEARCHED = ("temperature", "alpha", "learning_rate", "pruning_method", "pruning_ratio")
STEPS = {"temperature": 0.5, "alpha": 0.1, "pruning_ratio": 0.05}
"""Grid of a range LOW:HIGH: coarse, so that trials share stages. A learning rate has none, it is searched in log."""

Space = Mapping[str, BaseDistribution]

LITERATURE: tuple[Mapping[str, Any], ...] = (
    {"temperature": 4.0, "alpha": 0.9, "learning_rate": 3e-4, "pruning_method": "structured", "pruning_ratio": 0.2},
    {"temperature": 4.0, "alpha": 0.9, "learning_rate": 3e-4, "pruning_method": "structured", "pruning_ratio": 0.3},
)
"""First trials: what papers and tutorials use (arXiv:1503.02531; RepDistiller)."""


def parse(name: str, text: str) -> BaseDistribution:
    """What a flag like `--alpha 0.5:1.0` asks for.

    Args:
        name: one of `SEARCHED`.
        text: `LOW:HIGH`, a comma-separated list of choices, or one value.

    Raises:
        ValueError: if the text is no such thing, or a value is out of the parameter's range.
    """
    if name == "pruning_method":
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
    top = low + step * math.floor((high - low) / step + 1e-9)
    return FloatDistribution(low, round(top, 10), step=step)


def default_space() -> dict[str, BaseDistribution]:
    """The space of a plain `kd_prune` sweep."""
    return {
        "temperature": parse("temperature", "1:8"),
        "alpha": parse("alpha", "0:1"),
        "learning_rate": parse("learning_rate", "3e-4,1e-3,3e-3"),
        "pruning_method": parse("pruning_method", ",".join(PRUNING_METHODS)),
        "pruning_ratio": parse("pruning_ratio", "0:0.7"),
    }


def first_trials(space: Space) -> list[dict[str, Any]]:
    """The literature's settings as far as the space holds them; a parameter outside takes its nearest value."""
    points: list[dict[str, Any]] = []
    for wanted in LITERATURE:
        point = {name: _nearest(distribution, wanted[name]) for name, distribution in space.items()}
        if point not in points:
            points.append(point)
    return points


def size(space: Space) -> float:
    """How many different trials there are; infinity if a parameter is continuous."""
    return math.prod(_count(distribution) for distribution in space.values())


def describe(space: Space) -> dict[str, str]:
    """The space in words, for records."""
    return {name: str(distribution) for name, distribution in space.items()}


def show(distribution: BaseDistribution) -> str:
    """A distribution as its flag is written."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(f"{choice:g}" if isinstance(choice, float) else str(choice) for choice in distribution.choices)
    assert isinstance(distribution, FloatDistribution)
    return f"{distribution.low:g}:{distribution.high:g}"


def _choices(name: str, values: list[Any]) -> CategoricalDistribution:
    return CategoricalDistribution([_checked(name, value) for value in dict.fromkeys(values)])


def _checked(name: str, value: Any) -> Any:
    CandidateConfig().replace(**{name: value})
    return value


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


def _count(distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    assert isinstance(distribution, FloatDistribution)
    return (
        math.inf if distribution.step is None else round((distribution.high - distribution.low) / distribution.step) + 1
    )
