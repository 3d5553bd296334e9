"""Tries, as another user of the machine, every port, socket, file and process of a running sweep.

    python tests/benchmarks/other_user.py --out stranger      (as root, who alone may become another user)

A small sweep runs with a umask of 022 in a folder that everybody may enter, with a TMPDIR and a HOME of its own and a
password in its environment. As long as it runs, whatever its processes listen on, have open or leave in these folders
is tried once by a process of user 65534: every gRPC method that Ray knows and a few pages over HTTP, without a token;
reading, writing and listing; environment, memory and open files of each process. The outcome is `refused`, `public`
(the table says why), or FAULT; what could be read is searched for the sweep's secrets.
"""

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from commands import hardware
from stranger import Try, ask_pages, ask_rpc, become, connect, enter, find, knock, look, methods

COMMAND = Path(__file__).parents[2] / "sweeps" / "kd_prune.py"
SWEEP = """--preset quick --teacher-epochs 2 --student-epochs 1 --recovery-epochs 1 --latency-seconds 0.2
    --latency-max-attempts 1 --stopper off"""
RAY = """
import sys, time
from pathlib import Path
import ray
from sweeps.cluster.joining import ray_for
from sweeps.search.presets import quick

with ray_for(quick().replace(out=Path(sys.argv[2]))):
    worker = ray.remote(num_cpus=0)(type("Worker", (), {"wait": lambda self: time.sleep(5)})).remote()
    ray.get([worker.wait.remote()] * 2)
"""
PASSWORD = "pass-of-the-tracking-server"
PUBLIC = {
    "runs": "OUT has the mode that the umask gives it",
    "data": "so has the data folder",
    "home": "so have libraries' caches at home",
    "command line": "everybody sees command lines",
}
"""What others may read, and why."""
ALIVE = tuple(
    f"ray.rpc.{name}"
    for name in (
        "NodeManagerService/GetNodeStats",
        "InternalKVGcsService/InternalKVKeys",
        "CoreWorkerService/GetCoreWorkerStats",
    )
)
"""Methods that must answer whoever has the token: otherwise nothing was proven."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attempt."""

    kind: str
    target: str
    outcome: str
    """`refused`, `public` or `FAULT`."""
    said: str


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 nothing was open, 1 something was, 2 it could not be tried."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("stranger"), help="folder for the log (default: %(default)s)")
    parser.add_argument("--trials", type=int, default=2, help="of the sweep (default: %(default)s)")
    parser.add_argument("--ray-alone", action="store_true", help="the Ray of a sweep without the sweep: seconds")
    flags = parser.parse_args(argv)
    if os.getuid() != 0 or not Path("/proc/self/environ").exists():
        print("only root on Linux can become another user", file=sys.stderr)
        return 2
    methods()  # while modules can be read: others may not go where the interpreter lies
    flags.out.mkdir(parents=True, exist_ok=True)
    rows, answered = attack(
        flags.out / "sweep.log",
        ["-c", RAY] if flags.ray_alone else [str(COMMAND), *SWEEP.split(), f"--trials={flags.trials}"],
    )
    print(hardware())
    print(table(rows))
    for row in rows:
        if row.outcome == "FAULT":
            print(f"FAULT {row.kind} {row.target}: {row.said}")
    silent = [name for name in ALIVE if not answered[name]]
    print(f"{sum(answered.values())} answers to who has the token" + (f"; none from {silent}" if silent else ""))
    faults = sum(row.outcome == "FAULT" for row in rows)
    print(f"{len(rows)} attempts, {faults} faults")
    return int(bool(faults or silent))


