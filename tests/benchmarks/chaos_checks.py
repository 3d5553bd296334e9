"""What must hold after a sweep, whatever was killed while it ran."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mlflow
import optuna
from chaos_world import World, command_line, is_trial, processes

from sweeps.search.study_file import open_journal
from trainables.files import sha256
from trainables.records.trial import read_trial
from trainables.store.inventory import LocalShelf, RemoteShelf
from trainables.store.manifest import MANIFEST, fault, parse
from trainables.store.objects import Objects
from trainables.store.references import running
from trainables.store.remote import LEASE

LEAVING_S = 30.0
COMPLETE = optuna.trial.TrialState.COMPLETE


def finished_records(out: Path, name: str) -> dict[str, str]:
    """Digest of the record of every trial that has one: it may not change any more."""
    return {path.parent.name: sha256(path) for path in (out / "sweeps" / name).glob("trials/*/record.json")}


def check_sweep(world: World, out: Path, name: str, *, trials: int, seen: dict[str, str]) -> list[str]:
    """Everything that is wrong with a sweep that has ended, one line each."""
    folder = out / "sweeps" / name
    sync = [sys.executable, "-m", "analysis", "sync", "--out", str(out), "--name", name]
    sync += ["--tracking-uri", world.tracking_uri]
    done = subprocess.run(sync, capture_output=True, text=True, env=world.environment)
    faults = [] if done.returncode == 0 else [f"sync said {done.stdout + done.stderr}"]
    records = finished_records(out, name)
    faults += [f"trial {number} was finished and ran again" for number in seen if records.get(number) != seen[number]]
    wrong = [number for number in records if read_trial(folder / "trials" / number).status != "finished"]
    faults += [f"trials {wrong} have not finished"] if wrong else []
    faults += [f"{len(records)} records instead of {trials}"] if len(records) != trials else []
    faults += check_study(folder, name, trials) + check_tracking(world, folder, trials)
    faults += [f"sweep {other} still has a driver" for other in running((out / "sweeps").glob("*"))]
    return faults


def check_workers(world: World) -> list[str]:
    """No process of a trial outlives its sweep."""
    until = time.monotonic() + LEAVING_S
    while left := [pid for pid in world.nodes.pids() if is_trial(pid)]:
        if time.monotonic() > until:
            return [f"trials' processes {left} are left"]
        time.sleep(0.5)
    return []


def left_of(name: str) -> list[str]:
    """No process that a sweep's command started lives on."""
    mark = f"CHAOS={name}".encode()
    until = time.monotonic() + LEAVING_S
    while left := [pid for pid in processes() if mark in _environment(pid).split(b"\0")]:
        if time.monotonic() > until:
            return [f"{name} left {command_line(pid)[:200]!r} running" for pid in left]
        time.sleep(0.5)
    return []


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def check_study(folder: Path, name: str, trials: int) -> list[str]:
    """Optuna saw every result once, and nothing is left running."""
    path = folder / "study.journal"
    if not path.exists():
        return ["it has no study"]
    study = optuna.load_study(study_name=name, storage=open_journal(path))
    of_state = Counter(trial.state for trial in study.trials if "duplicate" not in trial.user_attrs)
    of_state.pop(optuna.trial.TrialState.WAITING, None)
    faults = [f"the study holds {of_state}"] if of_state != {COMPLETE: trials} else []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    told = Counter(row["trial_id"] for row in rows if "trial_id" in row and row.get("state") == COMPLETE.value)
    return faults + [f"trial {number} was told {count} times" for number, count in told.items() if count > 1]


def check_tracking(world: World, folder: Path, trials: int) -> list[str]:
    """Every record is one run of MLflow, whose files are those on disk."""
    client = mlflow.MlflowClient(world.tracking_uri)
    sweep_id = json.loads((folder / "identity.json").read_text(encoding="utf-8"))["sweep_id"]
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    parents = client.search_runs(experiments, f"tags.sweep_id = '{sweep_id}'")
    if len(parents) != 1:
        return [f"{len(parents)} parent runs"]
    where = f"tags.`mlflow.parentRunId` = '{parents[0].info.run_id}'"
    runs = client.search_runs(experiments, where, max_results=1000)
    counts = Counter(run.data.tags["key"] for run in runs)
    faults = [f"{key} is {count} runs" for key, count in counts.items() if count > 1]
    faults += [f"{len(counts)} runs instead of {trials + 1}"] if len(counts) != trials + 1 else []
    faults += [f"{run.data.tags['key']} is {run.info.status}" for run in runs if run.info.status != "FINISHED"]
    for run in runs:
        here = folder / ("" if run.data.tags["stage"] == "teacher" else "trials") / Path(run.data.tags["key"]).name
        for name in read_trial(here).files:
            copy = Path(client.download_artifacts(run.info.run_id, name))
            faults += [f"{run.data.tags['key']}: {name} differs"] if sha256(copy) != sha256(here / name) else []
    return faults


def check_store(store: str) -> list[str]:
    """Every result is as its manifest says, no lease is held, and the teacher was made once."""
    remote = "://" in store
    shelf = RemoteShelf(store) if remote else LocalShelf(Path(store))
    results = shelf.results()
    faults = [f"{result.key} is in use" for result in results if not shelf.is_free(result.key)]
    teachers = sum(result.key.startswith("teacher/") for result in results)
    faults += [f"{teachers} teachers"] if teachers != 1 else []
    if remote:
        return faults + [f"lease {name} is left" for name in Objects(store).sizes() if name.endswith(f"/{LEASE}")]
    for path in Path(store).glob(f"*/*/{MANIFEST}"):
        manifest = parse(path.read_bytes(), key=f"{path.parent.parent.name}/{path.parent.name}")
        if "." not in path.parent.name and (manifest is None or (said := fault(path.parent, manifest)) is not None):
            faults.append(f"{path.parent}: {'no manifest' if manifest is None else said}")
    return faults


def check_nothing_left(world: World) -> list[str]:
    """No process of the world's Ray session or folder lives on."""
    marks = (world.nodes.mark.encode(), str(world.folder).encode())
    until = time.monotonic() + LEAVING_S
    while True:
        left = [command_line(pid)[:200] for pid in processes() if any(mark in command_line(pid) for mark in marks)]
        left = [line for line in left if b"chaos.py" not in line]
        if not left or time.monotonic() > until:
            return [f"left running: {line.replace(chr(0).encode(), b' ').decode()}" for line in left]
        time.sleep(0.5)
