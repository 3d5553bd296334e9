"""Kills and freezes everything that a sweep needs, at random, and checks that nothing is lost and nothing doubled.

    python tests/benchmarks/chaos.py --kills 200 --seed 0 --out chaos

Rounds of small sweeps on real images run one after the other until all kills are spent. In odd rounds two sweeps in one
OUT share a Ray cluster of this machine (a head without cores and as many nodes as `--nodes`, each with a network, an
address and a disk of its own where this process may make namespaces); in even ones one sweep has a local Ray of its
own. All have a tracking server, and a collector of the store runs beside them. `chaos_kills` has the kinds of kills.
What has died is started again: the same command, another node, the same server. `--cut-s` pulls the cable of tracking
server and S3 once, in the first round, `--node-cut-s` that of a node. A command that ends without a cause, or makes no
progress for two minutes, is a fault; after each round the invariants of `chaos_checks` must hold.
"""

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos_checks import check_nothing_left
from chaos_kills import SHARES, possible, shuffled
from chaos_nodes import Cut, Network
from chaos_sweeps import Round
from chaos_world import World


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0 all invariants held, 1 one did not."""
    flags = _flags(argv)
    rng = random.Random(flags.seed)
    done: Counter[str] = Counter()
    faults: list[str] = []
    rounds = 0
    with World(flags.out.resolve(), nodes=flags.nodes, s3=flags.s3) as world:
        kinds = shuffled(flags.kills, rng, nodes=world.separate)
        cuts: list[Cut] = list(cuts_of(world, flags)) if world.separate else []
        while (kinds or not rounds) and not faults:
            rounds += 1
            local = not rounds % 2 and any(possible(kind, local=True) for kind in kinds)
            started = time.monotonic()
            sweeps = Round(world, rounds, local=local, trials=flags.trials, longest_s=flags.longest_s)
            struck = sweeps.survive(kinds, flags.kills_a_round, rng, cuts)
            done += struck
            faults = sweeps.faults()
            said = ", ".join(f"{count} {kind}" for kind, count in struck.items()) or "none"
            where = "local" if local else "cluster"
            state = "; ".join(faults) or "ok"
            print(f"round {rounds} ({where}): {said} in {time.monotonic() - started:.0f} s: {state}", flush=True)
    faults += check_nothing_left(world)
    said = ", ".join(f"{done[kind]} {kind}" for kind in SHARES)
    print(f"{done.total()} of {flags.kills} kills ({said}), {rounds} rounds, {len(faults)} faults")
    for fault in faults:
        print(f"FAULT {fault}")
    return int(bool(faults) or done.total() < flags.kills)


def cuts_of(world: World, flags: argparse.Namespace) -> Iterator[Cut]:
    """The cables that are asked to be pulled."""
    nodes = world.nodes
    assert isinstance(nodes, Network) and nodes.services is not None
    if flags.cut_s:
        yield Cut(nodes.services, "tracking server and S3", flags.cut_s)
    if flags.node_cut_s:
        yield Cut(nodes.nodes[0], "a node", flags.node_cut_s)


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
    parser.add_argument(
        "--kills-a-round", type=int, default=20, metavar="N", help="after which a round may end (default: 20)"
    )
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
            sys.stdout.flush()
            os._exit(130)
