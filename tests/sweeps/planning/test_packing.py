import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweeps.display.console import Screen
from sweeps.planning.packing import ProbeError, Together, choose, prices, resolve_shares, search, search_cores, together
from sweeps.search.config import SweepConfig
from sweeps.search.presets import quick
from trainables.stages.data import prepared

GB = 10**9


def at(
    trials: int, images_per_s: float, peak_gb: float = 2.0, device_gb: float = 140.0, others_gb: float = 0.0
) -> Together:
    return Together(
        trials=trials,
        images_per_s=images_per_s,
        peak_bytes=int(peak_gb * GB),
        device_bytes=int(device_gb * GB),
        others_bytes=int(others_gb * GB),
    )


@pytest.mark.parametrize(
    ("measured", "trials"),
    [
        ([at(1, 9000)], 1),
        ([at(1, 9000), at(2, 9100)], 1),  # a saturated GPU: one trial ends sooner
        ([at(1, 3000), at(2, 5900), at(4, 9800), at(8, 9900)], 4),  # 1 % more is not worth twice the memory
        ([at(1, 3000), at(2, 5900), at(3, 8100), at(4, 7000)], 3),  # contention
        ([at(1, 3000, 40), at(2, 5900, 40), at(4, 9800, 40)], 2),  # 4 x 44 GB are more than 140
        ([at(1, 3000, 139), at(2, 5900, 139)], 1),  # one that hardly fits still runs
        ([at(1, 3000, 10, others_gb=70), at(6, 9000, 10), at(8, 9900, 10)], 6),  # 6 x 11 GB fit beside 70, 8 do not
    ],
    ids=["one", "saturated", "plateau", "contention", "memory", "full", "others"],
)
def test_the_fewest_trials_within_3_percent_of_the_best_total_that_fit(measured: list[Together], trials: int) -> None:
    assert choose(measured) == trials


def curve(best_at: int, *, peak_gb: float = 1.0, fails_from: int = 99):
    """A device on which trials add up until `best_at`, and then share that."""
    tried = []

    def measure(trials: int) -> Together | None:
        tried.append(trials)
        return None if trials >= fails_from else at(trials, 1000.0 * min(trials, best_at), peak_gb)

    return measure, tried


@pytest.mark.parametrize("best_at", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16])
def test_what_is_found_is_within_10_percent_of_the_best(best_at: int) -> None:
    measure, _ = curve(best_at)
    found = search(measure)
    chosen = next(one for one in found if one.trials == choose(found))
    assert chosen.images_per_s >= 0.9 * 1000 * best_at
    assert [one.trials for one in found] == sorted({one.trials for one in found})


def test_it_ends_when_twice_the_trials_do_not_pay() -> None:
    measure, tried = curve(2)
    search(measure)
    assert tried == [1, 2, 4, 3]


def test_it_tries_nothing_that_does_not_fit() -> None:
    measure, tried = curve(16, peak_gb=20.0)
    assert choose(search(measure)) == 6
    assert tried == [1, 2, 4, 6]  # 8 x 22 GB are more than 140, 6 x 22 GB are not


def test_running_out_of_memory_ends_the_search_not_the_sweep() -> None:
    measure, tried = curve(16, fails_from=4)
    assert choose(search(measure)) == 3
    assert tried == [1, 2, 4, 3]


def test_one_trial_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ProbeError, match=r"one trial alone does not fit.*batch_size"):
        search(lambda trials: None)


@pytest.fixture
def small(tmp_path: Path) -> SweepConfig:
    base = quick().search.base.replace(batch_size=8, train_limit=100)
    config = quick().replace(base=base, data_dir=tmp_path / "data", out=tmp_path / "runs", cpus=2)
    prepared.prepare(base.data, config.places.data_dir)
    return config


@pytest.mark.slow
def test_trials_are_really_run_together_and_measured(small: SweepConfig) -> None:
    found = together(small, 2, seconds=0.5)
    assert found is not None
    assert found.trials == 2
    assert 50 < found.images_per_s < 1e6
    assert 100e6 < found.peak_bytes < found.device_bytes


def one_student(config: SweepConfig) -> SweepConfig:
    return config.replace(space={name: v for name, v in config.search.space.items() if name != "student_model"})


@pytest.mark.slow
def test_the_memory_of_a_trial_is_that_of_the_one_that_asks_the_teacher(small: SweepConfig) -> None:
    base = small.search.base.replace(teacher_model="alexnet", image_size=64)
    prepared.prepare(base.data, small.places.data_dir)
    taught, alone = (
        together(one_student(small.replace(base=base.replace(kd_loss=loss))), 1, seconds=0.1) for loss in ("kd", "none")
    )
    itself = together(
        small.replace(base=base), 1, seconds=0.1
    )  # where the teacher is a student, too, it is the largest
    assert taught is not None and alone is not None and itself is not None
    assert taught.peak_bytes > alone.peak_bytes + 120e6  # AlexNet of that size has 57 million weights
    assert itself.peak_bytes > taught.peak_bytes + 240e6  # gradients and AdamW's averages of as many


