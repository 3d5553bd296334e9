"""A machine elsewhere: an sshd of the test's own on loopback, whose user has a bare Python for a home."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import onnxruntime

from trainables.stages.models.devices.elsewhere import FOLDER

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
SSH = shutil.which("ssh")
MISSING = "" if SSH and SSHD else "OpenSSH's client or server is not installed (Debian: openssh-server)"


class Machine:
    """One that runs, for the user who runs the test."""

    def __init__(self, folder: Path) -> None:
        assert SSH and SSHD
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"
        self.home = folder / "home"
        self.cache = self.home / FOLDER
        self.bin = folder / "bin"
        self._commands()
        self._keys()
        self.start()

    def _commands(self) -> None:
        """`ssh` for the test, which reads no settings but these, and what the user has over there."""
        for path in (self.bin, self.folder_of_path):
            path.mkdir(parents=True)
        (self.bin / "ssh").write_text(f'#!/bin/sh\nexec {SSH} -F "{self._folder}/config" "$@"\n')
        (self.bin / "ssh").chmod(0o755)
        for name in ("sh", "mkdir"):
            (self.folder_of_path / name).symlink_to(shutil.which(name) or name)
        (self._folder / "config").write_text(
            f"IdentityFile {self._folder}/key\nIdentitiesOnly yes\nGlobalKnownHostsFile /dev/null\n"
            f"UserKnownHostsFile {self._folder}/known_hosts\n"
        )

    @property
    def folder_of_path(self) -> Path:
        """The whole PATH over there."""
        return self._folder / "path"

    def _keys(self) -> None:
        for name in ("host", "key"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / name)]
            subprocess.run(words, check=True)
        (self._folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self._folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self._folder}/key.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            f'KbdInteractiveAuthentication no\nSetEnv "HOME={self.home}" "PATH={self.folder_of_path}"\n'
        )
        self.be_known()

    def be_known(self) -> None:
        kind, key, *_ = (self._folder / "host.pub").read_text().split()
        (self._folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def be_unknown(self) -> None:
        (self._folder / "known_hosts").write_text("")

    def install(self, *modules: str) -> None:
        """Make `python3` there one that has these packages alone, beside the standard library."""
        there = self.cache / "venv"
        venv.create(there, symlinks=True, clear=True)
        site = there / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        for module in modules:
            package = Path({"numpy": numpy, "onnxruntime": onnxruntime}[module].__file__).parent
            for path in (package, package.with_name(f"{module}.libs")):
                if path.exists():
                    (site / path.name).symlink_to(path)

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        assert SSHD
        words = [SSHD, "-D", "-e", "-f", str(self._folder / "sshd_config")]
        self._log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(words, stderr=self._log)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None and time.monotonic() < deadline, self._folder / "log"
                time.sleep(0.02)

    def stop(self) -> None:
        """End it with all its connections, as a machine does that loses power."""
        self.cut()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def cut(self) -> None:
        """End all its connections."""
        for pid in children(self._process.pid):
            subprocess.run(["kill", "-9", str(pid)], check=False, stderr=subprocess.DEVNULL)


def children(pid: int) -> list[int]:
    """The child processes of one."""
    words = ["ps", "-o", "pid=", "--ppid", str(pid)]
    return [int(child) for child in subprocess.run(words, capture_output=True, text=True).stdout.split()]


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    there = Machine(folder)
    try:
        yield there
    finally:
        there.stop()
