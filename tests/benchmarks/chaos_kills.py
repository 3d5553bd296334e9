"""The kinds of kills of `chaos.py`: whom each strikes, and what its sweeps may do then."""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from chaos_world import is_agent, is_gcs, is_raylet, is_trial, kill

if TYPE_CHECKING:
    from chaos_sweeps import Round

SHARES = {
    "trial": 5,
    "driver": 4,
    "node": 3,
    "server": 3,
    "agent": 2,
    "raylet": 2,
    "group": 2,
    "frozen": 2,
    "gcs": 1,
}
"""Kind of kill -> its share. A cluster whose GCS has died is a new one: those cost a minute each."""
KILL_TRIALS = ("trial", "node", "agent", "raylet")
FROZEN_S = 30.0


def shuffled(count: int, rng: random.Random, *, nodes: bool) -> list[str]:
    """Kinds of `count` kills by their shares; without `nodes` of their own only what a local Ray has."""
    known = [kind for kind, share in SHARES.items() for _ in range(share) if nodes or possible(kind, local=True)]
    known.sort(key=lambda kind: -SHARES[kind])
    by_turns = [kind for turn in range(max(SHARES.values())) for kind in SHARES if turn < known.count(kind)]
    kinds = [by_turns[i % len(by_turns)] for i in range(count)]
    rng.shuffle(kinds)
    return kinds


def possible(kind: str, *, local: bool) -> bool:
    """Whether a round has what this kind kills."""
    return not (local and kind == "node")


def strike(kind: str, sweeps: "Round", rng: random.Random) -> bool:
    """Kill one of a kind; False if there is none now."""
    return STRIKES[kind](sweeps, rng)


def _trial(sweeps: "Round", rng: random.Random) -> bool:
    trials = sweeps.find(is_trial)
    kill(trials[:1])
    return bool(trials)


def _driver(sweeps: "Round", rng: random.Random) -> bool:
    """kill -9 of a command that has begun: one that has not has nothing to lose."""
    begun = [command for command in sweeps.running() if command.has_begun()]
    if begun:
        command = rng.choice(begun)
        kill([command.process.pid])
        sweeps.wait_for_end(command, "kill -9")
    return bool(begun)


def _group(sweeps: "Round", rng: random.Random) -> bool:
    """SIGTERM to a command's whole process group, as `timeout`, systemd and SLURM send it."""
    begun = [command for command in sweeps.running() if command.has_begun()]
    if begun:
        command = rng.choice(begun)
        os.killpg(command.process.pid, signal.SIGTERM)
        sweeps.wait_for_end(command, "SIGTERM to its group")
    return bool(begun)


def _node(sweeps: "Round", rng: random.Random) -> bool:
    return sweeps.world.kill_node()


def _server(sweeps: "Round", rng: random.Random) -> bool:
    """kill -9 of the tracking server, back after up to three seconds; a command that starts then may refuse."""
    if not sweeps.world.kill_server():
        return False
    time.sleep(rng.uniform(0, 3))
    sweeps.world.start_server()
    for command in sweeps.running():
        command.excused |= not command.has_begun() or time.monotonic() - command.started < 30
    return True


def _agent(sweeps: "Round", rng: random.Random) -> bool:
    """kill -9 of an agent of Ray's, whose node Ray gives up then."""
    return _ray_process(is_agent, sweeps, rng, ends="")


def _raylet(sweeps: "Round", rng: random.Random) -> bool:
    return _ray_process(is_raylet, sweeps, rng, ends="the death of its raylet")


def _ray_process(is_one: Callable[[int], bool], sweeps: "Round", rng: random.Random, *, ends: str) -> bool:
    found = sweeps.find(is_one) if sweeps.has_trials() else []
    if found:
        kill([rng.choice(found)])
        for command in sweeps.running() if sweeps.local else []:
            command.excused = True
            if ends:
                sweeps.wait_for_end(command, ends)
    return bool(found)


def _gcs(sweeps: "Round", rng: random.Random) -> bool:
    """kill -9 of the GCS: no cluster is left, every command has to end, and goes on in a new one."""
    found = sweeps.find(is_gcs) if sweeps.has_trials() else []
    if found:
        kill(found)
        for command in sweeps.running():
            sweeps.wait_for_end(command, "the death of its GCS")
        if not sweeps.local:
            sweeps.world.nodes.start_again()
    return bool(found)


def _frozen(sweeps: "Round", rng: random.Random) -> bool:
    """SIGSTOP for 30 s of a trial, a raylet or a driver."""
    drivers = [command.process.pid for command in sweeps.running() if command.has_begun()]
    found = [*sweeps.find(is_trial), *sweeps.find(is_raylet), *drivers]
    if found and drivers:
        sweeps.freeze(rng.choice(found), FROZEN_S)
    return bool(found and drivers)


STRIKES: Mapping[str, Callable[["Round", random.Random], bool]] = {
    "trial": _trial,
    "driver": _driver,
    "node": _node,
    "server": _server,
    "agent": _agent,
    "raylet": _raylet,
    "group": _group,
    "frozen": _frozen,
    "gcs": _gcs,
}
