import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("sweeps", "trainables", "analysis")

IMPORT_ALL = """
    import importlib, sys
    names, forbidden = sys.argv[1].split(","), sys.argv[2].split(",")
    for name in names:
        importlib.import_module(name)
        print(name, *(bad for bad in forbidden if bad in sys.modules))
"""

HIDE = """
    import importlib, os, sys
    hidden = set(sys.argv[2].split(","))
    class Hiding:
        def __init__(self, finder):
            self.finder = finder
        def find_spec(self, name, *rest):
            return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, *rest)
        def __getattr__(self, name):
            return getattr(self.finder, name)
    sys.meta_path = [Hiding(finder) for finder in sys.meta_path]
"""
IMPORT_WITHOUT = f"""{HIDE}
    for name in sys.argv[1].split(","):
        importlib.import_module(name)
        print(name, *hidden & set(sys.modules))
"""
COLLECT_WITHOUT = f"""{HIDE}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins are among what is hidden
    import pytest
    raise SystemExit(pytest.main(["-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider", sys.argv[1]]))
"""
BEYOND_A_BARE_GPU = (  # which has torch, torchvision, onnx, onnxruntime, scikit-learn and pytest
    *("ray", "optuna", "mlflow", "pandas", "moocore", "plotly", "matplotlib", "markdown_it", "rich", "sqlalchemy"),
    *("safetensors", "pyarrow", "psutil", "pynvml", "torch_pruning", "onnxscript", "openvino", "s3fs", "moto"),
    *("hypothesis", "playwright", "xdist", "pytest_timeout"),
)


def modules(package: str) -> list[str]:
    """Every module below a package, however deep, by its dotted name."""
    folder = ROOT.joinpath(*package.split("."))
    files = (file for file in folder.rglob("*.py") if file.stem not in ("__init__", "__main__"))
    found = sorted(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)
    assert found, f"{package} has no modules: a guard over it would guard nothing"
    return found


def python(script: str, cwd: Path, *arguments: str) -> list[str]:
    """Lines that a script prints in a fresh interpreter outside the repository."""
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("names", "forbidden"),
    [
        (modules("trainables.stages"), ("ray", "mlflow", "optuna")),
        (
            [
                *(name for room in ("config", "records", "store") for name in modules(f"trainables.{room}")),
                *("trainables.files", "trainables.layout", "trainables.locks"),
                *(f"trainables.stages.{name}" for name in ("data.prepared", "data.sources.readers", "export.session")),
                *(f"trainables.stages.runtimes.{name}" for name in ("absence", "base", "cell", "onnx_runtimes")),
                *(f"trainables.stages.measuring.{name}" for name in ("clean_room", "process", "machine", "timing")),
                "trainables.stages.export.scheme",
                *(name for name in modules("trainables.stages.models.devices") if not name.endswith(".accelerator")),
            ],
            ("torch", "ray", "mlflow", "optuna"),
        ),
        (modules("analysis"), ("torch", "ray", "optuna")),
    ],
    ids=["stages without ray", "records and measuring without torch", "analysis without torch"],
)
def test_importing_does_not_pull_in(tmp_path: Path, names: list[str], forbidden: tuple[str, ...]) -> None:
    assert python(IMPORT_ALL, tmp_path, ",".join(names), ",".join(forbidden)) == names


def test_training_needs_torch_alone(tmp_path: Path) -> None:
    names = [name for room in ("data", "models", "training") for name in modules(f"trainables.stages.{room}")]
    absent = "timm,datasets,huggingface_hub,torch_pruning,onnx,onnxscript,onnxruntime,sklearn,ray,mlflow,optuna,pandas"
    assert python(IMPORT_WITHOUT, tmp_path, ",".join(names), absent) == names


def test_exporting_and_measuring_need_torch_and_onnx_alone(tmp_path: Path) -> None:
    """A bare machine to measure on has torch, torchvision, onnx and onnxruntime, and what these bring along."""
    names = [name for room in ("export", "runtimes", "measuring") for name in modules(f"trainables.stages.{room}")]
    absent = "psutil,pynvml,torch_pruning,sklearn,ray,mlflow,optuna,pandas"
    assert python(IMPORT_WITHOUT, tmp_path, ",".join(names), absent) == names


def test_rays_settings_are_made_before_ray_is_imported() -> None:
    """Some are read when its modules are; whatever module of the package comes first, they are there."""
    code = "import os, sweeps, sys; print('ray' in sys.modules, os.environ['RAY_AIR_NEW_OUTPUT'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "0"]


def test_no_file_beside_the_commands_hides_a_module(tmp_path: Path) -> None:
    """`python sweeps/x.py` puts sweeps/ first on sys.path: `sweeps/queue.py` would break every import of queue."""
    stems = sorted(
        {path.stem for path in (ROOT / "sweeps").iterdir() if path.suffix in ("", ".py") and path.stem[0] != "_"}
    )
    assert {"kd_prune", "search", "running"} <= set(stems)
    script = "import importlib.util, sys; print(*filter(importlib.util.find_spec, sys.argv[1:]), sep='\\n')"
    assert python(script, tmp_path, "queue", *stems) == ["queue"]
    assert not set(stems) & set(sys.stdlib_module_names)


def test_one_file_writes_to_mlflow_and_one_reads() -> None:
    """`registry` is a part of the writer that nobody else calls; `mlflow_model` writes a folder and knows no server."""
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    users = {file for file in files if "mlflow" in imported(file)}
    clients = {file for file in users if "MlflowClient" in file.read_text(encoding="utf-8")}
    assert {str(file.relative_to(ROOT)) for file in clients} == {
        *("trainables/tracking/tracker.py", "trainables/tracking/registry.py", "analysis/reading/mlflow_client.py")
    }
    callers = [file for file in files if "trainables.tracking.registry" in file.read_text(encoding="utf-8")]
    assert callers == [ROOT / "trainables/tracking/tracker.py"]
    assert users - clients == {ROOT / "trainables/tracking/mlflow_model.py"}


def imported(file: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_tests_of_a_gpu_are_collected_on_a_machine_with_little_else(tmp_path: Path) -> None:
    lines = python(COLLECT_WITHOUT, tmp_path, str(ROOT / "tests"), ",".join(BEYOND_A_BARE_GPU))
    assert sum("::" in line for line in lines) >= 25
    assert not any("error" in line for line in lines)
