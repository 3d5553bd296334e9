import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

DIRECTIONS = {"val_accuracy": "maximize", "latency_p50_ms": "minimize", "size_bytes": "minimize"}
TEACHER = {"val_accuracy": 0.956, "test_accuracy": 0.951, "latency_p50_ms": 4.1, "size_bytes": 44_700_000}
SWEEP = {
    "name": "night",
    "directions": DIRECTIONS,
    "units": {"val_accuracy": "0-1", "latency_p50_ms": "ms", "size_bytes": "bytes"},
    "reference_point": {"error_points": 90.0, "log2_latency_vs_teacher": 1.0, "log2_size_vs_teacher": 1.0},
    "teacher": TEACHER,
    "config": {"dataset": "cifar10", "latency_device": "cpu:1"},
    "versions": {},
}


def trial_rows(count: int, seed: int = 0) -> list[dict[str, dict[str, Any]]]:
    """Realistic trials: accuracy falls with the ratio, structured pruning is faster and smaller."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        method = ("structured", "l1_unstructured")[int(rng.integers(2))]
        ratio = float(rng.choice([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]))
        temperature, alpha = float(rng.choice([1, 2, 4, 8])), float(rng.choice([0.0, 0.5, 0.7, 0.9, 1.0]))
        left = (1 - ratio) ** 1.6 if method == "structured" else 1.0
        accuracy = 0.934 - 0.09 * ratio**2 * (2 - left) - 0.02 * abs(alpha - 0.8) + rng.normal(0, 0.002)
        latency = 1.3 * (0.25 + 0.75 * left) * rng.normal(1, 0.03)
        rows.append(
            {
                "tags": {"trial_number": str(number), "stage": "candidate", "status": "finished"},
                "params": {
                    "temperature": str(temperature),
                    "alpha": str(alpha),
                    "pruning_ratio": str(ratio),
                    "pruning_method": method,
                    "student_epochs": "20",
                    "image_size": "None",
                    "flip": "True",
                    "dataset": "cifar10",
                    "student_model": "mobilenet_v3_small",
                    "teacher_model": "resnet18",
                },
                "metrics": {
                    "val_accuracy": accuracy,
                    "test_accuracy": accuracy - 0.004,
                    "latency_p50_ms": latency,
                    "latency_p90_ms": latency * 1.08,
                    "latency_p99_ms": latency * 1.3,
                    "reference_latency_p50_ms": 4.1,
                    "size_bytes": float(int(6_200_000 * left)),
                    "num_params": float(int(1_530_000 * left)),
                    "num_val": 5000.0,
                    "num_test": 10000.0,
                },
            }
        )
    return rows


def teacher_rows() -> dict[str, dict[str, Any]]:
    metrics = {**TEACHER, "latency_p90_ms": 4.4, "num_val": 5000.0, "num_test": 10000.0}
    return {"tags": {"stage": "teacher", "status": "finished", "control": "teacher"}, "params": {}, "metrics": metrics}


def log_sweep(client: MlflowClient, experiment: str, name: str, rows: list[dict[str, dict[str, Any]]]) -> None:
    parent = client.create_run(experiment, tags={"kind": "sweep", "sweep": name, "status": "finished"}).info.run_id
    client.log_text(parent, json.dumps({**SWEEP, "name": name}), "sweep.json")
    for row in rows:
        tags = {"mlflow.parentRunId": parent, "kind": "trial", "sweep": name, **row["tags"]}
        tags["key"] = f"{name}/{row['tags'].get('trial_number', 'teacher')}"
        child = client.create_run(experiment, tags=tags).info.run_id
        for key, value in row["params"].items():
            client.log_param(child, key, value)
        for key, value in row["metrics"].items():
            client.log_metric(child, key, value)


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real MLflow store: the sweeps `early` and, newer, `night`, which has every status."""
    folder = tmp_path_factory.mktemp("runs")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.create_experiment("cifar10", artifact_location=(folder / "artifacts").as_uri())
    log_sweep(client, experiment, "early", [])
    rows = trial_rows(12)
    for number, status in ((9, "stopped"), (10, "failed"), (11, "infeasible")):
        rows[number]["tags"]["status"] = status
        rows[number]["metrics"] |= {"val_accuracy": 0.999, "latency_p50_ms": 0.001, "size_bytes": 1.0}
    del rows[8]["metrics"]["size_bytes"]
    rows[8]["metrics"] |= {"val_accuracy": 0.999, "score": float("inf")}
    log_sweep(client, experiment, "night", [*rows, teacher_rows()])
    return folder


@pytest.fixture(scope="session")
def store(out: Path) -> str:
    return f"sqlite:///{out / 'mlflow.db'}"
