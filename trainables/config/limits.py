"""Hard limits on a candidate, in the user's units (standard library only)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

# Metric: the latency of the untrained shape, reported beside that of the trained file.
SHAPE_LATENCY = "shape_latency_p50_ms"
# Relative. Two measurements of one architecture have differed by up to 6 % (tests/benchmarks/LOG.md, feasible).
LATENCY_NOISE = 0.1


class InfeasibleError(ValueError):
    """A candidate exceeds its limits: `excess` says by how much, `measured` holds the numbers known so far."""

    def __init__(self, excess: Mapping[str, float], measured: Mapping[str, float]) -> None:
        over = ", ".join(f"{name} by {100 * by:.0f} %" for name, by in excess.items() if by > 0)
        super().__init__(f"over {over}")
        self.excess, self.measured = dict(excess), dict(measured)


def _latency(measured: Mapping[str, float]) -> float | None:
    """The latency in milliseconds that is consistent with both measurements; None if there is none yet."""
    latency = measured.get("latency_p50_ms")
    if latency is None or SHAPE_LATENCY not in measured:
        return latency
    return min(latency, max(measured[SHAPE_LATENCY], latency / (1 + LATENCY_NOISE)))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Hard limits; unset means no limit."""

    max_latency_ms: float | None = None
    """Largest p50 latency of one image, milliseconds."""
    max_size_mb: float | None = None
    """Largest ONNX file, MB (1 MB = 1,000,000 bytes)."""
    max_macs: float | None = None
    """Most multiply-accumulates of one image."""
    max_drop: float | None = None
    """Most points of validation accuracy that may be lost against the teacher."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # a drop of 0 points is a sensible demand; the other three are always above 0
            least = 0 if field.name == "max_drop" else -math.inf
            if value is not None and not (math.isfinite(value) and value >= least and (least == 0 or value > 0)):
                sign = ">=" if field.name == "max_drop" else ">"
                raise ValueError(f"`{field.name} {sign} 0` must hold, but got {field.name}={value}.")

    def excess(self, measured: Mapping[str, float]) -> dict[str, float]:
        """How far each limit is exceeded, relative to the limit; 0 or less means that it is met.

        Noise in a second measurement does not reject an architecture that met the latency limit before training: it
        fails only if the second measurement is over the limit by more than `LATENCY_NOISE`.

        Args:
            measured: `latency_p50_ms`, `size_bytes`, `macs`; and, once trained, `shape_latency_p50_ms` (of the
                untrained shape), `val_accuracy` and `teacher_val_accuracy`. A limit whose number is not known yet is
                left out.
        """
        bounds = {
            "max_latency_ms": (_latency(measured), self.max_latency_ms),
            "max_size_mb": (measured["size_bytes"] / 1e6 if "size_bytes" in measured else None, self.max_size_mb),
            "max_macs": (measured.get("macs"), self.max_macs),
        }
        over = {
            name: value / bound - 1
            for name, (value, bound) in bounds.items()
            if value is not None and bound is not None
        }
        if self.max_drop is not None and "teacher_val_accuracy" in measured:
            drop = 100 * (measured["teacher_val_accuracy"] - measured["val_accuracy"])
            # relative to at least one point: a limit of 0 would divide by zero, a tiny one would outweigh all others
            over["max_drop"] = (drop - self.max_drop) / max(self.max_drop, 1.0)
        return over
