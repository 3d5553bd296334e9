import os
import subprocess
import sys
import time

import pytest

from tests.trainables.stages.measuring.busy_cpu import bound_to, busy, linux
from trainables.records.latency import ConditionsRecord
from trainables.stages.measuring.machine import (
    BEHIND_LIMIT,
    ELSEWHERE_LIMIT,
    OTHERS_LIMIT,
    PROBED_LIMIT,
    WAITED_LIMIT,
    Counters,
    bind,
    conditions,
    disturbance,
    disturbed_by,
)
from trainables.stages.models.devices.processor import TICK_S

QUIET = {"cores": (1,), "seconds": 1.0, "nice": 0, "load_1m": 0.1}


@pytest.mark.parametrize(
    ("share", "limit", "words"),
    [
        ("waited_share", WAITED_LIMIT, "CPU shared: others ran in its place for 6 % of the time; make 7"),
        ("steal_share", 0.02, "CPU stolen: the hypervisor ran other machines for 6 % of the time"),
        ("others_share", OTHERS_LIMIT, "CPU shared: others used 15 % of its CPUs' time besides; make 7"),
        ("elsewhere_share", ELSEWHERE_LIMIT, "machine busy: 75 % of the other CPUs' time was used; make 7"),
        ("memory_stall_share", 0.01, "memory short: processes waited for it 3 % of the time"),
        ("gpu_others_share", 0.02, "GPU shared: others used it 6 % of the time"),
        ("clock_share", PROBED_LIMIT, "clock unsteady: 75 % of its blocks were slow, and with them multi"),
        ("clock_behind", BEHIND_LIMIT, "clock slow: multiplications that need no memory took 30 % longer than usual"),
        ("memory_share", PROBED_LIMIT, "memory busy: 75 % of its blocks were slow, and with them copying memory"),
    ],
)
def test_a_share_over_its_limit_is_the_reason_and_one_at_it_is_not(share: str, limit: float, words: str) -> None:
    assert disturbed_by(ConditionsRecord(**QUIET, **{share: limit})) == ""
    over = ConditionsRecord(**QUIET, **{share: 3 * limit}, busiest="make 7 used 90 % of a CPU")
    assert disturbed_by(over).startswith(words)
    assert disturbance(over) == pytest.approx(3)


def test_only_the_worst_is_named() -> None:
    seen = ConditionsRecord(**QUIET, waited_share=2 * WAITED_LIMIT, steal_share=0.2, elsewhere_share=0.3)
    assert disturbed_by(seen) == "CPU stolen: the hypervisor ran other machines for 20 % of the time"


def test_a_throttled_gpu_is_named() -> None:
    throttled = ConditionsRecord(**QUIET, gpu_throttled="SwThermalSlowdown", waited_share=1.0)
    assert disturbed_by(throttled) == "GPU throttled: SwThermalSlowdown"


def test_what_is_not_known_disturbs_nothing() -> None:
    assert disturbed_by(ConditionsRecord(**QUIET)) == ""
    assert disturbance(ConditionsRecord(**QUIET)) == 0


def test_shares_are_differences_over_time() -> None:
    before = Counters(at=10.0, busy={0: 5.0, 1: 5.0}, stolen={0: 0.0, 1: 1.0}, own_s=1.0, waited_s=0.5)
    # CPU 1 was busy for all of the 2 s: 1.8 s with us, 0.1 s with others while we waited, 0.1 s with others besides
    after = Counters(at=12.0, busy={0: 5.5, 1: 7.0}, stolen={0: 0.0, 1: 1.2}, own_s=2.8, waited_s=0.6)
    seen = conditions(before, after, (1,))
    assert (seen.cores, seen.seconds) == ((1,), 2.0)
    assert seen.others_share == pytest.approx(0.05 - TICK_S / 2)
    assert seen.elsewhere_share == pytest.approx(0.25)
    assert seen.steal_share == pytest.approx(0.1 - TICK_S / 2)
    assert seen.waited_share == pytest.approx(0.05)
    assert seen.memory_stall_share is None


def test_the_next_tick_of_a_counter_is_no_disturbance() -> None:
    before = Counters(at=10.0, busy={0: 5.0, 1: 5.0}, stolen={0: 0.0, 1: 1.0}, own_s=1.0, waited_s=0.0)
    after = Counters(at=10.1, busy={0: 5.0, 1: 5.1 + TICK_S}, stolen={0: 0.0, 1: 1.0 + TICK_S}, own_s=1.1, waited_s=0.0)
    assert disturbed_by(conditions(before, after, (1,))) == ""


@linux
def test_a_busy_process_on_the_same_cpu_is_seen_and_named() -> None:
    core = max(os.sched_getaffinity(0))
    with busy(core) as pid, bound_to(core):
        before = Counters.now()
        end = time.perf_counter() + 0.5
        while time.perf_counter() < end:
            pass
        after = Counters.now()
    seen = conditions(before, after, (core,))
    assert seen.waited_share is not None
    assert seen.waited_share > 5 * WAITED_LIMIT
    assert "others ran in its place" in disturbed_by(seen)
    assert after.processes[pid][2] - before.processes[pid][2] > 0.05
    assert f"CPU {core} at last" in seen.busiest


@linux
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs: one to measure on, one to disturb")
def test_binding_binds_every_thread_and_avoids_a_busy_cpu() -> None:
    code = (
        "import threading, time, os; threading.Thread(target=time.sleep, args=(9,), daemon=True).start();"
        "from trainables.stages.measuring.machine import bind; cores = bind(1, sample_s=0.5);"
        "print(*cores, [os.sched_getaffinity(int(t)) == set(cores) for t in os.listdir('/proc/self/task')])"
    )
    core = max(os.sched_getaffinity(0))
    with busy(core):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    chosen, _, bound = run.stdout.strip().partition(" ")
    assert bound == "[True, True]"
    assert int(chosen) in os.sched_getaffinity(0)
    if os.getloadavg()[0] < 1.5:
        assert int(chosen) != core


def test_more_threads_than_cpus_are_bound_to_all() -> None:
    before = os.sched_getaffinity(0)
    try:
        assert set(bind(1000, sample_s=0)) == before
    finally:
        os.sched_setaffinity(0, before)
