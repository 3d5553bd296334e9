"""All private parts of Ray that a sweep uses; pyproject.toml bounds Ray's version because of them.

tests/contracts/test_private_parts.py fails when one of them changes.
"""

from collections.abc import Mapping
from typing import Any

import ray
from ray._private import ray_constants, worker
from ray.tune.experiment import Trial

LOOPBACK = "127.0.0.1"


def init_on_loopback(*, folder: str | None = None, **settings: Any) -> None:
    """`ray.init` of a Ray on this machine alone, whose every port is bound to loopback; its files are in `folder`."""
    # As Ray has it on macOS and Windows; elsewhere it takes 127.0.0.1 for the machine's own address.
    ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(address="local", _node_ip_address=LOOPBACK, _temp_dir=folder, **settings)


def allow_failures(trial: Trial, more: int) -> None:
    """Let a trial's process die `more` times from now on; Tune counts its own limit from the trial's start."""
    trial.max_failures = trial.num_failures + more


def failures(trial: Trial) -> int:
    """How many times a trial's process has died or raised."""
    return int(trial.num_failures)


def give_resources(trial: Trial, resources: Mapping[str, float]) -> None:
    """Give a trial these resources when it starts again."""
    trial.update_resources(dict(resources))


def owns_ray() -> bool:
    """Whether this process has started the Ray that it uses."""
    node = worker._global_node
    return node is not None and bool(node.all_processes)


def dead_process() -> str | None:
    """The name of a process of the Ray of this process that has died; None if none has, or if it has joined a Ray."""
    dead = worker._global_node.dead_processes() if owns_ray() else []
    return str(dead[0][0]) if dead else None
