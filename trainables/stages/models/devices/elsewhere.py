"""Run modules of ours on another machine over ssh (standard library only).

That machine needs python3 with onnxruntime and numpy. It gets this package and the files to time, each once, into
`FOLDER` below its user's home; `python3` of the environment `venv` in there comes first, if there is one. Nothing is
asked: who cannot log in with a key is refused.
"""

import dataclasses
import hashlib
import io
import json
import logging
import platform
import shlex
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

from trainables.config.mlflow_settings import NO_TELEMETRY
from trainables.layout import CHECKOUT
from trainables.records.encoding import decode
from trainables.stages.models.devices import receiver
from trainables.stages.models.devices.processor import has_vnni, processor_name

log = logging.getLogger(__name__)
Result = TypeVar("Result")

FOLDER = ".cache/compression-sweeps"
NEEDS = ("numpy", "onnxruntime")
PACKAGE = "trainables"
LEAST = ".".join(map(str, receiver.LEAST))
FIX = (
    f"it is looked for in ~/{FOLDER}/venv first: make that of Python {LEAST} or newer by `python3 -m venv`, and"
    f" `pip install {' '.join(NEEDS)}` in it"
)
# A line that is dead, and a machine that is, are noticed within 15 s.
_OPTIONS = {"BatchMode": "yes", "ConnectTimeout": "10", "ServerAliveInterval": "5", "ServerAliveCountMax": "3"}
# Time limits: for the first answer, which includes the connection and a start of Python; and for sending files.
ANSWER_S, SEND_S = 60.0, 600.0
# Pauses before further attempts, when a connection was lost.
PAUSES_S = (2.0, 8.0, 30.0)


class LostError(ConnectionError):
    """The machine does not answer, or stopped answering; it may be there again later."""


class LackingError(RuntimeError):
    """The machine answers, but lacks what measuring needs; the message ends with the fix."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What records and store keys say of a machine."""

    host: str
    """As it was addressed, with the port if one was given."""
    processor: str
    machine: str
    """Its architecture, such as `aarch64`."""
    vnni: bool
    onnxruntime: str
    """Version."""

    @property
    def name(self) -> str:
        """`pi4, Raspberry Pi 4 Model B Rev 1.4, onnxruntime 1.27.0`."""
        return f"{self.host}, {self.processor}, onnxruntime {self.onnxruntime}"


def check_elsewhere(address: str) -> None:
    """Check that files can be timed on a machine.

    Args:
        address: ssh://[USER@]HOST[:PORT].

    Raises:
        ValueError: if they cannot; says what is missing.
    """
    try:
        ask(address)
    except LostError as error:
        fix = f"`ssh {address} true` must work without a question, so log in once by hand, with a key"
        raise ValueError(f"measure_on={address}: {error}; {fix}.") from error
    except LackingError as error:
        raise ValueError(f"measure_on={address}: {error}.") from error


@cache
def facts_of(address: str) -> Facts:
    """The facts about a machine, asked once per process; raises like `persist`."""
    return persist(address, lambda: ask(address))


def ask(address: str) -> Facts:
    """Ask a machine for its facts.

    Raises:
        LostError: if it does not answer.
        LackingError: if it lacks what measuring needs.
    """
    with tempfile.TemporaryFile() as errors, start(address, [__name__], {}, {}, errors) as process:
        try:
            line = read_line(process, ANSWER_S)
            if not line:
                raise _ended(process, errors)
            host = address.removeprefix("ssh://").rpartition("@")[2]
            return decode(Facts, json.loads(line), where=address, extra={"host": host})
        finally:
            process.kill()


def persist(address: str | None, action: Callable[[], Result]) -> Result:
    """Return the result of an action, repeated after a pause as often as the connection to that machine is lost.

    Raises:
        ValueError: if the machine stays away or lacks something. The store does not remember that as a failure.
    """
    for pause in (*PAUSES_S, None):
        try:
            return action()
        except LostError as error:
            if pause is None:
                raise ValueError(f"measure_on={address}: {error}") from error
            log.warning("%s: %s; again in %.0f s", address, error, pause)
            time.sleep(pause)
        except LackingError as error:
            raise ValueError(f"measure_on={address}: {error}") from error
    raise AssertionError


