"""A sweep under Ray whose trials share the stand-in, two at once, with values that the CPU computes."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import null_device
import ray
import torch
from torch.utils._python_dispatch import _disable_current_modes

from sweeps import kd_prune
from trainables.layout import has_record
from trainables.records.trial import read_trial

COUNTS = "NULL_DEVICE_COUNTS"
TRIALS = 3
entered = []
"""Contexts that last as long as the process."""


def set_up_worker() -> None:
    """Compute in this worker, and write down from time to time what it has asked of the device."""
    computing = null_device.computing()
    computing.__enter__()
    entered.append(computing)
    export = torch.onnx.export

    def export_alone(*given: Any, **named: Any) -> Any:
        with _disable_current_modes():  # under another mode, torch.export takes the number of images for a constant
            return export(*given, **named)

    torch.onnx.export = export_alone

    def note() -> None:
        path = Path(os.environ[COUNTS]) / f"{os.getpid()}.json"
        while True:
            path.write_text(json.dumps(dict(null_device.counts())))
            threading.Event().wait(0.5)

    threading.Thread(target=note, daemon=True).start()


def test_trials_that_share_a_gpu_train_on_it_and_learn(tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()
    environment = {COUNTS: str(counts)}
    ray.init(
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        runtime_env={"worker_process_setup_hook": set_up_worker, "env_vars": environment},
    )
    words = f"--preset quick --dataset digits --no-flip --trials {TRIALS} --gpus 1 --gpus-per-trial 0.5 --cpus 2"
    words += " --teacher-model alexnet_small --student-model alexnet_small --teacher-epochs 3 --student-epochs 3"
    words += " --recovery-epochs 1 --recovery-budget epochs --batch-size 64 --latency-seconds 0.2"
    words += f" --latency-max-attempts 1 --train-precision fp32 --out {tmp_path}/runs --data-dir {tmp_path}/data"
    try:
        assert kd_prune.main(words.split()) == 0
    finally:
        ray.shutdown()
    folders = [path for path in sorted(tmp_path.glob("runs/sweeps/*/trials/*")) if has_record(path)]
    records = [read_trial(path) for path in folders]
    assert [record.status for record in records] == ["finished"] * (TRIALS + 1), "trials and their teacher"
    assert all(record.metrics["val_accuracy"] > 0.5 for record in records), "of ten classes"
    asked = [json.loads(path.read_text()) for path in counts.glob("*.json")]
    assert sum(one["launch"] > 1000 for one in asked) == 2, "two processes, each with half of the GPU"
