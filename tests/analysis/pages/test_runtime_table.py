from pathlib import Path
from typing import Any

import pytest

from analysis.pages.runtime_table import runtime_frame, write_runtime_table
from trainables.records.encoding import to_json
from trainables.records.trial import TrialRecord


def write(folder: Path, *, status: str = "finished", reason: str = "", tags: Any = None, **changes: Any) -> None:
    params = {"model": "mobilenet_v3_small (trial 3)", "of_trial": "00003", "runtime": "onnxruntime_cpu"}
    params |= {"precision": "fp32", "batch_images": 1, "runtime_threads": 1}
    metrics = {"test_accuracy": 0.9, "latency_p50_ms": 2.0, "speedup": 3.0, "throughput_ips": 500.0, "file_bytes": 4e6}
    params |= {name: value for name, value in changes.items() if name in params}
    metrics |= {name: value for name, value in changes.items() if name not in params}
    name = "-".join(str(params[key]) for key in ("of_trial", "runtime", "precision", "batch_images"))
    (folder / name).mkdir(parents=True)
    record = TrialRecord(
        key=f"s/runtimes/{name}",
        trial_number=None,
        stage="runtime",
        status=status,
        reason=reason,
        params=params,
        metrics=metrics if status == "finished" else {},
        tags={"latency_device": "cpu:1", "latency_verdict": "clean", **(tags or {})},
        curve=(),
        files=(),
        started=0,
        ended=1,
    )
    (folder / name / "record.json").write_text(to_json(record))


def diagnosis(folder: Path, **cell: Any) -> str:
    frame = runtime_frame(folder)
    rows = frame[(frame[list(cell)] == list(cell.values())).all(axis=1)]
    assert len(rows) == 1
    return str(rows["diagnosis"].iloc[0])


def test_a_clean_cell_needs_no_diagnosis(tmp_path: Path) -> None:
    write(tmp_path)
    assert diagnosis(tmp_path) == ""


def test_what_is_absent_or_failed_is_a_row_that_says_so(tmp_path: Path) -> None:
    write(tmp_path, runtime="tensorrt", status="infeasible", reason="this machine has no CUDA device")
    write(tmp_path, runtime="openvino", status="failed", reason="its process died")
    assert diagnosis(tmp_path, runtime="tensorrt") == "absent: this machine has no CUDA device"
    assert diagnosis(tmp_path, runtime="openvino") == "failed: its process died"


@pytest.mark.parametrize(
    ("precision", "changes", "words"),
    [
        ("int8_ptq", {"latency_p50_ms": 3.0}, "1.50 x as slow as FP32: operators without an INT8 kernel"),
        ("int8_ptq", {"latency_p50_ms": 1.0, "test_accuracy": 0.88}, "2.0 points less accurate than FP32"),
        ("fp16", {"latency_p50_ms": 2.5}, "1.25 x as slow as FP32: this device computes FP16 no faster"),
        ("int8_ptq", {"latency_p50_ms": 1.0}, ""),
        ("fp16", {"latency_p50_ms": 2.06}, ""),
    ],
)
def test_lower_precision_is_held_against_fp32(tmp_path: Path, precision: str, changes: Any, words: str) -> None:
    write(tmp_path)
    write(tmp_path, batch_images=8, latency_p50_ms=0.1)  # another batch is no comparison
    write(tmp_path, precision=precision, **changes)
    found = diagnosis(tmp_path, precision=precision)
    assert words in found
    assert bool(words) == bool(found)


@pytest.mark.parametrize(
    ("vnni", "device", "told"), [("no", "cpu:1", True), ("yes", "cpu:1", False), ("no", "cuda:0", False)]
)
def test_a_processor_without_int8_instructions_is_named(tmp_path: Path, vnni: str, device: str, told: bool) -> None:
    write(tmp_path)
    write(tmp_path, precision="int8_qat", latency_p50_ms=3.0, tags={"vnni": vnni, "latency_device": device})
    assert ("this CPU has no instructions for INT8" in diagnosis(tmp_path, precision="int8_qat")) == told


@pytest.mark.parametrize(
    ("method", "told"),
    [("l1_unstructured", True), ("l1_global", True), ("nm_2_4", True), ("structured", False), ("", False)],
)
def test_whoever_zeroed_weights_is_told_that_they_cost_as_much(tmp_path: Path, method: str, told: bool) -> None:
    write(tmp_path, tags={"pruning": method})
    assert ("zeroed weights do not speed" in diagnosis(tmp_path)) == told


@pytest.mark.parametrize(("eight", "bound"), [(2.4, True), (14.0, False)])
def test_a_gpu_that_waits_for_launches_is_told(tmp_path: Path, eight: float, bound: bool) -> None:
    cuda = {"tags": {"latency_device": "cuda:0"}}
    write(tmp_path, runtime="eager_cuda", **cuda)
    write(tmp_path, runtime="eager_cuda", batch_images=8, latency_p50_ms=eight, **cuda)
    assert ("launch-bound: 8 images take" in diagnosis(tmp_path, batch_images=1)) == bound
    assert diagnosis(tmp_path, batch_images=8) == ""


def test_a_replayed_graph_is_not_bound_by_launches(tmp_path: Path) -> None:
    cuda = {"tags": {"latency_device": "cuda:0"}}
    for batch in (1, 8):
        write(tmp_path, runtime="cuda_graph", batch_images=batch, **cuda)
    assert diagnosis(tmp_path, batch_images=1) == ""


def test_masks_and_slow_runtimes_and_bad_measurements_are_told(tmp_path: Path) -> None:
    tags = {"pruning": "l1_unstructured", "latency_verdict": "noisy: p50 within 7.0 %"}
    write(tmp_path, speedup=0.5, tags=tags)
    found = diagnosis(tmp_path)
    for words in ("slower than eager PyTorch", "zeroed weights do not speed", "noisy: p50 within 7.0 %"):
        assert words in found


def test_the_table_has_every_cell_and_reads_as_markdown(tmp_path: Path) -> None:
    write(tmp_path)
    for batch in (1, 8, 64):
        write(tmp_path, runtime="tensorrt", status="infeasible", reason="no | here", batch_images=batch)
    write(tmp_path, runtime="openvino", status="failed", reason="its process died")
    csv, markdown = write_runtime_table(runtime_frame(tmp_path), tmp_path, heading="Runtimes")
    text, _, absent = markdown.read_text().partition("## Absent")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2
    assert len({line.count("|") for line in lines}) == 1
    assert "| 90.00 |" in lines[2]
    assert "failed: its process died" in lines[3]
    assert absent.strip().splitlines()[2:] == [
        "| mobilenet_v3_small (trial 3) | tensorrt | fp32 | 1, 8, 64 | no / here |"
    ]
    assert csv.read_text().count("\n") == 1 + 5
