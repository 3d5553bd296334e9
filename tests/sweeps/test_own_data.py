"""A user's own photographs and own network through the commands of the README: sweep, select, export, predict.

The sweep is stopped by Ctrl-C after its first trial, and the same command goes on.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from analysis.__main__ import main
from tests.sweeps.test_kd_prune import children, study_of

REPO = Path(__file__).parents[2]
README = REPO / "sweeps" / "README.md"
NETS = '''
from torch import nn

def tiny(num_classes):
    """A user's student: no name that our code knows."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def large(num_classes):
    """And a teacher."""
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, num_classes))
'''
CLASSES = {"day": 215, "night": 40}
"""Class -> mean brightness: every mode keeps it."""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def photo(path: Path, brightness: int, mode: str, rng: np.random.Generator) -> None:
    """Noise about a brightness, not square; JPEGs are turned by EXIF."""
    width, height = (int(side) for side in rng.integers(18, 60, size=2))
    pixels = rng.normal(brightness, 25, (height, width, 3)).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = int(rng.integers(1, 9))
    image = Image.fromarray(pixels).convert(mode)
    image.save(path, **({"exif": exif} if path.suffix == ".jpg" else {}))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: `photos/` of every size and mode, and `my_package/nets.py`."""
    root = tmp_path_factory.mktemp("shop")
    (root / "my_package").mkdir()
    (root / "my_package" / "nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    kinds = [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "png"), ("L", "png"), ("RGBA", "png")]
    for split, count in (("train", 48), ("test", 12)):
        for name, brightness in CLASSES.items():
            folder = root / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                mode, suffix = kinds[number % len(kinds)]
                photo(folder / f"{number:03}-{mode}.{suffix}", brightness, mode, rng)
    (root / "more" / "unsorted").mkdir(parents=True)
    for number in range(30):
        photo(root / "more" / "unsorted" / f"{number}.jpg", [*CLASSES.values()][number % 2], "RGB", rng)
    return root


def command() -> list[str]:
    """What the README prints, with small settings behind."""
    printed = re.findall(r"^    PYTHONPATH=\. python sweeps/kd_prune\.py (.*)$", README.read_text(), re.MULTILINE)
    assert len(printed) == 1
    settings = "--preset quick --trials 3 --teacher-epochs 3 --student-epochs 3 --recovery-epochs 1 --batch-size 16"
    settings += " --teacher-model my_package.nets:large --teacher-learning-rate 0.01 --learning-rate 0.01 --cpus 2"
    settings += " --pruning-ratio 0,0.25 --latency-seconds 0.2 --latency-max-attempts 1 --image-size 16 --name shop"
    settings += " --unlabeled more"
    return [sys.executable, str(REPO / "sweeps" / "kd_prune.py"), *shlex.split(printed[0]), *settings.split()]


@pytest.fixture(scope="module")
def stopped(shop: Path) -> tuple[list[int], float]:
    """Trials that were finished when Ctrl-C stopped the sweep, and when it had ended."""
    env = {**os.environ, "PYTHONPATH": ".", "PYTHONUNBUFFERED": "1"}
    driver = subprocess.Popen(command(), cwd=shop, env=env, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    for line in driver.stdout:
        if line.startswith("[1/3]"):
            break
    driver.send_signal(signal.SIGINT)
    rest = driver.stdout.read()
    assert driver.wait(timeout=60) == 130
    assert "same command goes on" in rest
    return [t.number for t in study_of(shop / "runs").trials if t.state.name == "COMPLETE"], time.time()


@pytest.fixture(scope="module")
def runs(shop: Path, stopped: tuple[list[int], float]) -> Iterator[Path]:
    """The folder of the sweep once the same command has gone on to its end."""
    env = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run([*command(), "--quiet"], cwd=shop, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    yield shop / "runs"
    mlflow.set_tracking_uri("")


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    stopped: tuple[list[int], float], runs: Path
) -> None:
    finished, stopped_at = stopped
    assert 1 <= len(finished) < 3
    records = {int(p.parent.name): json.loads(p.read_text()) for p in runs.glob("sweeps/shop/trials/*/record.json")}
    assert len(records) == 3
    assert all(records[number]["ended"] < stopped_at for number in finished)
    assert len(children(runs)) == 3 + 1


def test_records_name_images_without_labels_by_their_digest(runs: Path, shop: Path) -> None:
    found = [json.loads(path.read_text()) for path in runs.glob("sweeps/shop/**/record.json")]
    (teacher,) = (row["params"] for row in found if row["stage"] == "teacher")
    assert teacher["unlabeled"] is None
    told = json.loads((runs / "sweeps" / "shop" / "sweep.json").read_text())
    digest = told["config"]["base"]["unlabeled"]
    assert re.fullmatch("[0-9a-f]{16}", digest)
    candidates = [row["params"] for row in found if row["stage"] == "candidate"]
    uncut = [row["student_model"] == "teacher" and row["pruning_ratio"] == 0 for row in candidates]
    untaught = [alone or row["alpha"] == 0 for alone, row in zip(uncut, candidates, strict=True)]
    assert [row["unlabeled"] for row in candidates] == [None if alone else digest for alone in untaught]
    assert not all(untaught)
    assert str(shop) not in json.dumps(told)


def test_photographs_of_every_mode_and_a_users_net_go_all_the_way(runs: Path, shop: Path, capsys) -> None:
    assert main(["select", "--out", str(runs), "--min-accuracy", "0.8"]) == 0
    model = Path(capsys.readouterr().out.splitlines()[0])
    assert model.is_file() and model.is_relative_to(runs)
    ship = shop / "ship"
    assert main(["export", "shop@most_accurate", "--to", str(ship), "--out", str(runs)]) == 0
    photos = sorted((shop / "photos" / "test").rglob("*.*"))
    script = [sys.executable, str(ship / "predict.py"), *map(str, photos)]
    done = subprocess.run(script, cwd=shop, capture_output=True, text=True, timeout=60, check=True)
    named = [line.split("\t") for line in done.stdout.splitlines()]
    right = [Path(path).parent.name == label for path, label, _ in named]
    assert len(right) == 24
    assert sum(right) / 24 == pytest.approx(recorded(runs), abs=1e-9)
    assert sum(right) >= 20


def recorded(runs: Path) -> float:
    """Test accuracy of the most accurate candidate as the sweep measured it, over the same photographs."""
    from analysis.findings.front import choose, front_members
    from analysis.reading.runs import read_runs

    sweep = read_runs(f"sqlite:///{runs / 'mlflow.db'}")
    front = front_members(sweep)
    return float(front.loc[choose(front, sweep.sweep["teacher"])["most_accurate"], "test_accuracy"])
