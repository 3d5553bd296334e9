"""NVIDIA's Multi-Process Service for the length of a sweep: kernels of several trials run on one GPU at once.

    python -m sweeps.cluster.mps FOLDER     the keeper: starts the daemon, and stops it when its standard input ends

The keeper is a process of its own, so that the daemon ends with whoever asked for it, kill -9 included.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from trainables.layout import CHECKOUT

CONTROL = "nvidia-cuda-mps-control"
STOP_S = 30.0
READY = "ready"


class MpsError(RuntimeError):
    """The service cannot be started; the message says why."""


@contextmanager
def mps(on: bool) -> Generator[None, None, None]:
    """If `on`, run a daemon of our own for all GPU processes started within, and always stop it at the end.

    Its pipe and log are in a folder of their own, so that another user's daemon is neither used nor stopped. Ray's
    workers inherit the address from the environment: enter before Ray starts.

    Raises:
        MpsError: if the daemon is not installed or does not start.
    """
    if not on:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="mps-"))
    with daemon_in(folder), _environment(client_environment(folder)):
        yield


@contextmanager
def daemon_in(folder: Path) -> Generator[None, None, None]:
    """Run a daemon on this machine, at `client_environment(folder)`, until the end of the block or of this process.

    The folder is removed with the daemon.

    Raises:
        MpsError: if the daemon is not installed or does not start.
    """
    command = [sys.executable, "-m", "sweeps.cluster.mps", str(folder)]
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    keeper = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C reaches the whole group of a terminal
    )
    assert keeper.stdin is not None and keeper.stdout is not None
    try:
        answer = keeper.stdout.readline().strip()
        if answer != READY:
            raise MpsError(answer or f"mps=True: the process that keeps {CONTROL} ended without a word.")
        yield
    finally:
        keeper.stdin.close()
        keeper.stdout.read()  # ends when the keeper does: it has the other end, and no child that we could wait for
        keeper.stdout.close()
        keeper.wait()


def client_environment(folder: Path) -> Mapping[str, str]:
    """Environment variables that point a process to the daemon of `folder`; if none runs, CUDA works without it."""
    return {
        "CUDA_MPS_PIPE_DIRECTORY": str(folder / "pipe"),
        "CUDA_MPS_LOG_DIRECTORY": str(folder / "log"),
    }


@contextmanager
def _environment(settings: Mapping[str, str]) -> Generator[None, None, None]:
    before = {key: os.environ.get(key) for key in settings}
    os.environ |= settings
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


def main(folder: Path) -> int:
    """Run the keeper; its first line of output is `ready`, or why there is no daemon."""
    if os.fork():  # Ray kills the direct children of a worker that ends, which would leave the daemon behind
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a machine that shuts down
    try:
        with _daemon(folder):
            print(READY, flush=True)
            sys.stdin.read()
    except MpsError as error:
        print(error, flush=True)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


@contextmanager
def _daemon(folder: Path) -> Generator[None, None, None]:
    control = shutil.which(CONTROL)
    if control is None:
        raise MpsError(f"mps=True: {CONTROL} is not installed; it comes with NVIDIA's driver. Leave --mps out.")
    folder.mkdir(mode=0o700, exist_ok=True)
    for path in client_environment(folder).values():
        Path(path).mkdir(exist_ok=True)
    os.environ |= client_environment(folder)
    try:
        _start(control)
        yield
    finally:
        _stop(control)  # also one that started too late


def _start(control: str) -> None:
    """Start the daemon for all GPUs: with CUDA_VISIBLE_DEVICES it would renumber them, unlike its clients."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    with tempfile.TemporaryFile("w+") as said:  # a pipe would be open as long as the daemon is
        try:
            run = subprocess.run(
                [control, "-d"],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=environment,
                timeout=STOP_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MpsError(f"mps=True: {CONTROL} did not start within {STOP_S:.0f} s.") from None
        said.seek(0)
        lines = said.read().strip().splitlines() or [f"exit code {run.returncode}"]
    if run.returncode:
        raise MpsError(f"mps=True: {CONTROL} does not start: {lines[-1]}")


def _stop(control: str) -> None:
    """Stop the daemon; `quit` waits for the last client, but no longer than `STOP_S` for one that hangs."""
    try:
        subprocess.run([control], input="quit\n", text=True, capture_output=True, timeout=STOP_S, check=False)
    except subprocess.TimeoutExpired:
        with suppress(subprocess.TimeoutExpired):
            subprocess.run([control], input="quit -t 1\n", text=True, capture_output=True, timeout=STOP_S, check=False)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