def start(
    address: str, module: Sequence[str], files: Mapping[str, Path], environment: Mapping[str, str], errors: IO[bytes]
) -> subprocess.Popen[str]:
    """Start a module of this package there, once `files` are; returns the ssh process, with its standard streams.

    It ends when its standard input closes, and so when this process dies. Its folder is `FOLDER`.

    Args:
        module: its name and arguments.
        files: name in `receiver.FILES` -> the file here; the name must change with the content.
        errors: receives its standard error, and that of ssh.

    Raises:
        LostError: if the machine does not answer.
        LackingError: if it lacks what measuring needs.
    """
    text = Path(receiver.__file__).read_text(encoding="utf-8")
    script = f'cd "$HOME" && mkdir -p {FOLDER} && cd {FOLDER} && PATH="$PWD/venv/bin:$PATH" python3 -c '
    options = [word for name, value in _OPTIONS.items() for word in ("-o", f"{name}={value}")]
    # `sh`, because the user's shell there may be another. It waits for Python and says how that ended: of a program
    # that a signal has killed, ssh says 255, as of a lost connection. A session of its own: Ctrl-C is for the caller.
    program = shlex.quote(f"{script}{shlex.quote(text)}; exit $?")
    command = ["ssh", "-T", *options, address, f"exec sh -c {program}"]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise LackingError("this machine has no ssh; install OpenSSH's client") from None
    try:
        name, package = _package()
        request = {
            "needs": NEEDS,
            "files": {file: path.stat().st_size for file, path in files.items()} | {name: len(package)},
            "package": name,
            "environment": {**NO_TELEMETRY, **environment},
            "module": list(module),
        }
        _hand_over(process, request, {**files, name: package}, errors)
    except BaseException:  # including Ctrl-C: leave no ssh behind, then propagate
        process.kill()
        process.wait()
        raise
    return process


def _hand_over(
    process: subprocess.Popen[str], request: Mapping[str, Any], contents: Mapping[str, Path | bytes], errors: IO[bytes]
) -> None:
    """Send the request and the files that are missing there."""
    assert process.stdin is not None
    timer = threading.Timer(ANSWER_S + SEND_S, process.kill)
    timer.start()
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        while (line := read_line(process, ANSWER_S)) and not line.startswith("{"):
            pass  # what the user's shell prints at its start
        if not line:
            raise _ended(process, errors)
        answer = json.loads(line)
        if "lacking" in answer:
            raise LackingError(f"{answer['lacking']}; {FIX}")
        with open(process.stdin.fileno(), "wb", closefd=False) as stream:
            for content in map(contents.__getitem__, answer["missing"]):
                stream.write(content if isinstance(content, bytes) else content.read_bytes())
    except BrokenPipeError:
        raise _ended(process, errors) from None
    finally:
        timer.cancel()


def read_line(process: subprocess.Popen[str], limit_s: float) -> str:
    """The next line of a process's output; empty if it ended, or said nothing for `limit_s` and was killed for that."""
    assert process.stdout is not None
    # `readline` has no time limit; killing the process ends it with an empty line.
    timer = threading.Timer(limit_s, process.kill)
    timer.start()
    try:
        return process.stdout.readline()
    finally:
        timer.cancel()


def is_lost(process: subprocess.Popen[str]) -> bool:
    """Whether a process of `start` ended because of its connection, or because it was silent for too long."""
    return process.wait() in (255, -9)


def last_words(errors: IO[bytes]) -> str:
    """The last line that a process wrote to its standard error."""
    errors.seek(0)
    lines = errors.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


def _ended(process: subprocess.Popen[str], errors: IO[bytes]) -> Exception:
    """What it means that a process of `start` ended before it answered."""
    lost, code, said = is_lost(process), process.returncode, last_words(errors)
    if lost:
        return LostError(f"no connection ({said})" if code == 255 else "no answer in time")
    return LackingError(f"{'it has no python3' if code == 127 else f'its python3 fails ({said})'}; {FIX}")


@cache
def _package() -> tuple[str, bytes]:
    """This package as a zip that Python imports from; its name says what is in it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted((CHECKOUT / PACKAGE).rglob("*.py")):
            # without times, so that the same modules are the same bytes
            entry = zipfile.ZipInfo(path.relative_to(CHECKOUT).as_posix())
            archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return f"{hashlib.sha256(content.getvalue()).hexdigest()}.zip", content.getvalue()


def main() -> int:
    """Print this machine's facts, all but its host, as JSON."""
    import onnxruntime  # of the machine that is asked

    facts = {
        "processor": processor_name(),
        "machine": platform.machine(),
        "vnni": has_vnni(),
        "onnxruntime": onnxruntime.__version__,
    }
    sys.stdout.write(json.dumps(facts) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
