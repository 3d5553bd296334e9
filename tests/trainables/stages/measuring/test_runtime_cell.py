"""Networks in other runtimes than the one they are shipped for."""

import ctypes
import dataclasses
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from trainables.config.candidate import CandidateConfig
from trainables.records.stages import CandidateRecord
from trainables.records.trial import TrialRecord
from trainables.stages.candidate.teacher import make_teacher
from trainables.stages.measuring import process, runtime_cell
from trainables.stages.measuring.runtime_cell import CellRecord, measure_cell
from trainables.stages.runtimes import absence as absence_module
from trainables.stages.runtimes.absence import check_runtime, count_cuda_devices, find_missing
from trainables.stages.runtimes.base import RUNTIMES, AbsentError
from trainables.stages.runtimes.cell import Cell
from trainables.stages.workspace import Workspace
from trainables.store.results import Store

CONFIG = CandidateConfig().replace(
    train_limit=60, flip=False, batch_size=32, teacher_model="alexnet_small", teacher_epochs=0, latency_seconds=0.1
)


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of CI disturb each other, and no test here asks for an undisturbed latency."""
    monkeypatch.setattr(process, "ATTEMPTS", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("cells")
    return Workspace(
        store=Store(root / "store"),
        data=CONFIG.data,
        data_dir=root / "data",
        device="cpu",
        threads=1,
        lock_dir=root / "leases",
    )


@pytest.fixture(scope="module")
def made(place: Workspace) -> CandidateRecord:
    """A network, random but real, that has gone through the stages of a teacher."""
    for package in ("onnxscript", "pyarrow"):
        pytest.importorskip(package, reason="machines with torch alone lack it")
    steps = make_teacher(CONFIG.resolve(place.dataset(), device="cpu"), place)
    with pytest.raises(StopIteration) as end:
        while True:
            next(steps)
    record: CandidateRecord = end.value.value
    return record


def measure(
    made: CandidateRecord,
    place: Workspace,
    folder: Path,
    *,
    gone: bool = False,
    ships: str = "fp32",
    last: tuple[str, ...] = (),
    model: str = "",
    models: tuple[str, ...] = (),
    **cell: object,
) -> CellRecord:
    trial = TrialRecord(
        key="x/teacher",
        trial_number=None,
        stage="teacher",
        status="finished",
        reason="",
        params={"precision": ships, "teacher_model": model or CONFIG.flat()["teacher_model"]},
        metrics={},
        tags={},
        curve=(),
        files=(),
        started=0,
        ended=1,
        keys=() if gone else (*made.keys, *last),
    )
    words = {"precision": "fp32", "batch_images": 1, "runtime_threads": 1, **cell}
    return measure_cell(Cell(**words), trial, made.export.folder, place, scratch=folder, seconds=0.1, models=models)


def test_a_record_alone_imports_nothing(
    made: CandidateRecord, place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wrote a record, or a copied folder of a sweep, must not choose the module that runs here."""
    (tmp_path / "strange_nets.py").write_text(
        "from pathlib import Path\nfrom torchvision.models import alexnet\n"
        f"Path({str(tmp_path / 'was_run')!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = "strange_nets:alexnet"
    with pytest.raises(AbsentError, match=f"which only a record names: add --models {model}"):
        measure(made, place, tmp_path, runtime="eager_cpu", model=model)
    measure(made, place, tmp_path, runtime="onnxruntime_cpu", model=model)
    assert not (tmp_path / "was_run").exists()
    with pytest.raises(
        ValueError, match="fails on one image of image_size=32"
    ):  # named, it is imported, and does not fit
        measure(made, place, tmp_path, runtime="eager_cpu", model=model, models=(model,))
    assert (tmp_path / "was_run").exists()


@pytest.mark.parametrize("runtime", ["torchscript_cpu", "eager_cpu", "openvino"])
def test_every_runtime_gives_the_same_classes(
    made: CandidateRecord, place: Workspace, tmp_path: Path, runtime: str
) -> None:
    if find_missing(runtime):
        pytest.skip(find_missing(runtime))
    found = measure(made, place, tmp_path, runtime=runtime, batch_images=4, gone=runtime != "eager_cpu")
    numbers = found.metrics
    assert numbers["parity_agreement"] == 1
    assert numbers["parity_max_abs"] < 1e-4
    assert numbers["test_accuracy"] == made.measurement.test_accuracy
    assert numbers["throughput_ips"] == pytest.approx(4000 / numbers["latency_p50_ms"])
    assert 0 < numbers["zstd_bytes"] < numbers["file_bytes"]
    assert ("speedup" in numbers) == (runtime == "eager_cpu")
    assert found.latency.latency_device == "cpu:1"


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["eager_cuda", "cuda_graph", "torchscript_cuda", "onnxruntime_cuda", "tensorrt"])
def test_every_runtime_of_a_gpu_gives_the_same_classes(
    made: CandidateRecord, place: Workspace, tmp_path: Path, runtime: str
) -> None:
    if find_missing(runtime):
        pytest.skip(find_missing(runtime))
    found = measure(made, place, tmp_path, runtime=runtime, batch_images=4)
    assert found.metrics["parity_agreement"] > 0.99
    assert found.metrics["parity_max_abs"] < 0.05
    assert found.latency.latency_device.startswith("cuda")


