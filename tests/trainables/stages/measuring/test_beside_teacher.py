import math
from pathlib import Path

import pytest

from tests.trainables.stages.measuring.latencies import latency, linear_file, node
from trainables.config.candidate import MeasureConfig
from trainables.stages.measuring import clean_room
from trainables.stages.measuring.beside_teacher import time_beside


@pytest.mark.parametrize("noisy", [False, True])
def test_half_of_the_drift_is_taken_out_and_a_large_one_contaminates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noisy: bool
) -> None:
    """Also beside a scale that is not known well: nobody knows then which of the two is right."""
    monkeypatch.setattr(clean_room, "PAUSE_S", 0.0)
    reference = linear_file(tmp_path)
    own = latency(1e-4, noisy=noisy)  # no file is as fast as that
    path = reference.folder / "model.onnx"
    took = time_beside(MeasureConfig(latency_seconds=0.1), path, reference, own, node(tmp_path / "node")).latency
    assert took.latency_attempts >= 2
    assert took.conditions is not None and took.conditions.drift is not None
    assert f"the reference took {100 * took.conditions.drift:.0f} % more than its own time" in took.latency_contaminated
    assert took.metrics()["latency_drift"] == took.conditions.drift
    assert took.latency_p50_ms == pytest.approx(took.latency_raw_p50_ms / math.sqrt(1 + took.conditions.drift))
