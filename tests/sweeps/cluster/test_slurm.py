"""sweeps/cluster/slurm.sh on a real SLURM: two nodes, a requeue in mid-trial, a time limit that comes near."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import mlflow
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.sweeps.cluster.slurm import Slurm, slurm, wait_for, why_not

SCRIPT = Path(__file__).parents[3] / "sweeps" / "cluster" / "slurm.sh"
TRIALS = 6
FLAGS = (
    f"--preset quick --name night --trials {TRIALS} --teacher-epochs 2 --student-epochs 2 --recovery-epochs 4"
    " --recovery-budget epochs --latency-seconds 0.2 --latency-max-attempts 1"
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if why := why_not():
        pytest.skip(why)
    with slurm(tmp_path_factory.mktemp("slurm")) as started:
        environment = started.environment
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        yield started


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_job_that_is_requeued_twice_ends_with_every_trial_once(own: Slurm, tmp_path: Path) -> None:
    words = ["sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", "--output=job.log", str(SCRIPT), *FLAGS.split()]
    job = own(*words, "--out", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data"), cwd=tmp_path)
    sweep = tmp_path / "runs" / "sweeps" / "night"

    def told() -> str:
        logs = "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(tmp_path.glob("*.log")))
        return f"{own.job(job)}\n{logs}"

    def ends_early(trials: int) -> bool:
        """Whether so many trials are done and another one is on its way."""
        assert own.job(job)["JobState"] in ("PENDING", "RUNNING", "COMPLETING"), told()
        done = len(list(sweep.glob("trials/*/record.json")))
        return done >= trials and any(trial.state.name == "RUNNING" for trial in trials_of(sweep))

    wait_for(lambda: ends_early(1), 600, told)
    own("scontrol", "requeue", job)  # as preemption does it: SIGTERM to all, SIGKILL after 30 s
    wait_for(lambda: own.job(job)["JobState"] == "PENDING", 120, told)
    own("scontrol", "update", f"JobId={job}", "StartTime=now")  # else two minutes later
    before = len(list(sweep.glob("trials/*/record.json")))
    wait_for(lambda: ends_early(before + 1), 600, told)
    own("scancel", "--batch", "--signal=USR1", job)  # what SLURM sends two minutes before the time limit
    wait_for(lambda: (own.job(job)["JobState"], own.job(job)["Restarts"]) == ("PENDING", "2"), 120, told)
    own("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: own.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), 600, told)
    assert (own.job(job)["JobState"], own.job(job)["Restarts"]) == ("COMPLETED", "2"), told()

    finished = [trial for trial in trials_of(sweep) if trial.state.is_finished()]
    assert len(list(sweep.glob("trials/*/record.json"))) == TRIALS
    assert sum(trial.state.name == "COMPLETE" for trial in finished) <= TRIALS
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    runs = mlflow.search_runs(search_all_experiments=True, filter_string="tags.kind = 'trial'")
    numbers = Counter(runs[runs["tags.stage"] == "candidate"]["tags.trial_number"])
    assert numbers == Counter({str(number): 1 for number in map(int, numbers)}) and len(numbers) == TRIALS
    # one core a node: two at once are on two nodes
    spans = sorted((trial.datetime_start, trial.datetime_complete) for trial in finished if trial.datetime_complete)
    assert any(later[0] < earlier[1] for earlier, later in pairwise(spans)), "never two trials at once"
    assert json.loads((sweep / "sweep.json").read_text())
    assert not list(Path("/tmp").glob("ray-slurm-*"))


def trials_of(sweep: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials of a sweep's study; none before there is one."""
    journal = sweep / "study.journal"
    if not journal.exists():
        return []
    study = optuna.load_study(study_name="night", storage=JournalStorage(JournalFileBackend(str(journal))))
    return study.trials


def test_outside_of_a_job_it_says_how_it_is_started() -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(["bash", str(SCRIPT)], env=clean, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "slurm.sh: this is a batch script; give it to sbatch.\n"


def test_it_asks_to_be_requeued_and_warned() -> None:
    asked = [line.split()[1] for line in SCRIPT.read_text(encoding="utf-8").splitlines() if line.startswith("#SBATCH")]
    assert {"--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= {*asked}
    (warning,) = (word.partition("=")[2] for word in asked if word.startswith("--signal="))
    name, _, seconds = warning.removeprefix("B:").partition("@")
    assert hasattr(signal, f"SIG{name}") and int(seconds) >= 60
