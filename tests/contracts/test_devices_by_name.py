"""One module knows kinds of devices; everything else takes what PyTorch finds."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("trainables", "sweeps", "analysis")
HOME = "trainables/stages/models/devices/accelerator.py"
OF_RUNTIMES = {
    *(f"trainables/stages/runtimes/{name}.py" for name in ("base", "onnx_runtimes", "torch_runtimes")),
    *(f"analysis/pages/{name}.py" for name in ("study_tables", "runtime_table")),
}
"""Runtimes that are CUDA's alone and say so in their names, and tables that read those names from records."""
KINDS = {"cuda", "xpu", "hip", "hpu", "mtia", "is_cuda", "is_xpu", "is_mps", "cudnn"}
"""Names and texts that stand for one kind of device; `mps` is Apple's, and NVIDIA's Multi-Process Service too."""


def kinds_in(text: str) -> Iterator[tuple[str, int]]:
    """Kinds of devices that code names, with their lines: as an attribute, or as the whole text before a colon."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr in KINDS:
            yield node.attr, node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.partition(":")[0] in KINDS:
            yield node.value, node.lineno


def test_one_module_names_kinds_of_devices() -> None:
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if named := list(kinds_in(file.read_text(encoding="utf-8"))):
                found[str(file.relative_to(ROOT))] = named
    assert HOME in found, "the guard looks for nothing"
    assert found.keys() - {HOME} == OF_RUNTIMES, {name: found[name] for name in found.keys() - {HOME} - OF_RUNTIMES}


def test_a_kind_of_device_would_be_seen() -> None:
    for text in ("torch.cuda.synchronize()", "device == 'cuda'", "torch.device('cuda:0')", "images.is_cuda"):
        assert list(kinds_in(text)), text
    assert not list(kinds_in("check_runtime('onnxruntime_cuda')"))
