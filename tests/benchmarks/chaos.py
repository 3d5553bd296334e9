"""Kills drivers, trials, nodes and the tracking server at random, and checks that nothing is lost and nothing doubled.

    python tests/benchmarks/chaos.py --kills 50 --seed 0 --out chaos

Small sweeps on real images run one after the other over a Ray cluster of this machine (a head without cores and as many
nodes as `--nodes`, each with a network, an address and a disk of its own where this process may make namespaces), with
a tracking server of their own, until all kills are spent. What is killed is started again: the same command, another
node, the same server. `--cut-s` pulls the cable of tracking server and S3 once, in the first sweep, `--node-cut-s` that
of a node. After each sweep the invariants of `chaos_checks` must hold.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chaos_checks import check_nothing_left, check_sweep, finished_records
from chaos_nodes import Network, Node
from chaos_world import World, kill

COMMAND = Path(__file__).parents[2] / "sweeps" / "kd_prune.py"
SWEEP = """--preset quick --teacher-epochs 2 --student-epochs 2 --recovery-epochs 1 --latency-seconds 0.1 --stopper off
    --kd-loss kd --pruning-method structured --learning-rate 1e-3 --reuse-probability 0"""
KINDS = ("trial", "raylet", "driver", "server")
SWEEP_LIMIT_S = 900.0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 all invariants held, 1 one did not."""
    flags = _flags(argv)
    rng = random.Random(flags.seed)
    done: Counter[str] = Counter()
    faults: list[str] = []
    sweeps = trials = 0
    with World(flags.out.resolve(), nodes=flags.nodes, s3=flags.s3) as world:
        known = KINDS if world.separate else [kind for kind in KINDS if kind != "raylet"]
        kinds = [known[i % len(known)] for i in range(flags.kills)]
        rng.shuffle(kinds)
        cuts = list(cuts_of(world, flags)) if world.separate else []
        while (kinds or not sweeps) and not faults:
            sweeps += 1
            started = time.monotonic()
            sweep = Sweep(world, flags, number=sweeps)
            killed = sweep.survive(kinds, rng, cuts)
            done += killed
            faults = sweep.faults() or check_sweep(world, sweep.out, sweep.name, trials=flags.trials, seen=sweep.seen)
            trials += flags.trials
            said = ", ".join(f"{count} {kind}" for kind, count in killed.items()) or "none"
            state = "; ".join(faults) or "ok"
            print(f"sweep {sweeps}: killed {said} in {time.monotonic() - started:.0f} s: {state}", flush=True)
    faults += check_nothing_left(world)
    said = ", ".join(f"{done[kind]} {kind}" for kind in KINDS)
    print(f"{done.total()} of {flags.kills} kills ({said}), {sweeps} sweeps, {trials} trials, {len(faults)} faults")
    for fault in faults:
        print(f"FAULT {fault}")
    return int(bool(faults) or done.total() < flags.kills)


