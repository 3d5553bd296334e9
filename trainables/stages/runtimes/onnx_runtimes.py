"""Open ONNX files in ONNX Runtime (CPU, CUDA, TensorRT) and OpenVINO (no torch)."""

import contextlib
import ctypes
import importlib
import io
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
# Of those that ONNX Runtime loads when they are asked for.
LIBRARIES = {
    "onnxruntime_cuda": "libonnxruntime_providers_cuda.so",
    "tensorrt": "libonnxruntime_providers_tensorrt.so",
}
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def find_missing_provider(name: str) -> str:
    """Find what ONNX Runtime lacks for one of `PROVIDERS`; return it as one line, or an empty string.

    The provider's library is loaded as ONNX Runtime will load it, which starts no context on a GPU.
    """
    provider, have = PROVIDERS[name], onnxruntime.get_available_providers()
    if provider not in have:
        return f"this build of ONNX Runtime has no {provider}, only {', '.join(have)}"
    if name not in LIBRARIES:
        return ""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        onnxruntime.preload_dlls()  # the loader does not search the folders of the CUDA wheels
    library = Path(onnxruntime.__file__).parent / "capi" / LIBRARIES[name]
    if library.exists():  # elsewhere on Windows
        try:
            ctypes.CDLL(str(library.with_name("libonnxruntime_providers_shared.so")))
            ctypes.CDLL(str(library))
        except OSError as error:
            return f"ONNX Runtime's {provider} does not load ({error})"
    return ""


def open_file(name: str, path: Path, *, threads: int, batch: int) -> Opened:
    """Open an ONNX file in one of `base.RUNTIMES`.

    Raises:
        AbsentError: if the file would not run there, but in another provider or on another device.
    """
    if name == "openvino":
        return _open_openvino(path, threads=threads, batch=batch)
    session = _open_session(path, name, threads)
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


def _open_session(path: Path, name: str, threads: int) -> Any:
    """Open a session that runs in the provider of a runtime."""
    if missing := find_missing_provider(name):
        raise AbsentError(missing)
    provider = PROVIDERS[name]
    wanted: list[Any] = [provider]
    if provider == PROVIDERS["tensorrt"]:
        # CUDA runs the operators that TensorRT refuses
        wanted = [(provider, _tensorrt_options(path)), PROVIDERS["onnxruntime_cuda"]]
    session = onnxruntime.InferenceSession(str(path), session_options(threads), providers=wanted)
    # ONNX Runtime falls back to another provider with only a line in its log
    if session.get_providers()[0] != provider:
        raise AbsentError(f"{provider} did not load; ONNX Runtime would fall back to {session.get_providers()[0]}")
    session.disable_fallback()  # otherwise a call that fails later would be repeated on the CPU
    return session


def _tensorrt_options(path: Path) -> dict[str, str]:
    """Allow TensorRT the precisions of the file, which it does not use unless they are allowed explicitly."""
    import onnx  # only here: a measuring process starts faster without it

    graph = onnx.load(str(path)).graph
    half = any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in graph.initializer)
    integers = any(node.op_type == "DequantizeLinear" for node in graph.node)
    return {"trt_fp16_enable": str(half), "trt_int8_enable": str(integers)}


def _bind_to_device(session: Any, feed: dict[str, Any]) -> Any:
    """Return a call with input and output in device memory, so that copies are not timed."""
    binding = session.io_binding()
    for name, value in feed.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
    binding.bind_output(session.get_outputs()[0].name, "cuda", 0)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    run()  # in the first call TensorRT builds its engine and cuDNN chooses its algorithms
    return run


def _open_openvino(path: Path, *, threads: int, batch: int) -> Opened:
    """Open a file in OpenVINO for one request at a time."""
    openvino: Any = importlib.import_module("openvino")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": "f32",  # otherwise OpenVINO lowers float32 to bfloat16 on CPUs that have it
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