def test_cells_of_other_batches_compute_no_accuracy_again(
    made: CandidateRecord, place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(made, place, tmp_path, runtime="torchscript_cpu", batch_images=2).metrics
    monkeypatch.delattr(runtime_cell, "_quality")
    second = measure(made, place, tmp_path, runtime="torchscript_cpu", batch_images=8).metrics
    for name in ("test_accuracy", "parity_max_abs", "parity_agreement"):
        assert first[name] == second[name]
    assert first["throughput_ips"] != second["throughput_ips"]
    with pytest.raises(NameError):
        measure(made, place, tmp_path, runtime="onnxruntime_cpu", precision="int8_ptq")


def test_without_weights_the_files_still_run(made: CandidateRecord, place: Workspace, tmp_path: Path) -> None:
    assert "speedup" not in measure(made, place, tmp_path, runtime="onnxruntime_cpu", gone=True).metrics
    with pytest.raises(AbsentError, match="no longer in the store"):
        measure(made, place, tmp_path, runtime="eager_cpu", gone=True)


def test_an_earlier_network_never_stands_in_for_one_that_was_cleaned_away(
    made: CandidateRecord, place: Workspace, tmp_path: Path
) -> None:
    """`gc --keep front` keeps the teacher and may take the recovered student."""
    cut = ("student/aaaaaaaaaaaaaaaaaaaaaaaa", "recovery/bbbbbbbbbbbbbbbbbbbbbbbb")
    with pytest.raises(AbsentError, match="no longer in the store"):
        measure(made, place, tmp_path, runtime="eager_cpu", last=cut)


@pytest.mark.parametrize(
    ("runtime", "precision", "words"),
    [
        ("onnxruntime_cuda", "int8_ptq", "no INT8 convolutions"),
        ("eager_cpu", "fp16", "through FP32"),
        ("torchscript_cpu", "int8_ptq", "ONNX runtimes only"),
        ("onnxruntime_cpu", "int8_qat", "part of a trial"),
    ],
)
def test_a_precision_that_nobody_computes_there_is_told(
    made: CandidateRecord, place: Workspace, tmp_path: Path, runtime: str, precision: str, words: str
) -> None:
    with pytest.raises(AbsentError, match=words):
        measure(made, place, tmp_path, runtime=runtime, precision=precision)


def test_other_precisions_are_close_to_the_original(made: CandidateRecord, place: Workspace, tmp_path: Path) -> None:
    fp16 = measure(made, place, tmp_path, runtime="onnxruntime_cpu", precision="fp16").metrics
    int8 = measure(made, place, tmp_path, runtime="onnxruntime_cpu", precision="int8_ptq").metrics
    assert fp16["parity_agreement"] > 0.98
    assert fp16["file_bytes"] < 0.55 * made.export.size_bytes
    assert int8["file_bytes"] < 0.3 * made.export.size_bytes
    assert 0 < fp16["parity_max_abs"] < int8["parity_max_abs"]


def test_a_file_shipped_in_int8_is_measured_as_that_and_has_nothing_to_be_compared_with(
    made: CandidateRecord, place: Workspace, tmp_path: Path
) -> None:
    words = {"runtime": "onnxruntime_cpu", "ships": "int8_qat"}
    found = measure(made, place, tmp_path, precision="int8_qat", **words).metrics
    assert 0 <= found["test_accuracy"] <= 1
    assert "parity_agreement" not in found and "parity_max_abs" not in found
    for precision in ("fp32", "int8_ptq"):
        with pytest.raises(AbsentError, match="ships an ONNX file in int8_qat"):
            measure(made, place, tmp_path, precision=precision, **words)


@pytest.mark.parametrize("name", [name for name, runtime in RUNTIMES.items() if runtime.device == "cuda"])
def test_cuda_runtimes_are_absent_without_a_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absence_module, "count_cuda_devices", lambda: 0)
    assert find_missing(name) == "this machine has no CUDA device"


