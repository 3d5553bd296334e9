"""The sweeps of `chaos.py`: commands that are run again until they end well, and a collector beside them."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from pathlib import Path

import psutil
from chaos_checks import check_store, check_sweep, check_workers, finished_records, left_of
from chaos_kills import KILL_TRIALS, possible, strike
from chaos_nodes import Cut
from chaos_world import World, is_raylet, is_trial, kill

from trainables.store.manifest import MANIFEST

COMMAND = Path(__file__).parents[2] / "sweeps" / "kd_prune.py"
SWEEP = """--preset quick --teacher-epochs 2 --student-epochs 2 --recovery-epochs 1 --recovery-budget epochs
    --latency-seconds 0.1 --stopper off --kd-loss kd --pruning-method structured --learning-rate 1e-3
    --reuse-probability 0"""
ROUND_LIMIT_S = 2400.0
HANG_S = 120.0
"""No command may take longer to end, or to write anything."""
STARTING_S = 30.0
"""A command is killed at any time of its start; if it always were, it would never come further."""
COLLECT_S = 10.0
"""Between two runs of the collector."""


class Command:
    """One sweep's command, which is run again until it ends well."""

    def __init__(self, name: str, out: Path, words: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self.name, self.out, self.log = name, out, log
        self.seen = dict[str, str]()
        self.faults: list[str] = []
        self._words, self._environment = words, environment | {"CHAOS": name}
        self.done = False
        self.start()

    def start(self) -> None:
        """Run the command; what ended it before no longer excuses its end."""
        self.excused, self.started = False, time.monotonic()
        self._while_s = random.uniform(0, STARTING_S)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._words, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def has_begun(self) -> bool:
        """Whether there is anything that this command could lose; one that has just started again gets a while."""
        if not (self.out / "sweeps" / self.name / "identity.json").exists() or self.process.poll() is not None:
            return False
        return time.monotonic() - self.started > self._while_s

    def look(self) -> None:
        """Start the command again if it was ended; note an end without a cause."""
        code = self.process.poll()
        if code is None or self.done or self.faults:
            return
        if code == 0:
            self.done = True
        elif self.excused:
            self.start()
        else:
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
            self.faults.append(f"{self.name} ended with {code} ({' | '.join(said)}; all of it: {self.log})")


class Round:
    """One sweep with a local Ray, or two in one OUT that share the world's cluster, and a collector beside them."""

    def __init__(self, world: World, number: int, *, local: bool, trials: int, longest_s: float) -> None:
        self.world, self.local = world, local
        self.out = world.folder / f"runs-{number}"
        self._trials, self._longest_s = trials, longest_s
        self._store = str(self.out / "store")
        words = [sys.executable, str(COMMAND), *SWEEP.split(), "--out", str(self.out), "--trials", str(trials)]
        words += ["--data-dir", str(world.folder / "data"), "--tracking-uri", world.tracking_uri, "--seed", str(number)]
        if not local:
            words += ["--address", world.address, "--cpus", str(world.count), "--storage", world.storage(number)]
            self._store = f"{world.storage(number)}/store"
        names = [f"chaos-{number}"] if local else [f"chaos-{number}-a", f"chaos-{number}-b"]
        self.commands = [
            Command(
                name,
                self.out,
                [*words, "--name", name, "--search-seed", str(seed)],
                world.folder / f"{name}.log",
                world.environment,
            )
            for seed, name in enumerate(names)
        ]
        self._frozen = dict[int, float]()
        self._stored = -1
        self._collector = Collector(self.out, self._store, world)
        self._faults: list[str] = []

    def survive(self, kinds: list[str], most: int, rng: random.Random, cuts: Sequence[Cut]) -> Counter[str]:
        """Take up to `most` kills from `kinds` until all commands have ended well; return those that happened."""
        try:
            return self._attend(kinds, most, rng, cuts)
        finally:
            self._collector.stop()
            for cut in cuts:
                cut.mend()
            self._thaw(everything=True)
            for command in self.running():
                kill([command.process.pid])
                command.process.wait()

    def _attend(self, kinds: list[str], most: int, rng: random.Random, cuts: Sequence[Cut]) -> Counter[str]:
        struck: Counter[str] = Counter()
        until = time.monotonic() + ROUND_LIMIT_S
        next_kill = time.monotonic() + rng.uniform(1, self._longest_s)
        progress = Progress([self.out, *([] if "://" in self._store else [Path(self._store)])])
        while self.running() or not all(command.done for command in self.commands):
            time.sleep(0.2)
            self._tend(cuts)
            if any(command.faults for command in self.commands):
                break
            if progress.stands_still_for() > HANG_S and not self._frozen:
                self._faults.append(f"nothing was written for {HANG_S:.0f} s after {struck}")
                break
            if time.monotonic() > until:
                self._faults.append(f"not at its end after {ROUND_LIMIT_S:.0f} s")
                break
            if struck.total() < most and time.monotonic() > next_kill:
                if (kind := self._strike(kinds, rng)) is not None:
                    struck[kind] += 1
                    progress.note()
                next_kill = time.monotonic() + rng.uniform(1, self._longest_s)
        return struck

    def _strike(self, kinds: list[str], rng: random.Random) -> str | None:
        """Strike by the first kind that finds somebody, and take it from `kinds`; None if none does.

        A trial that dies three times without a stored epoch between is given up, so what kills one waits for progress.
        """
        stored = newest(Path(self._store), ("state.pt", MANIFEST)) if "://" not in self._store else time.time_ns()
        for kind in dict.fromkeys(kinds):
            if not possible(kind, local=self.local) or (kind in KILL_TRIALS and stored == self._stored):
                continue
            if strike(kind, self, rng):
                kinds.remove(kind)
                self._stored = stored if kind in KILL_TRIALS else self._stored
                return kind
        return None

    def _tend(self, cuts: Sequence[Cut]) -> None:
        """Thaw, mend, replace and start again whatever is due."""
        self._thaw()
        if not self.local:
            self.world.replace_dead_nodes()
        for command in self.commands:
            command.seen |= finished_records(self.out, command.name)
            command.look()
        if any(command.seen for command in self.commands):
            for cut in cuts:
                cut.follow()
        self._collector.look()

    def wait_for_end(self, command: Command, cause: str) -> None:
        """Wait for the end of a command, which has a cause; one that lives on is a fault."""
        command.excused = True
        until = time.monotonic() + HANG_S
        while command.process.poll() is None:
            if time.monotonic() > until:
                command.faults.append(f"{command.name} lived on for {HANG_S:.0f} s after {cause}")
                return
            time.sleep(0.2)
            self._thaw()

    def find(self, is_one: Callable[[int], bool]) -> list[int]:
        """The processes of a kind that this round may kill."""
        if not self.local:
            return [pid for pid in self.world.ray_pids() if is_one(pid)]
        return [
            child.pid for command in self.running() for child in _children(command.process.pid) if is_one(child.pid)
        ]

    def has_trials(self) -> bool:
        """Whether a trial runs now."""
        return bool(self.find(is_trial))

    def running(self) -> list[Command]:
        """The commands that run now."""
        return [command for command in self.commands if command.process.poll() is None]

    def freeze(self, pid: int, seconds: float) -> None:
        """Stop a process for a while."""
        self._frozen[pid] = time.monotonic() + seconds
        _signal(pid, signal.SIGSTOP)

    def _thaw(self, *, everything: bool = False) -> None:
        for pid in [pid for pid, until in self._frozen.items() if everything or time.monotonic() > until]:
            del self._frozen[pid]
            _signal(pid, signal.SIGCONT)
            if not self.local and is_raylet(pid):  # Ray has given its node up; a new one takes its place
                kill([pid])

    def faults(self) -> list[str]:
        """Everything that is wrong with the round, one line each."""
        faults = [*self._faults, *self._collector.faults]
        for command in self.commands:
            faults += command.faults or check_sweep(
                self.world, self.out, command.name, trials=self._trials, seen=command.seen
            )
            faults += left_of(command.name)
        faults += [] if self.local else check_workers(self.world)
        return faults + check_store(self._store)


class Collector:
    """The collector of the store, run again and again; it may refuse, and may not fail."""

    def __init__(self, out: Path, store: str, world: World) -> None:
        self._words = [sys.executable, "-m", "trainables.store", "gc", "--out", str(out), "--store", store, "--yes"]
        self._log, self._environment = world.folder / "collector.log", world.environment
        self._process: subprocess.Popen[bytes] | None = None
        self._next = time.monotonic()
        self.faults: list[str] = []

    def look(self) -> None:
        """Start it again if it has ended."""
        if self._process is not None and (code := self._process.poll()) is not None:
            if code not in (0, 2):
                self.faults.append(f"the collector ended with {code}; see {self._log}")
            self._process, self._next = None, time.monotonic() + COLLECT_S
        if self._process is None and time.monotonic() > self._next:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    self._words, stdout=log, stderr=log, env=self._environment, cwd=COMMAND.parents[1]
                )

    def stop(self) -> None:
        """Wait for its end."""
        if self._process is not None:
            self._process.wait()
            self._next = float("inf")
            self.look()


class Progress:
    """When anything below some folders was last written."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders, self._looked = folders, 0.0
        self._last, self._newest = time.monotonic(), 0

    def note(self) -> None:
        """What was done to the sweeps counts as progress."""
        self._last = time.monotonic()

    def stands_still_for(self) -> float:
        """Seconds since the last one; the folders are read every two seconds."""
        if time.monotonic() - self._looked > 2:
            self._looked, last = time.monotonic(), max(map(newest, self._folders), default=0)
            if last > self._newest:
                self._last, self._newest = time.monotonic(), last
        return time.monotonic() - self._last


def newest(folder: Path, names: Container[str] | None = None) -> int:
    """When the last file below a folder was written, in nanoseconds; of those `names` alone, if any are given."""
    times = [0]
    for place, _, files in os.walk(folder):
        for name in files:
            if names is None or name in names:
                try:
                    times.append((Path(place) / name).stat().st_mtime_ns)
                except FileNotFoundError:
                    continue
    return max(times)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
