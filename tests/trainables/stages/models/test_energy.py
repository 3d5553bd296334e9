import sys
from pathlib import Path

import pytest

from tests.trainables.stages.models.nvml import NVMLError, library
from trainables.stages.models.devices.energy import open_meter, open_rapl


def zone(folder: Path, number: str, name: str, microjoules: int, span: int = 262_143_328_850) -> Path:
    """A zone in the format of the kernel's powercap."""
    path = folder / f"intel-rapl:{number}"
    path.mkdir()
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{span}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path / "energy_uj"


def test_all_packages_count_and_nothing_else(tmp_path: Path) -> None:
    packages = [zone(tmp_path, str(number), f"package-{number}", 10**6) for number in range(2)]
    others = [zone(tmp_path, "0:0", "core", 10**6), zone(tmp_path, "2", "psys", 10**6)]
    meter = open_rapl(tmp_path)
    assert meter is not None
    before = meter.read()
    for path, joules in zip([*packages, *others], (2, 3, 50, 70), strict=True):
        path.write_text(f"{10**6 + joules * 10**6}\n")
    assert meter.since(before) == pytest.approx(5)


def test_a_counter_that_starts_anew_is_no_gain_of_energy(tmp_path: Path) -> None:
    counter = zone(tmp_path, "0", "package-0", 7_500_000, span=8_000_000)
    meter = open_rapl(tmp_path)
    assert meter is not None
    before = meter.read()
    counter.write_text("250000\n")
    assert meter.since(before) == pytest.approx(0.75)


def test_what_is_absent_or_may_not_be_read_is_no_meter(tmp_path: Path) -> None:
    assert open_rapl(tmp_path / "nowhere") is None
    zone(tmp_path, "0", "psys", 1)
    assert open_rapl(tmp_path) is None
    counter = zone(tmp_path, "1", "package-1", 1)
    assert open_rapl(tmp_path) is not None
    counter.unlink()
    counter.mkdir()  # root may read whatever the mode says
    assert open_rapl(tmp_path) is None


def test_a_gpu_tells_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    counts = iter([1_000, 1_000, 3_500])
    monkeypatch.setitem(sys.modules, "pynvml", library(energy=lambda: next(counts)))
    with open_meter(on_gpu=True) as meter:
        assert meter is not None
        assert meter.since(meter.read()) == pytest.approx(2.5)


def test_a_gpu_that_does_not_tell_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise NVMLError("not supported")

    monkeypatch.setitem(sys.modules, "pynvml", library(energy=refused))
    with open_meter(on_gpu=True) as meter:
        assert meter is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with open_meter(on_gpu=True) as meter:
        assert meter is None