def test_tensorrt_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absence_module, "count_cuda_devices", lambda: 1)
    monkeypatch.setattr(absence_module, "_can_load", lambda library: False)
    assert "libnvinfer.so.10" in find_missing("tensorrt")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="makes shared libraries with gcc")
def test_tensorrt_of_a_wheel_is_found_where_the_loader_does_not_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("libmade_up_infer.so.10", "libmade_up_parser.so.10")  # that no machine has
    wheel = tmp_path / "tensorrt_libs"
    wheel.mkdir()
    (wheel / "__init__.py").touch()
    (tmp_path / "empty.c").touch()

    def library(path: Path, *words: str) -> None:
        command = ["gcc", "-shared", f"-Wl,-soname,{path.name}", "-Wl,--no-as-needed", "-o", str(path), *words]
        subprocess.run([*command, str(tmp_path / "empty.c")], check=True)

    for name in names:
        library(wheel / name)
    provider = tmp_path / "provider.so"  # linked with them by name alone, as ONNX Runtime's is
    library(provider, *(str(wheel / name) for name in names))
    script = f"""
import ctypes
from trainables.stages.runtimes import absence
absence.TENSORRT_LIBRARIES = {names!r}
assert not absence._can_load({str(provider)!r})
assert absence.load_tensorrt()
assert absence._can_load({str(provider)!r})
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
    monkeypatch.setattr(absence_module, "TENSORRT_LIBRARIES", names)
    assert not absence_module.load_tensorrt()  # without the wheel


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find_missing("openvino") == "openvino is not installed; `uv sync --extra openvino` brings it"


def test_a_sweep_without_gpus_cannot_measure_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absence_module, "count_cuda_devices", lambda: 1)
    with pytest.raises(ValueError, match="latency_runtime=onnxruntime_cuda: trials without a GPU"):
        check_runtime("onnxruntime_cuda", on_gpu=False)


def test_a_build_of_onnx_runtime_without_cuda_is_refused_before_anything_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(absence_module, "count_cuda_devices", lambda: 1)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    words = "latency_runtime=onnxruntime_cuda: this build of ONNX Runtime has no CUDAExecutionProvider, only CPU"
    with pytest.raises(ValueError, match=words):
        check_runtime("onnxruntime_cuda", on_gpu=True)
    check_runtime("onnxruntime_cpu", on_gpu=True)


@pytest.mark.skipif(count_cuda_devices() > 0, reason="the driver is here, and all loads")
def test_a_cuda_build_whose_libraries_do_not_load_names_the_one_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Everything but the driver is in the wheels: that their versions fit together is seen without a GPU."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime is built without CUDA for this machine")
    monkeypatch.setattr(absence_module, "count_cuda_devices", lambda: 1)
    with pytest.raises(ValueError, match=r"CUDAExecutionProvider does not load \(libcuda.so.1: cannot open"):
        check_runtime("onnxruntime_cuda", on_gpu=True)


def test_a_gpu_that_is_hidden_is_not_called_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absence_module, "count_cuda_devices", lambda: 0)
    monkeypatch.setattr(absence_module, "_find_driver", lambda: ctypes.CDLL(None))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_missing("eager_cuda") == "this process has no CUDA device; --gpus 1 gives it one"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert find_missing("eager_cuda") == "this machine has no CUDA device"


def test_cells_have_names_of_their_own() -> None:
    cell = Cell(runtime="openvino", precision="fp32", batch_images=8, runtime_threads=2)
    names = {dataclasses.replace(cell, **change).name for change in ({}, {"batch_images": 1}, {"precision": "fp16"})}
    assert len(names) == 3
