"""Which Ray cluster a command joins, by its flags; does not import Ray, so that wrong flags are reported at once."""

import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

from trainables.store.objects import Objects

CORES_A_GPU = 2  # where --cpus is not given
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray in the driver of a submitted job


def cluster_settings(address: str | None, *, gpus: int | None, cpus: int | None) -> dict[str, Any]:
    """Fields of a sweep's configuration: the cluster to join, and how many of its cores to use.

    Raises:
        ValueError: if a cluster is joined without saying how much of it is used.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "none"
    if address in ("none", "local"):
        return {"address": None}
    if cpus is None and not gpus:
        raise ValueError(f"--address {address}: say with --gpus N or --cpus N how much of that cluster to use.")
    return {"address": address, "cpus": cpus or CORES_A_GPU * (gpus or 1)}


def check_shared(out: Path, address: str | None, storage: str | None) -> None:
    """Try to write to the shared storage, and refuse an output folder that a cluster would delete.

    Raises:
        ValueError: naming the flag and the fix.
    """
    if address is not None and JOB in os.environ and not out.is_absolute():
        raise ValueError(
            f"--out {out}: Ray removes a job's working directory when the job has ended; name an absolute folder."
        )
    if storage is None:
        return
    try:
        if "://" not in storage:
            with tempfile.TemporaryFile(dir=storage):
                return
        objects, mine = Objects(storage, patience_s=0.0), f".seen-{uuid.uuid4().hex}"
        objects.write(mine, b"")
        objects.delete([mine])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).removeprefix(f"{storage} cannot be opened: ")
        raise ValueError(f"--storage {storage}: cannot be used ({reason}); name a folder or bucket you own.") from None
