"""What is searched and how it is launched. Ray's settings come first: some are read when its modules are imported."""

from sweeps.cluster import ray_settings

__all__ = ["ray_settings"]
