"""What is searched and how it is launched. Ray's settings come first: some are read when its modules are imported."""

from typing import TYPE_CHECKING, Any

from sweeps.cluster import ray_settings

if TYPE_CHECKING:
    from sweeps.kd_prune import sweep
    from sweeps.running.interface.compressing import compress

__all__ = ["compress", "ray_settings", "sweep"]


def __getattr__(name: str) -> Any:
    """`sweeps.compress` and `sweeps.sweep`, whose imports take seconds that the commands need not spend."""
    if name == "compress":
        from sweeps.running.interface.compressing import compress

        return compress
    if name == "sweep":
        from sweeps.kd_prune import sweep

        return sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
