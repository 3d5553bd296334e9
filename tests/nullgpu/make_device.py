"""Builds the stand-in for a CUDA device with `cc`, for the torch of this environment: python make_device.py FOLDER

Into FOLDER come libnullgpu.so (runtime, cuBLAS and cuDNN, to be loaded before torch) and lib/libcuda.so.1 (the driver).
What torch asks of these libraries beyond the C files beside this one gets a function that says "success".
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("memory.c", "streams.c", "kernels.c")
DRIVER = (  # what Triton's launchers ask for; torch's own needs are read from its libraries
    *("cuLaunchKernelEx", "cuOccupancyMaxActiveClusters", "cuTensorMapEncodeTiled", "cuStreamSynchronize"),
    *("cuMemAlloc_v2", "cuMemFree_v2", "cuGetProcAddress_v2"),
)
CUDA_HEADER = "nvidia/*/include/cuda_runtime_api.h"
REAL = {"cudnnGetVersion", "cudnnGetCudartVersion"}  # the installed cuDNN answers


class CannotBuildError(RuntimeError):
    """There can be no stand-in here; the message says why."""


def make(folder: Path) -> Mapping[str, str]:
    """Build into `folder`; return the environment variables that put a new process on the stand-in.

    Raises:
        CannotBuildError: if this machine or this environment lacks something.
    """
    site = _site_packages()
    torch = site / "torch" / "lib"
    graph_header = (site / "nvidia/cudnn/include/cudnn_graph.h").read_text(encoding="utf-8")
    found = re.search(r"CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE\s*=\s*(\d+)", graph_header)
    assert found, "cuDNN's header has changed"
    (folder / "lib").mkdir(parents=True, exist_ok=True)
    runtime = site / "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    wanted = {*_undefined(torch / "libtorch_cuda.so"), *(_undefined(runtime) if runtime.exists() else ())}
    asked = sorted(name for name in wanted if re.match("cu(blas|dnn|rand)", name) and name not in REAL)
    libraries = folder / "libraries.c"
    libraries.write_text(_completed("libraries.c", asked) + "\n")
    driver = folder / "driver.c"
    names = {*DRIVER, *(name for name in _undefined(torch / "libcaffe2_nvrtc.so") if name.startswith("cu"))}
    driver.write_text(_completed("driver.c", sorted(names)) + "\n")
    includes = [f"-I{HERE / 'device'}", f"-I{next(site.glob(CUDA_HEADER)).parent}"]
    own = [str(HERE / "device" / name) for name in SOURCES]
    library = folder / "libnullgpu.so"
    _compile(library, [*own, str(libraries), *includes, f"-DWORKSPACE_SIZE={found[1]}", "-lpthread", "-ldl"])
    _compile(folder / "lib" / "libcuda.so.1", [str(driver)])
    before = os.environ.get("LD_LIBRARY_PATH")
    return {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(folder / "lib"), before))),
        "CUDA_VISIBLE_DEVICES": "0",
    }


def _site_packages() -> Path:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise CannotBuildError(f"the stand-in for CUDA is for x86-64 Linux, but this is {platform.machine()}")
    for tool in ("cc", "nm"):
        if shutil.which(tool) is None:
            raise CannotBuildError(f"the stand-in for CUDA is built with {tool}, which is not here")
    torch = importlib.util.find_spec("torch")
    assert torch is not None and torch.origin is not None
    site = Path(torch.origin).parents[1]
    if not any(site.glob(CUDA_HEADER)) or not (site / "nvidia/cudnn/include").exists():
        raise CannotBuildError("this torch comes without the headers of CUDA and cuDNN: no CUDA build from PyPI")
    return site


def _undefined(library: Path) -> set[str]:
    """Names that a library expects of others."""
    said = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1].partition("@")[0] for line in said.splitlines() if line.split()}


def _completed(source: str, names: Iterable[str]) -> str:
    """The text of a C file, with a function for each of the names that it does not define."""
    text = (HERE / "device" / source).read_text(encoding="utf-8")
    defined = set(re.findall(r"\b(cu\w+)\s*\(", text))
    return "\n".join([text, *(_function(name) for name in names if name not in defined)])


def _function(name: str) -> str:
    if re.match("cublasLtCreate|curandCreateGenerator$|cudnnCreate", name):
        return f"int {name}(void **made) {{ *made = calloc(1, 256); return 0; }}"
    if name.startswith("cudnnDestroy"):
        return f"int {name}(void *made) {{ free(made); return 0; }}"
    if name.startswith("cublas") and re.search("[Gg]em[mv]|[Dd]ot|trsm", name):
        return f"int {name}() {{ COUNT(blas); return 0; }}"
    if re.search("BatchNormalization(Forward|Backward)|Convolution(Forward|Backward)|Pooling", name):
        return f"int {name}() {{ COUNT(dnn); return 0; }}"
    return f"int {name}() {{ return 0; }}"


def _compile(library: Path, rest: Iterable[str]) -> None:
    command = ["cc", "-shared", "-fPIC", "-O1", "-w", "-o", str(library), *rest]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotBuildError(f"cc does not build the stand-in for CUDA: {done.stderr.strip()[:400]}")


if __name__ == "__main__":
    for setting, value in make(Path(sys.argv[1]).resolve()).items():
        print(f"export {setting}={value}")
