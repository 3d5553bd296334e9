"""All private parts of Ray that a sweep uses; pyproject.toml bounds Ray's version because of them.

tests/contracts/test_private_parts.py fails when one of them changes.
"""

import os
import secrets
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import ray_constants, worker
from ray._private.node import Node
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, without types
from ray.tune.experiment import Trial

LOOPBACK = "127.0.0.1"
# It counts nothing for a dashboard that it does not have: that would go on beside a measurement.
QUIET = {
    "RAY_task_events_report_interval_ms": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "86400000",
    "AUTOSCALER_METRIC_PORT": "65536",  # there is none: the autoscaler would show its metrics to whoever asks
}
TMP = "/tmp"  # whatever TMPDIR says: names of sockets have at most 107 characters, and Ray adds 70


@contextmanager
def private_ray(**settings: Any) -> Generator[None, None, None]:
    """A Ray of this user alone, on this machine alone, until the block ends.

    Whoever may connect to a Ray runs code in it, so its ports are bound to loopback, it asks for a random token, and
    its sockets and logs, whose folders Ray opens to everybody, lie below a folder that only this user may enter. The
    agent of `ray[default]` would show metrics to whoever asks, without the token: there are none.
    """
    Node.start_api_server = _no_api_server
    # As Ray has it on macOS and Windows; elsewhere it takes 127.0.0.1 for the machine's own address.
    ray_constants.ENABLE_RAY_CLUSTER = False
    with (
        _token(secrets.token_hex(32)),
        tempfile.TemporaryDirectory(prefix="ray-", dir=TMP, ignore_cleanup_errors=True) as private,
    ):
        try:
            ray.init(
                address="local",
                _node_ip_address=LOOPBACK,
                _temp_dir=f"{private}/ray",
                _system_config={"enable_metrics_collection": False},
                **settings,
            )
            yield
        finally:
            ray.shutdown()


def _no_api_server(node: Node, **_: Any) -> None:
    """Without a dashboard it only reports usage, and looks for three clouds even when told not to."""
    node._webui_url = ""


@contextmanager
def _token(token: str) -> Generator[None, None, None]:
    """Let a Ray that is started within ask for this token; its processes inherit it by their environment."""
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} | QUIET
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    _read_settings()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        _read_settings()


def _read_settings() -> None:
    """Let Ray read its environment again: it has kept mode and token since it was imported."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def allow_failures(trial: Trial, more: int) -> None:
    """Let a trial's process die `more` times from now on; Tune counts its own limit from the trial's start."""
    trial.max_failures = trial.num_failures + more


def forgive_failure(trial: Trial) -> None:
    """Let a trial's last failure not count."""
    trial.max_failures += 1


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
