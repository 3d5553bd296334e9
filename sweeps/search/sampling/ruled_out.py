"""Shapes that need no measurement: they are wider than a measured one that already exceeds a limit."""

from collections.abc import Mapping
from typing import Any

from trainables.config.candidate import CandidateConfig

# Limits that the untrained shape decides; each of these values grows with the width.
SHAPE_LIMITS = ("max_latency_ms", "max_size_mb", "max_macs")
# A shape's latency rules out wider ones only if it exceeds the limit by this share of it: a slightly wider layer may be
# a little faster (vector widths), and two measurements of one shape have differed by up to 6 %
# (tests/benchmarks/LOG.md, feasible).
LATENCY_MARGIN = 0.1

_Family = tuple[str, ...]


class RuledOut:
    """The shapes known to exceed a limit, grouped by what makes them comparable: network, precision and way of pruning.

    Shapes whose widths depend on the trained weights (`pruning_scope` other than `layer`) are left out: they are not
    known before training.
    """

    def __init__(self, base: CandidateConfig) -> None:
        """Start with none.

        Args:
            base: the settings that no trial varies.
        """
        self._base = base
        self._over: dict[_Family, list[tuple[float, dict[str, float]]]] = {}

    def add(self, params: Mapping[str, Any], excess: Mapping[str, float]) -> None:
        """Record the shape of a trial if it exceeds a limit.

        Args:
            params: parameters of the trial.
            excess: by limit, as `Limits.excess`.
        """
        over = {name: by for name, by in excess.items() if name in SHAPE_LIMITS and by > 0}
        if not over:
            return
        config = self._base.replace(**params)
        if not config.prune.shape_needs_weights:
            self._over.setdefault(_family(config), []).append((_width(config), over))

    def excess(self, params: Mapping[str, Any]) -> dict[str, float]:
        """By how much at least a proposal exceeds each limit; empty if no known shape rules it out."""
        if not self._over:
            return {}
        config = self._base.replace(**params)
        if config.prune.shape_needs_weights:
            return {}
        family, width = _family(config), _width(config)
        # the dense student is the widest of every way of pruning
        alike_but_cut = [kin for kin in self._over if kin[:2] == family[:2]]
        comparable = [family] if config.prune.removes_channels else alike_but_cut
        least: dict[str, float] = {}
        for kin in comparable:
            for narrower, over in self._over.get(kin, ()):
                for name, by in over.items():
                    alike = narrower == width and kin == family
                    if alike or (narrower <= width and (name != "max_latency_ms" or by > LATENCY_MARGIN)):
                        least[name] = max(by, least.get(name, by))
        return least


def _family(config: CandidateConfig) -> _Family:
    """What two shapes must have in common to be ordered by their width."""
    precision, _, _ = config.export.precision.partition("_")
    if not config.prune.removes_channels:
        return (config.network, precision)
    spares = "bn_scale" if config.prune.pruning_criterion == "bn_scale" else ""  # layers without BatchNorm
    return (config.network, precision, config.prune.pruning_of, spares)


def _width(config: CandidateConfig) -> float:
    """Fraction of the dense student that is left, in the unit of `pruning_of`."""
    return round(1 - config.prune.pruning_ratio, 10) if config.prune.removes_channels else 1.0


def excess_of(result: Mapping[str, Any]) -> dict[str, float]:
    """By how much each limit is exceeded; Tune flattens nested results to names such as `excess/max_size_mb`."""
    flat = {name.removeprefix("excess/"): by for name, by in result.items() if name.startswith("excess/")}
    return {**result.get("excess", {}), **flat}