class Sweep:
    """One sweep whose command is run until it ends well, whatever is killed meanwhile."""

    def __init__(self, world: World, flags: argparse.Namespace, *, number: int) -> None:
        self.name, self.seen = f"chaos-{number}", dict[str, str]()
        self._world, self._longest_s = world, flags.longest_s
        self.out = world.folder / f"runs-{number}"
        self._log = world.folder / f"driver-{number}.log"
        self._code: int | None = None
        where = ["--out", str(self.out), "--data-dir", str(world.folder / "data"), "--name", self.name]
        joins = ["--address", world.address, "--cpus", str(flags.nodes), "--tracking-uri", world.tracking_uri]
        joins += ["--storage", world.storage(number)]
        more = ["--trials", str(flags.trials), "--search-seed", str(number), "--seed", str(number)]
        self._words = [sys.executable, str(COMMAND), *SWEEP.split(), *where, *joins, *more]

    def survive(self, kinds: list[str], rng: random.Random, cuts: Sequence["Cut"]) -> Counter[str]:
        """Take kills from `kinds` until the sweep has ended; returns those that happened."""
        self._driver = self._start()
        try:
            return self._attend(kinds, rng, cuts)
        finally:
            for cut in cuts:
                cut.mend()
            if self._driver.poll() is None:
                kill([self._driver.pid])

    def _attend(self, kinds: list[str], rng: random.Random, cuts: Sequence["Cut"]) -> Counter[str]:
        killed: Counter[str] = Counter()
        until = time.monotonic() + SWEEP_LIMIT_S
        next_kill = time.monotonic() + rng.uniform(1, self._longest_s)
        while time.monotonic() < until:
            time.sleep(0.1)
            if cuts and len(finished_records(self.out, self.name)) >= 1:
                for cut in cuts:
                    cut.follow()
            if self._driver.poll() is not None:
                self._code = self._driver.returncode
                break
            if kinds and kinds[0] == "server":
                for cut in cuts:
                    cut.mend()  # a server that starts again is asked whether it is up
            if kinds and time.monotonic() > next_kill and self._kill(kinds[0], self._driver):
                kind = kinds.pop(0)
                killed[kind] += 1
                self.seen |= finished_records(self.out, self.name)
                self._driver = self._after(kind, self._driver, rng)
                next_kill = time.monotonic() + rng.uniform(1, self._longest_s)
        return killed

    def faults(self) -> list[str]:
        """What is wrong with the command's own end."""
        if self._code == 0:
            return []
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        return [f"the command ended with {self._code} ({' | '.join(said)}; all of it: {self._log})"]

    def _start(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(self._words, stdout=log, stderr=log, env=self._world.environment)

    def _kill(self, kind: str, driver: "subprocess.Popen[bytes]") -> bool:
        """Kill one of a kind; False if there is none now."""
        if kind == "trial":
            return self._world.kill_trial()
        if kind == "raylet":
            return self._world.kill_node()
        if kind == "server":
            return self._world.kill_server()
        if not (self.out / "sweeps" / self.name / "identity.json").exists():
            return False  # a driver that has not begun has nothing to lose
        kill([driver.pid])
        return True

    def _after(self, kind: str, driver: "subprocess.Popen[bytes]", rng: random.Random) -> "subprocess.Popen[bytes]":
        if kind == "raylet":
            self._world.nodes.add_node()
        elif kind == "server":
            time.sleep(rng.uniform(0, 3))
            self._world.start_server()
        elif kind == "driver":
            driver.wait()
            return self._start()
        return driver


def cuts_of(world: World, flags: argparse.Namespace) -> Iterator["Cut"]:
    """The cables that are asked to be pulled."""
    nodes = world.nodes
    assert isinstance(nodes, Network) and nodes.services is not None
    if flags.cut_s:
        yield Cut(nodes.services, "tracking server and S3", flags.cut_s)
    if flags.node_cut_s:
        yield Cut(nodes.nodes[0], "a node", flags.node_cut_s)


class Cut:
    """A cable, pulled once for a while."""

    def __init__(self, link: Node, what: str, seconds: float) -> None:
        self._link, self._what, self._seconds = link, what, seconds
        self._since: float | None = None
        self._over = False

    def follow(self) -> None:
        """Pull it at the first call, plug it in at the first one after its time."""
        if self._over:
            return
        if self._since is None:
            self._since = time.monotonic()
            self._link.link("down")
            print(f"the link to {self._what} is down", flush=True)
        elif time.monotonic() - self._since > self._seconds:
            self.mend()

    def mend(self) -> None:
        """Plug it in, if it is out."""
        if self._since is None or self._over:
            return
        self._link.link("up")
        self._over = True
        print(f"the link to {self._what} is up again after {time.monotonic() - self._since:.0f} s", flush=True)


@contextmanager
def interruptible() -> Iterator[None]:
    """Both signals end the run in order, also where a shell has started it in the background."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    yield


def _flags(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="chaos.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, metavar="N", help="(default: 50)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of kinds and times (default: 0)")
    parser.add_argument("--trials", type=int, default=6, metavar="N", help="of a sweep (default: 6)")
    parser.add_argument("--nodes", type=int, default=2, metavar="N", help="nodes of one core (default: 2)")
    parser.add_argument("--longest-s", type=float, default=12.0, metavar="S", help="between kills (default: 12)")
    parser.add_argument("--s3", action="store_true", help="storage in a local S3 instead of a shared folder")
    parser.add_argument(
        "--cut-s", type=float, default=0.0, metavar="S", help="pull the servers' cable once for S seconds"
    )
    parser.add_argument(
        "--node-cut-s", type=float, default=0.0, metavar="S", help="pull the cable of a node once for S seconds"
    )
    parser.add_argument("--out", type=Path, default=Path("chaos"), help="a fresh folder (default: chaos)")
    flags = parser.parse_args(argv)
    if flags.out.exists() and any(flags.out.iterdir()):
        parser.error(f"--out {flags.out}: holds something already; name a fresh folder.")
    return flags


if __name__ == "__main__":
    with interruptible():
        try:
            raise SystemExit(main())
        except KeyboardInterrupt:
            os._exit(130)
