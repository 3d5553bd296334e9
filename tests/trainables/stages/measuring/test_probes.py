from pathlib import Path

import numpy as np
import pytest

from trainables.stages.measuring.probes import Block, Clocks, Probes, Reading, slow_spells, sort_blocks

FAST, SLOW = 0.10, 0.13


def block(p50_ms: float = FAST, *, clock: float = 0.05, memory: float = 0.3, waited: float = 0.0) -> Block:
    """100 runs of a file, with what the probes said before and after; the process waited for a share of them."""
    before = Reading(clock_ms=clock, memory_ms=memory, waited_s=7.0)
    after = Reading(clock_ms=clock, memory_ms=memory, waited_s=7.0 + waited * p50_ms / 10)
    return Block(times_ms=[p50_ms] * 100, before=before, after=after)


def medians(blocks: list[Block]) -> list[float]:
    return [kept.p50_ms for kept in sort_blocks(blocks).kept]


def test_a_slow_block_alone_proves_nothing() -> None:
    """Dropping it would report too low a latency: perhaps that is what the file is like."""
    found = sort_blocks([block()] * 10 + [block(SLOW)] * 2)
    assert len(found.kept) == 12
    assert found.clock_share == found.memory_share == found.waited_blocks_share == 0


@pytest.mark.parametrize(("probe", "value"), [("clock", 0.056), ("memory", 0.6)])
def test_a_slow_block_beside_a_slow_probe_is_dropped(probe: str, value: float) -> None:
    blocks = [block()] * 10 + [block(SLOW, **{probe: value})] * 2
    found = sort_blocks(blocks)
    assert medians(blocks) == [FAST] * 10
    assert (found.clock_share, found.memory_share) == ((2 / 12, 0) if probe == "clock" else (0, 2 / 12))
    assert (found.clock_probe_ms, found.memory_probe_ms) == (0.05, 0.3)


@pytest.mark.parametrize(("probe", "value"), [("clock", 0.1), ("memory", 3.0)])
def test_a_slow_probe_beside_a_block_that_is_not_slow_is_no_matter(probe: str, value: float) -> None:
    """A file in the L2 cache does not care who else uses the memory."""
    assert len(medians([block()] * 6 + [block(**{probe: value})] * 6)) == 12


@pytest.mark.parametrize(("probe", "value"), [("clock", 0.051), ("memory", 0.4)])
def test_a_probe_that_varies_as_usual_drops_nothing(probe: str, value: float) -> None:
    assert len(medians([block()] * 10 + [block(SLOW, **{probe: value})] * 2)) == 12


def test_a_block_in_which_others_ran_is_dropped_however_fast_it_was() -> None:
    """Its median may stand; its slowest runs are not the file's."""
    found = sort_blocks([block()] * 10 + [block(waited=0.03)] * 2)
    assert len(found.kept) == 10 and found.waited_blocks_share == 2 / 12
    assert found.waited_share == 0
    assert len(sort_blocks([block()] * 10 + [block(waited=0.03)] * 2, threads=2).kept) == 12  # of twice the time


def test_if_most_blocks_were_disturbed_all_are_kept_and_the_shares_tell() -> None:
    found = sort_blocks([block()] * 4 + [block(waited=0.5)] * 8)
    assert len(found.kept) == 12
    assert found.waited_blocks_share == 8 / 12
    assert found.waited_share == pytest.approx(0.5 * 8 / 12)


def test_without_probes_all_blocks_count_and_nothing_is_known() -> None:
    found = sort_blocks([Block(times_ms=[1.0]), Block(times_ms=[2.0])])
    assert len(found.kept) == 2 and found.conditions() == {}


def test_a_kernel_that_does_not_count_waiting_leaves_the_probes() -> None:
    blocks = [block()] * 10 + [block(SLOW, clock=0.07)] * 2
    silent = [
        Block(
            times_ms=one.times_ms,
            before=Reading(clock_ms=one.before.clock_ms, memory_ms=0.3, waited_s=None),
            after=Reading(clock_ms=one.after.clock_ms, memory_ms=0.3, waited_s=None),
        )
        for one in blocks
        if one.before and one.after
    ]
    found = sort_blocks(silent)
    assert len(found.kept) == 10
    assert "waited_share" not in found.conditions()


def test_slow_spells_are_a_second_mode_and_not_scatter() -> None:
    rng = np.random.default_rng(0)
    scatter = [Block(times_ms=[time]) for time in rng.normal(1, 0.02, size=40)]
    assert slow_spells(scatter)[0] == 0
    modes = [Block(times_ms=[time]) for time in [*rng.normal(1, 0.01, size=25), *rng.normal(1.4, 0.01, size=15)]]
    share, times = slow_spells(modes)
    assert share == 15 / 40
    assert times == pytest.approx(1.4, rel=0.02)


def test_the_probes_read_this_machine() -> None:
    probes = Probes()
    readings = [probes.read() for _ in range(70)]  # all of the memory, and round again
    assert all(reading.clock_ms > 0 and reading.memory_ms > 0 for reading in readings)
    assert np.median([reading.clock_ms + reading.memory_ms for reading in readings]) < 20


def test_what_is_usual_comes_from_this_machine_and_not_soon_from_a_slow_spell(
    tmp_path: Path,
) -> None:
    file = tmp_path / "clocks.json"
    for reading in [0.05] * 30:
        Clocks(file, "here").add(reading)
    assert Clocks(file, "here").usual_ms() == 0.05
    assert Clocks(file, "there").usual_ms() is None, "OUT was moved"
    for reading in [0.065] * 60:
        Clocks(file, "here").add(reading)
    assert Clocks(file, "here").usual_ms() == 0.05
    for _ in range(Clocks.KEPT):
        Clocks(file, "here").add(0.065)
    assert (Clocks(file, "here").usual_ms(), len(Clocks(file, "here").readings)) == (0.065, Clocks.KEPT)


@pytest.mark.parametrize(
    "text", ["", "[0.1", "[0.1]", "{}", '{"machine": "here"}', '{"machine": "here", "clock_ms": 1}']
)
def test_a_damaged_file_of_clocks_knows_nothing_and_is_written_anew(tmp_path: Path, text: str) -> None:
    file = tmp_path / "clocks.json"
    file.write_text(text)
    known = Clocks(file, "here")
    assert known.usual_ms() is None
    for _ in range(Clocks.FEWEST):
        known.add(0.05)
    assert Clocks(file, "here").usual_ms() == 0.05
