"""A sweep of 10,000 candidates: seconds until the front is on the screen, and size of its page.

    python tests/benchmarks/ten_thousand.py --out /tmp/many

The store is written in MLflow's own tables by copying one real run 10,000 times with other numbers; it is made once.
"""

import argparse
import os
import platform
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.analysis.conftest import log_sweep, teacher_rows, trial_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the store")
    parser.add_argument("--candidates", type=int, default=10_000, help="how many (10000)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "mlflow.db").exists():
        fill(options.out, options.candidates)
    print(
        f"hardware: {os.cpu_count()} CPUs, {platform.processor() or platform.machine()}, load {os.getloadavg()[0]:.2f}"
    )
    command = [sys.executable, "-m", "analysis", "--out", str(options.out)]
    for turn in ("cold", "warm"):
        started = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append((time.monotonic() - started, line))
        done = time.monotonic() - started
        shown = next(at for at, line in said if line.startswith("hypervolume"))
        print(f"{turn}: front on the screen after {shown:.2f} s, page, tables and pictures after {done:.2f} s")
    page = next((options.out / "sweeps").glob("*/front/pareto.html"))
    print(f"{page.name}: {page.stat().st_size / 1e6:.2f} MB")


def fill(out: Path, count: int) -> None:
    """Write the store: five real trials through MLflow, the rest as copies in its tables."""
    client = MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    experiment = client.create_experiment("cifar10", artifact_location=(out / "artifacts").resolve().as_uri())
    log_sweep(client, experiment, "many", [*trial_rows(1), teacher_rows()])
    run = client.search_runs([experiment], "tags.trial_number = '0'")[0].info.run_id
    connection = sqlite3.connect(out / "mlflow.db")
    rows = {table: _rows(connection, table, run) for table in ("runs", "tags", "params", "latest_metrics")}
    rng = np.random.default_rng(0)
    for number, trial in enumerate(trial_rows(count, seed=1)[1:], 1):
        new = uuid.UUID(bytes=rng.bytes(16)).hex
        values = {**trial["params"], **trial["metrics"], "trial_number": str(number), "key": f"many/{number}"}
        for table, copied in rows.items():
            for row in copied:
                changed = {**row, "run_uuid": new}
                if row.get("key") in values:
                    changed["value"] = values[row["key"]]
                places = ", ".join("?" * len(changed))
                connection.execute(f"INSERT INTO {table} ({', '.join(changed)}) VALUES ({places})", [*changed.values()])
    connection.commit()
    connection.close()


def _rows(connection: sqlite3.Connection, table: str, run: str) -> list[dict[str, object]]:
    found = connection.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (run,))
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found]


if __name__ == "__main__":
    main()
