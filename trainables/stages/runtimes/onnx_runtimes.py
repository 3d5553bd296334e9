"""ONNX files in ONNX Runtime (CPU, CUDA, TensorRT) and OpenVINO (no torch)."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from trainables.stages.export.session import session_options
from trainables.stages.runtimes.base import AbsentError, Batch, Logits, Opened, Runner, random_images

PROVIDERS = {
    "onnxruntime_cpu": "CPUExecutionProvider",
    "onnxruntime_cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def open_file(name: str, path: Path, *, threads: int, batch: int) -> Opened:
    """An ONNX file in a runtime of `backends.RUNTIMES`.

    Raises:
        AbsentError: if it does not run in that runtime.
    """
    if name == "openvino":
        return _open_openvino(path, threads=threads, batch=batch)
    session = _open_session(path, PROVIDERS[name], threads)
    image = session.get_inputs()[0]
    dtype = DTYPES[image.type]
    feed = {image.name: random_images(batch, image.shape[-1]).astype(dtype)}

    def logits(images: Batch) -> Logits:
        return np.asarray(session.run(None, {image.name: images.astype(dtype)})[0], dtype=np.float32)

    cpu = name == "onnxruntime_cpu"
    runner = Runner(
        run=(lambda: session.run(None, feed)) if cpu else _bind_to_device(session, feed),
        provider=session.get_providers()[0],
        device=f"cpu:{threads}" if cpu else "cuda:0",
        batch=batch,
    )
    return Opened(logits=logits, runner=runner)


def _open_session(path: Path, provider: str, threads: int) -> Any:
    """A session whose first provider is the one asked for."""
    if provider not in onnxruntime.get_available_providers():
        have = ", ".join(onnxruntime.get_available_providers())
        raise AbsentError(f"this build of ONNX Runtime has no {provider}, only {have}")
    if provider != "CPUExecutionProvider":
        onnxruntime.preload_dlls()  # the CUDA wheels lie where the loader does not look
    wanted: list[Any] = [provider]
    if provider == PROVIDERS["tensorrt"]:
        wanted = [(provider, _tensorrt_options(path)), PROVIDERS["onnxruntime_cuda"]]  # which runs what it refuses
    session = onnxruntime.InferenceSession(str(path), session_options(threads), providers=wanted)
    # ONNX Runtime falls back to other providers with no more than a line in its log
    if session.get_providers()[0] != provider:
        raise AbsentError(f"{provider} did not load; ONNX Runtime would fall back to {session.get_providers()[0]}")
    session.disable_fallback()  # nor may it change to the CPU when a call fails later
    return session


def _tensorrt_options(path: Path) -> dict[str, str]:
    """What TensorRT may compute in: it takes no precision from the file that is not allowed besides."""
    import onnx  # only here: a process that measures starts without it

    graph = onnx.load(str(path)).graph
    half = any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.initializer)
    integers = any(node.op_type == "DequantizeLinear" for node in graph.node)
    return {"trt_fp16_enable": str(half), "trt_int8_enable": str(integers)}


def _bind_to_device(session: Any, feed: dict[str, Any]) -> Any:
    """A call with input and output in device memory: no copies are timed."""
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
    binding.bind_output(session.get_outputs()[0].name, "cuda", 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    run()  # TensorRT builds its engine, and cuDNN chooses its algorithms, at the first call
    return run


def _open_openvino(path: Path, *, threads: int, batch: int) -> Opened:
    """One request at a time; float32 stays float32, which OpenVINO would lower to bfloat16 where the CPU has it."""
    openvino: Any = importlib.import_module("openvino")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request, image = compiled.create_infer_request(), compiled.input(0)
    size = image.get_partial_shape()[2].get_length()
    dtype = np.float16 if "f16" in str(image.get_element_type()) else np.float32
    feed = openvino.Tensor(random_images(batch, size).astype(dtype))
    devices = compiled.get_property("EXECUTION_DEVICES")
    if list(devices) != ["CPU"]:
        raise AbsentError(f"OpenVINO would run on {devices}, not on the CPU")

    def logits(images: Batch) -> Logits:
        request.infer([openvino.Tensor(np.ascontiguousarray(images.astype(dtype)))])
        return np.array(request.get_output_tensor(0).data, dtype=np.float32)

    runner = Runner(run=lambda: request.infer([feed]), provider="OpenVINO CPU", device=f"cpu:{threads}", batch=batch)
    return Opened(logits=logits, runner=runner)
