"""The sweep.toml that a sweep leaves in its folder: what `--config` takes to ask for it again."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import tomli_w
from optuna.distributions import BaseDistribution, CategoricalDistribution

from sweeps.planning.budget import EPOCHS
from sweeps.running.interface.config_file import settings_of
from sweeps.search import space
from sweeps.search.config import PARTS, SweepConfig
from sweeps.search.folder import PLACES
from trainables.config.flags import OneLineParser, as_typed, flag_name


def sweep_toml(
    typed: Mapping[str, Any], config: SweepConfig, parser: OneLineParser, script: str, *, fitted: bool = False
) -> str:
    """All settings of a sweep by its command's keys, but no paths and addresses of this machine.

    A teacher's weights, and images in folders, are named as they were typed.

    Args:
        typed: the flags, for what only they tell: preset, name, budget, cores, the file of weights.
        config: as the flags ask for it, before a probe or a budget has changed it.
        script: the file of the command, such as `kd_prune.py`.
        fitted: whether a probe has fitted the epochs to these cores, as it does for a budget.
    """
    base, search = config.search.base, config.search
    budget = typed.get("budget")
    command = {"preset": typed["preset"], "base": typed.get("start"), "name": typed["name"]}
    command |= {"budget": f"{budget:.12g}s"} if budget else {}
    sections: dict[str, Mapping[str, Any]] = {part: vars(getattr(config, part)) for part in PARTS}
    sections["search"] = {key: value for key, value in sections["search"].items() if key not in ("base", "space")}
    sections["devices"] = {**sections["devices"], "cpus": typed["cpus"]}
    named = (*space.SEARCHED, *space.OPTIONAL)
    # what else a grid varies has its flag's value in `base`
    searched = base.flat() | {name: _value(search.space[name]) for name in named if name in search.space}
    for part in fields(base):
        own = vars(getattr(base, part.name))
        sections[part.name] = {name: searched[name] for name in own if name not in named}
    sections["teacher"] = {**sections["teacher"], "teacher_weights": typed["teacher_weights"]}
    sections["space"] = {name: searched[name] for name in named}
    known = {key for key in settings_of(parser) if flag_name(key) not in PLACES}
    # what a probe decides, as far as nobody has asked for it
    probed = ["trials"] * bool(budget) + ["student_model", *EPOCHS] * bool(budget or fitted)
    known -= {key for key in [*probed, *["teacher_epochs"] * fitted] if typed[key] is None}
    rows: dict[str, Any] = _set(command, known)
    rows |= {title: row for title, section in sections.items() if (row := _set(section, known))}
    return f"# {as_typed(f'python sweeps/{script}')} --config FILE\n{tomli_w.dumps(rows)}"


def _set(section: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if value is not None and name in known}


def _value(values: BaseDistribution) -> Any:
    """What the flag of a searched parameter takes."""
    if not isinstance(values, CategoricalDistribution):
        return space.show(values)
    return values.choices[0] if len(values.choices) == 1 else list(values.choices)