def attack(log: Path, command: Sequence[str]) -> tuple[list[Row], Counter[str]]:
    """Run a command of Python's and try it; all attempts, and how often each of `ALIVE` answered to the token."""
    world = Path(tempfile.mkdtemp(prefix="stranger-", dir="/tmp"))
    world.chmod(0o755)
    for name in ("tmp", "home", "data", "runs"):
        (world / name).mkdir()
    (world / "tmp").chmod(0o1777)
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTEST"))}
    settings |= {"TMPDIR": str(world / "tmp"), "HOME": str(world / "home"), "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    where = ["--out", str(world / "runs"), "--data-dir", str(world / "data")]
    words = [sys.executable, *command, *where]
    fork = multiprocessing.get_context("fork")
    try:
        with log.open("wb") as output, ProcessPoolExecutor(1, mp_context=fork, initializer=become) as stranger:
            if stranger.submit(os.getuid).result() == 0:
                raise RuntimeError("the stranger is still root")
            sweep = subprocess.Popen(
                words, cwd=COMMAND.parents[1], env=settings, umask=0o022, stdout=output, stderr=subprocess.STDOUT
            )
            try:
                return _all_of(sweep, world, stranger)
            finally:
                if sweep.poll() is None:
                    sweep.terminate()
                if sweep.wait():
                    raise RuntimeError(f"the sweep ended with {sweep.returncode}: {log.read_text()[-2000:]}")
    finally:
        shutil.rmtree(world, ignore_errors=True)


def _all_of(
    sweep: subprocess.Popen[bytes], world: Path, stranger: ProcessPoolExecutor
) -> tuple[list[Row], Counter[str]]:
    rows: list[Row] = []
    tried: set[tuple[str, str]] = set()
    answered: Counter[str] = Counter()
    secrets = {PASSWORD}
    while sweep.poll() is None:
        processes = _tree(sweep.pid)
        secrets |= {token for process in processes if (token := _token(process))}
        new = [target for target in _targets(processes, world) if target not in tried]
        tried |= set(new)
        for kind, target in new:
            found = stranger.submit(TRIES[kind], target, sorted(secrets)).result()
            rows += [_judged(target, one, world) for one in found]
        answered += _answers({target for kind, target in tried if kind == "TCP port"}, secrets, answered)
        time.sleep(0.3)
    for path in filter(Path.is_file, world.rglob("*")):  # as they are at the end, with every token known
        found = stranger.submit(look, str(path), sorted(secrets)).result()
        rows += [_judged(str(path), one, world) for one in found if one.what == "secret"]
    return rows, answered


def _answers(ports: set[str], tokens: set[str], before: Counter[str]) -> Counter[str]:
    """How often each of `ALIVE` answers its owner, asked until it has: a port may be seen before its token is."""
    waiting = [name for name in ALIVE if not before[name]]
    return Counter(name for name in waiting for port in ports for token in tokens if knock(port, name, token))


def _judged(target: str, one: Try, world: Path) -> Row:
    """The verdict: what worked is a fault, unless it is reading what is public and no secret stands in it."""
    inside = Path(target).is_relative_to(world)
    place = Path(target).parts[len(world.parts)] if inside else one.what
    public = one.what in ("read", "list", "command line") and place in PUBLIC
    outcome = ("public" if public else "FAULT") if one.done else "refused"
    return Row(kind=one.what, target=target, outcome=outcome, said=PUBLIC[place] if outcome == "public" else one.said)


TRIES = {
    "TCP port": ask_rpc,
    "HTTP": ask_pages,
    "UDP port": find,
    "socket": connect,
    "file": look,
    "process": enter,
}


def _targets(processes: Sequence[psutil.Process], world: Path) -> Iterator[tuple[str, str]]:
    """Everything there is at the moment, by kind: ports, sockets, files and folders, processes."""
    paths = {str(path) for path in world.rglob("*") if path != world / "tmp"}  # everybody's, as /tmp is
    for process in processes:
        try:
            yield "process", str(process.pid)
            for connection in process.net_connections(kind="all"):
                if not connection.laddr or connection.status not in ("LISTEN", "NONE"):
                    continue
                if connection.family.name == "AF_UNIX":
                    yield "socket", connection.laddr
                elif connection.type.name == "SOCK_DGRAM":
                    yield "UDP port", str(connection.laddr.port)
                else:
                    yield "TCP port", str(connection.laddr.port)
                    yield "HTTP", str(connection.laddr.port)
            opened = {file.path for file in process.open_files()}
            mapped = {area.path for area in process.memory_maps() if area.path.startswith(("/dev/shm", "/tmp"))}
            paths |= {path for path in opened | mapped if _is_ours(path)}
        except (psutil.Error, OSError):  # it has ended meanwhile
            continue
    private = {Path(*Path(path).parts[:3]) for path in paths if path.startswith("/tmp/ray-")}
    paths |= {str(path) for folder in private for path in [folder, *folder.rglob("*")]}
    yield from (("file", path) for path in sorted(paths))


def _is_ours(path: str) -> bool:
    """Whether a sweep made the file: not the program's own, nor the log that this script gives it."""
    return path.startswith(("/tmp/stranger-", "/tmp/ray-", "/dev/shm/")) and " (deleted)" not in path


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _token(process: psutil.Process) -> str:
    try:
        return process.environ().get("RAY_AUTH_TOKEN", "")
    except (psutil.Error, OSError):
        return ""


def table(rows: Sequence[Row]) -> str:
    """How many attempts there were, by what was tried, and what came of them."""
    lines = ["| tried | targets | attempts | refused | public | FAULT | why it is public |", "|---" * 7 + "|"]
    for kind in sorted({row.kind for row in rows}):
        mine = [row for row in rows if row.kind == kind]
        count = Counter(row.outcome for row in mine)
        why = "; ".join(sorted({row.said for row in mine if row.outcome == "public"}))
        cells = [
            kind,
            len({row.target for row in mine}),
            len(mine),
            *(count[name] for name in ("refused", "public", "FAULT")),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + f" | {why} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
