"""A SLURM of this user alone: munge, a controller and two nodes on this machine, all on loopback."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])  # where Debian has the daemons
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
MailProg=/bin/true
NodeName=one NodeHostname={host} NodeAddr=127.0.0.2 Port={ports[1]} CPUs=1 State=UNKNOWN
NodeName=two NodeHostname={host} NodeAddr=127.0.0.3 Port={ports[2]} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why there can be no SLURM here; empty if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"{', '.join(missing)} not installed (Debian: slurmctld slurmd slurm-client munge)" if missing else ""


class Slurm:
    """What asks the controller."""

    def __init__(self, config: Path) -> None:
        self.environment = {**os.environ, "SLURM_CONF": str(config), "PATH": PATH}

    def __call__(self, *words: str, cwd: Path | None = None) -> str:
        """What a command of SLURM's prints."""
        done = subprocess.run(words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Everything that is known of a job: JobState, Restarts, ..."""
        words = self("scontrol", "show", "job", "-o", number).split()
        return dict(word.partition("=")[::2] for word in words)


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """A SLURM with the nodes `one` and `two`, of one core and one address each, until the block ends."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "state").mkdir()
    config = folder / "slurm.conf"
    config.write_text(
        CONFIG.format(folder=folder, host=socket.gethostname().partition(".")[0], user=getpass.getuser(), ports=free(3))
    )
    own = Slurm(config)
    names = {"key-file": key, **{name: folder / f"munge.{name}" for name in ("socket", "pid-file", "log-file")}}
    names["seed-file"] = folder / "munge.seed"
    daemons = [
        ["munged", "--force", "--foreground", *(f"--{name}={path}" for name, path in names.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "one"],
        ["slurmd", "-D", "-N", "two"],
    ]
    running = []
    with (folder / "daemons.log").open("w") as log:
        try:
            for words in daemons:
                running.append(subprocess.Popen(words, env=own.environment, stdout=log, stderr=log))
                time.sleep(1)  # each looks for the one before it
            wait_for(lambda: own("sinfo", "-h", "-o", "%D %T") == "2 idle", 60, lambda: log_of(folder))
            yield own
        finally:
            for daemon in reversed(running):
                daemon.terminate()
            for daemon in running:
                daemon.wait(timeout=60)


def free(count: int) -> list[int]:
    """Ports that nobody listens on."""
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


def wait_for(is_so: Callable[[], bool], seconds: float, told: Callable[[], str]) -> None:
    """Wait until something is so; `told` says what to show if it never is."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, told()
        time.sleep(0.5)


def log_of(folder: Path) -> str:
    """What the daemons have said."""
    return (folder / "daemons.log").read_text(errors="replace")[-4000:]
