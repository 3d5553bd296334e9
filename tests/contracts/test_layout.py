"""The names of files and folders below OUT stand in `trainables.layout` alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainables import layout

ROOT = Path(__file__).parents[2]
HOME = ROOT / "trainables" / "layout.py"
PRODUCT = [path for package in ("trainables", "sweeps", "analysis") for path in sorted((ROOT / package).rglob("*.py"))]

NAMES = {value for name, value in vars(layout).items() if name.isupper() and isinstance(value, str)}
FILES = {name for name in NAMES if "." in name}
FOLDERS = NAMES - FILES
"""Words such as `teacher` mean a stage or a column, too: they are looked for where paths are built."""
PATH_CALLS = ("glob", "rglob", "joinpath", "with_name", "Path")


def found(text: str) -> Iterator[tuple[int, str]]:
    """(line, literal) wherever code names a file or folder of the layout; docstrings and texts for users excepted."""
    tree = ast.parse(text)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            if "\n" not in node.value and any(name in node.value for name in FILES):
                yield node.lineno, node.value
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield from named(node.left, node.right)
        elif isinstance(node, ast.Call) and called(node) in PATH_CALLS:
            yield from named(*node.args)


def called(call: ast.Call) -> str:
    """The last word of what is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def named(*nodes: ast.expr) -> Iterator[tuple[int, str]]:
    """Literals among parts of a path that name a folder of the layout."""
    for node in nodes:
        if isinstance(node, ast.Subscript):  # a key, such as `Path(row["artifacts"])`
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and FOLDERS & {*part.value.split("/")}:
                yield part.lineno, part.value


def test_no_name_of_the_layout_stands_anywhere_else() -> None:
    assert len(PRODUCT) > 150
    assert {"record.json", "model.onnx", "sweep.json", "mlflow.db"} <= FILES
    assert {"teacher", "trials", "store", "leases", "front"} <= FOLDERS
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {literal!r}"
        for path in PRODUCT
        if path != HOME
        for line, literal in found(path.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        'folder / "record.json"',
        'paths = sweep.glob("trials/*")',
        'f"{name}/model.onnx"',
        'out / "sweeps" / name',
        'open_study(out / (x or "store"))',
        'Path("front")',
    ],
)
def test_a_literal_would_be_found(code: str) -> None:
    assert list(found(code))


@pytest.mark.parametrize("code", ['stage = "teacher"', '"""Writes record.json."""', 'names = ("trials", "front")'])
def test_a_word_that_is_no_path_is_not(code: str) -> None:
    assert not list(found(code))


def test_folders_with_a_record_are_listed_in_order(tmp_path: Path) -> None:
    for name in ("00010", "00002", "unfinished"):
        (tmp_path / layout.TRIALS / name).mkdir(parents=True)
    for number in (2, 10):
        folder = layout.trial_folder(tmp_path, number)
        (folder / "record.json").write_text("{}")
        assert layout.has_record(folder)
    assert [path.name for path in layout.recorded(tmp_path / "trials")] == ["00002", "00010"]
    assert layout.recorded(tmp_path / "champions") == []
    assert layout.out_of(layout.sweep_folder(tmp_path, "quick")) == tmp_path
