"""The Ray that a sweep runs on: one of its own on this machine, or a cluster that it joins."""

import logging
import os
import socket
import uuid
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import optuna
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.cluster.address import JOB
from sweeps.cluster.interrupts import stoppable
from sweeps.cluster.mps import client_environment
from sweeps.cluster.mps_nodes import daemon_on_nodes
from sweeps.cluster.ray_private import private_ray
from sweeps.cluster.ray_settings import FOR_WORKERS
from sweeps.search.config import SweepConfig
from sweeps.search.devices import Devices
from sweeps.search.folder import InputError
from trainables.layout import CHECKOUT

log = logging.getLogger(__name__)

CONNECT_S = 10.0
NOT_SHIPPED = (".git", ".venv", "/runs", "/data", "*.onnx", "*.pt", "__pycache__")
"""Patterns as in .gitignore: a slash in front says at the top, for a package may be called `data`, too."""


@contextmanager
def ray_for(config: SweepConfig) -> Generator[None, None, None]:
    """Start Ray, or join a cluster, until the sweep is over; Ctrl-C and SIGTERM end it in order.

    A Ray that is initialised already is used as it is.

    Raises:
        InputError: if there is no such cluster, or a node does not see the shared folder.
        MpsError: if a node lacks the Multi-Process Service that the sweep wants.
    """
    if ray.is_initialized():
        yield
        return
    # one path for all nodes, on which the driver's TMPDIR may not exist
    service = Path("/tmp") / f"mps-{uuid.uuid4().hex}" if config.devices.mps and config.devices.address else None
    # the job's environment tells the workers of all nodes, later ones included, where the service is
    settings = client_environment(service) if service else {}
    address = config.devices.address
    with _started(config.devices) if address is None else _joined(address, settings), stoppable():
        if address is not None:
            _check_nodes(config)
        with daemon_on_nodes(service) if service else nullcontext():
            yield


def cores_of_a_node(devices: Devices) -> int:
    """The most CPU cores that one task may use: those of the largest node, but no more than the sweep has."""
    if devices.address is None:
        return devices.cpus
    largest = max((node["Resources"].get("CPU", 0.0) for node in _alive()), default=0.0)
    return int(min(devices.cpus, largest)) or devices.threads


@contextmanager
def _started(devices: Devices) -> Generator[None, None, None]:
    """A Ray of the sweep's size on this machine alone."""
    ours = private_ray(
        num_cpus=devices.cpus,
        num_gpus=devices.gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    with ExitStack() as stack:
        try:
            stack.enter_context(ours)
        except Exception as error:  # Ray has a dozen kinds, and Exception itself among them
            raise InputError(
                f"Ray does not start on this machine ({_in_a_line(error)}); try again when it is less busy."
            ) from error
        yield


@contextmanager
def _joined(cluster: str, more_settings: Mapping[str, str]) -> Generator[None, None, None]:
    if cluster != "auto":
        _knock(cluster)
    try:
        ray.init(
            address=cluster, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime_env(more_settings)
        )
    except Exception as error:  # Ray has a dozen kinds, and AssertionError among them
        raise InputError(f"--address {cluster}: {_why(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Check that the address accepts connections: Ray would retry a dead one for a minute, then abort the process."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--address {address}: nobody answers there ({error}); it is the address that `ray start --head` prints."
        ) from None


def _why(error: Exception) -> str:
    text = _in_a_line(error)
    if "uthentication" in text or "token" in text:
        return f"that cluster asks for a token; set RAY_AUTH_MODE=token and have its token file ({text[:200]})"
    if "Could not find any running Ray instance" in text:
        return "no Ray cluster runs on this machine; start one with `ray start --head`, or leave the flag out."
    return f"that cluster cannot be joined: {text[:300]}"


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def runtime_env(more_settings: Mapping[str, str]) -> dict[str, Any]:
    """The runtime environment of workers in a cluster: our settings, and the code unless a job has brought it.

    Args:
        more_settings: environment variables, besides ours.
    """
    settings = {name: os.environ[name] for name in FOR_WORKERS if name in os.environ} | dict(more_settings)
    if JOB in os.environ or not (CHECKOUT / "pyproject.toml").exists():  # installed: every node has its own
        return {"env_vars": settings}
    return {"env_vars": settings, "working_dir": str(CHECKOUT), "excludes": list(NOT_SHIPPED)}


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _check_nodes(config: SweepConfig) -> None:
    """Check that every node that is up sees the shared folder; later ones are trusted."""
    shared = config.places.storage if config.places.storage is not None else str(config.places.out.resolve())
    if "://" in shared:
        return
    marker = Path(shared) / f".seen-{uuid.uuid4().hex}"
    marker.touch()
    try:
        sees = ray.remote(num_cpus=0)(_sees)
        for node in _alive():
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            try:
                seen = ray.get(sees.options(scheduling_strategy=there).remote(str(marker)))
            except RayError as error:
                log.debug("node %s left before it was asked: %s", node["NodeManagerAddress"], error)
                continue
            if not seen:
                raise InputError(
                    f"--storage: node {node['NodeManagerAddress']} does not see {shared}; name a folder that all nodes"
                    " share, or a URL such as s3://bucket/runs."
                )
    finally:
        marker.unlink(missing_ok=True)


def _sees(path: str) -> bool:
    return Path(path).exists()


def quiet() -> None:
    """Let libraries log errors only: the sweep has a display of its own."""
    for name in ("ray", "ray.tune", "ray.train", "ray.data", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # it logs a traceback for every process that dies, even if its trial continues elsewhere: `SayRetry` prints a line
    logging.getLogger("ray.tune.execution.tune_controller").setLevel(logging.CRITICAL)
    # Tune's own state, from which we never resume: a full disk is reported by our own writers
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