def test_a_probes_memory_is_not_that_of_who_started_it() -> None:
    """The kernel's ru_maxrss of a new process begins with its parent's; in a large parent all trials were as large."""
    ballast = np.ones(2 << 30, dtype=np.uint8)
    script = "import torch; from trainables.stages.models.devices.accelerator import peak_bytes"
    script += "; print(peak_bytes(torch.device('cpu'), kept=True))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(said) < ballast.nbytes / 2


def test_a_probe_that_fails_says_why(small: SweepConfig) -> None:
    broken = one_student(small.replace(base=small.search.base.replace(student_model="no_such_model")))
    with pytest.raises(ProbeError, match=r"the probe failed: .*Unknown model 'no_such_model'"):
        together(broken, 1, seconds=0.1)


def test_cores_are_shared_by_as_many_trials_as_divide_them() -> None:
    measure, tried = curve(12)
    assert [one.trials for one in search_cores(measure, 12)] == tried == [1, 2, 3, 4, 6, 12]
    measure, tried = curve(12)
    assert [one.trials for one in search_cores(measure, 7)] == tried == [1, 2, 3, 7]
    measure, tried = curve(2)
    assert choose(search_cores(measure, 8)) == 2 and tried == [1, 2, 4]
    measure, tried = curve(16, peak_gb=50.0)
    assert choose(search_cores(measure, 8)) == 2 and tried == [1, 2]
    measure, tried = curve(16, fails_from=4)
    assert choose(search_cores(measure, 8)) == 2 and tried == [1, 2, 4]


@pytest.mark.slow
def test_auto_becomes_a_number_of_cores(small: SweepConfig) -> None:
    said = io.StringIO()
    config = resolve_shares(small.replace(cpus_per_trial="auto"), Screen(file=said, width=200))
    assert config.devices.cpus_per_trial in (1, 2)
    assert re.match(
        r"auto: [12] trials? at once on the CPU\. Images/s of all by trials at once: 1: \d+", said.getvalue()
    )
    many = resolve_shares(small.replace(cpus_per_trial="auto", cpus=64), Screen(file=said))
    assert many.devices.cores_per_trial <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("elsewhere", [{"gpus": 1}, {"address": "head:6379"}])
def test_cores_of_other_machines_are_not_measured(elsewhere: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cpus_per_trial=auto measures trials on this machine's cores"):
        SweepConfig(name="x").replace(cpus=4, cpus_per_trial="auto", **elsewhere)


def test_auto_is_not_measured_on_a_machine_that_trains_nothing() -> None:
    with pytest.raises(ValueError, match=r"gpus_per_trial=auto measures on this machine's GPU, but got address=10"):
        SweepConfig(name="x").replace(gpus=4, gpus_per_trial="auto", address="10.0.0.1:6379")


def test_a_number_is_left_as_it_is_and_auto_needs_a_gpu() -> None:
    config = SweepConfig(name="x").replace(gpus=2, gpus_per_trial=0.5)
    assert resolve_shares(config, Screen(file=io.StringIO())) is config
    with pytest.raises(ValueError, match="gpus_per_trial=auto: it needs --gpus 1 or more"):
        resolve_shares(SweepConfig(name="x").replace(gpus_per_trial="auto"), Screen(file=io.StringIO()))


def test_auto_becomes_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.planning.packing.together", lambda config, trials: at(trials, 1000.0 * min(trials, 3)))
    said = io.StringIO()
    config = resolve_shares(
        SweepConfig(name="x").replace(gpus=2, gpus_per_trial="auto", cpus=8), Screen(file=said, width=200)
    )
    assert (config.devices.gpus_per_trial, config.devices.concurrency, config.devices.resources["gpu"]) == (
        1 / 4,
        8,
        1 / 4,
    )
    assert said.getvalue() == (
        "auto: 4 trials at once on a GPU. Images/s of all by trials at once: 1: 1000, 2: 2000, 4: 3000, 6: 3000,"
        " 8: 3000; one takes 2000 MB.\n"
    )


def test_settings_have_the_price_of_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(config: SweepConfig, trials: int, *, seconds: float) -> Together:
        training = config.search.base.training
        return at(trials, 1000.0 * (2 if training.compile else 1) / (1.18 if training.deterministic else 1))

    monkeypatch.setattr("sweeps.planning.packing.together", measured)
    config = SweepConfig(name="x")
    assert prices(config) == []
    both = config.replace(base=config.search.base.replace(deterministic=True, compile=True))
    assert prices(both) == [
        "deterministic: 1.18 x the time of a step here",
        "compile: 0.50 x the time of a step here",
    ]
    assert prices(both.replace(address="10.0.0.1:6379")) == []


def test_what_cannot_be_compiled_here_is_said_before_the_sweep(
    small: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler
    monkeypatch.delenv("CXX", raising=False)
    compiling = small.replace(base=small.search.base.replace(compile=True))
    with pytest.raises(ValueError, match=r"compile=True: the probe failed: .*torch.compile needs a C\+\+ compiler"):
        prices(compiling, seconds=0.1)
