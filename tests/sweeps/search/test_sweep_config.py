import json
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.search.config import SweepConfig
from sweeps.search.presets import PRESETS, default_name, quick
from sweeps.search.space import SEARCHED, parse
from trainables.config.score import ExchangeRates
from trainables.records.encoding import to_json


@pytest.mark.parametrize(
    ("gpus", "gpus_per_trial", "cpus", "cpus_per_trial", "at_once", "cpu", "threads"),
    [
        (0, 1.0, 1, 1, 1, 1, 1),
        (0, 1.0, 8, 1, 8, 1, 1),
        (0, 1.0, 8, 3, 2, 3, 4),
        (1, 1.0, 16, 1, 1, 16, 16),
        (1, 0.3, 16, 1, 3, 5, 5),
        (4, 0.25, 16, 1, 16, 1, 1),
        (4, 0.25, 2, 1, 16, 0.125, 1),
        (4, 0.25, 64, 1, 16, 4, 4),
        (4, 0.6, 8, 1, 4, 2, 2),
        (4, 2.0, 8, 1, 2, 4, 4),
        (5, 2.0, 8, 1, 2, 4, 4),
        (4, 4.0, 8, 1, 1, 8, 8),
    ],
)
def test_what_runs_at_once_and_on_what(
    gpus: int, gpus_per_trial: float, cpus: int, cpus_per_trial: int, at_once: int, cpu: float, threads: int
) -> None:
    config = SweepConfig(name="x").replace(
        gpus=gpus, gpus_per_trial=gpus_per_trial, cpus=cpus, cpus_per_trial=cpus_per_trial
    )
    assert config.devices.concurrency == at_once
    assert config.devices.resources == ({"cpu": cpu, "gpu": gpus_per_trial} if gpus else {"cpu": cpu})
    assert config.devices.threads == threads


@pytest.mark.parametrize("cpus", [1, 2, 7, 64])
@pytest.mark.parametrize("gpus", [1, 3, 4])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 1.0])
def test_all_trials_at_once_fit_the_machine(cpus: int, gpus: int, share: float) -> None:
    config = SweepConfig(name="x").replace(gpus=gpus, gpus_per_trial=share, cpus=cpus)
    assert config.devices.concurrency * config.devices.resources["cpu"] <= cpus + 1e-9
    assert config.devices.concurrency * config.devices.resources["gpu"] <= gpus + 1e-9
    assert config.devices.concurrency == gpus * int(1 / share + 1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, r"name='a/b' may hold only letters"),
        ({"name": ".."}, r"name='\.\.'"),
        ({"name": ""}, r"name=''"),
        ({"trials": 0}, r"trials >= 1.*trials=0"),
        ({"cpus": 0}, r"cpus >= 1.*cpus=0"),
        ({"cpus_per_trial": 0}, r"1 <= cpus_per_trial <= cpus.*cpus_per_trial=0"),
        ({"cpus_per_trial": "all"}, r"cpus_per_trial='all' must be a whole number or auto"),
        ({"cpus": 2, "cpus_per_trial": 3}, r"cpus_per_trial <= cpus.*cpus_per_trial=3 and cpus=2"),
        ({"gpus": -1}, r"gpus >= 0.*gpus=-1"),
        ({"gpus": 4, "gpus_per_trial": 0.0}, r"gpus_per_trial=0.0 must be a share"),
        ({"gpus": 4, "gpus_per_trial": -1.0}, r"gpus_per_trial=-1.0 must be a share"),
        ({"gpus": 4, "gpus_per_trial": 1.5}, r"gpus_per_trial=1.5 must be a share"),
        ({"gpus": 1, "gpus_per_trial": 2.0}, r"gpus_per_trial <= gpus.*gpus_per_trial=2.0 and gpus=1"),
    ],
)
def test_out_of_range_values_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SweepConfig(name="x").replace(**changes)


@pytest.mark.parametrize("share", [float("nan"), float("inf")])
def test_a_share_that_is_no_number_is_named(share: float) -> None:
    with pytest.raises(ValueError, match=f"gpus_per_trial={share}"):
        SweepConfig(name="x").replace(gpus=4, gpus_per_trial=share)


def changed(**changes: object) -> SweepConfig:
    return quick().replace(**changes)


def test_the_default_name_is_the_same_in_every_process() -> None:
    name = default_name("quick", quick().identity())
    script = "from sweeps.search.presets import default_name, quick; print(default_name('quick', quick().identity()))"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert other.stdout.strip() == name


@pytest.mark.parametrize(
    "config",
    [
        changed(base=quick().search.base.replace(student_epochs=5)),
        changed(base=quick().search.base.replace(dataset="cifar10")),
        changed(base=quick().search.base.replace(seed=1)),
        changed(space=quick().search.space | {"alpha": parse("alpha", "0:0.9")}),
        changed(space=quick().search.space | {"alpha": parse("alpha", "0.9")}),
        changed(rates=ExchangeRates(latency_points=2)),
    ],
)
def test_settings_that_decide_a_number_change_the_name(config: SweepConfig) -> None:
    assert default_name("quick", config.identity()) != default_name("quick", quick().identity())


@pytest.mark.parametrize("changes", [{"trials": 99}, {"cpus": 7}, {"gpus": 2}, {"out": Path("elsewhere")}])
def test_more_trials_or_another_machine_keep_the_name(changes: dict) -> None:
    assert default_name("quick", changed(**changes).identity()) == default_name("quick", quick().identity())


def test_identity_survives_json_and_holds_every_setting_once() -> None:
    identity = quick().identity()
    assert json.loads(to_json(identity)) == identity
    assert set(identity["space"]) == {*SEARCHED, "student_model", "precision"}
    assert set(identity["base"]) | set(identity["space"]) == set(quick().search.base.flat())


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_sweeps_and_their_names_can_be_folders(preset: str) -> None:
    config = PRESETS[preset]()
    assert config.devices.concurrency >= 1
    assert config.folder == Path("runs/sweeps") / config.name
    config.replace(name=default_name(preset, config.identity()))
