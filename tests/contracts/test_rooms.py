"""The rooms of the house and their doors: who may import whom, no cycle, four to nine entries a folder."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("trainables", "analysis", "sweeps")

LINES = """
    trainables.config trainables.layout trainables.files trainables.locks
    trainables.records analysis.reading
    trainables.stages.models.devices
    trainables.store trainables.stages.data analysis.findings analysis.shipping
    trainables.stages.data.augment trainables.stages.models trainables.tracking sweeps.search analysis.plots
    trainables.stages.workspace sweeps.cluster sweeps.search.sampling analysis.pages analysis.serving
    trainables.stages.training sweeps.display analysis.commands analysis.sync
    trainables.stages.pruning
    trainables.stages.export
    trainables.stages.runtimes
    trainables.stages.measuring
    trainables.stages.candidate sweeps.planning
    trainables.trials
    sweeps.running.tune
    sweeps.running
    sweeps.running.interface
    sweeps.kd_prune sweeps.ablation sweeps.runtimes analysis.__main__
    sweeps.studies
"""
"""From the ground floor upwards. A room imports those on the lines before its own, and nobody beside or above it."""
GROUND = ("trainables.config", "trainables.layout", "trainables.files", "trainables.locks")
"""Rooms of one line that may use each other, as long as no module is in a cycle."""
LEVEL = {room: level for level, line in enumerate(LINES.strip().splitlines()) for room in line.split()}


def name_of(file: Path) -> str:
    """The dotted name of a module or, for `__init__.py`, of its package."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}


def room_of(module: str) -> str:
    """The room that a module lies in: the longest name among the lines that it begins with."""
    found = [room for room in LEVEL if module == room or module.startswith(f"{room}.")]
    assert found, f"{module} lies in no room; give its folder a line in LINES"
    return max(found, key=len)


def arrows(module: str) -> Iterator[tuple[str, int]]:
    """Every module of ours that a module imports, wherever in it, with the line."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}:{node.lineno} imports relatively"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if (found := full if full in MODULES else node.module) in MODULES:
                    yield found, node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in MODULES)


def test_there_are_modules_to_look_at() -> None:
    assert len(MODULES) > 150
    assert set(LEVEL) <= {*MODULES} | {name.rpartition(".")[0] for name in MODULES}, "a line names no room"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_arrow_runs_back_up(package: str) -> None:
    wrong = []
    for module in MODULES:
        if not module.startswith(f"{package}.") or module.endswith("__init__") or MODULES[module].stem == "__init__":
            continue
        home = room_of(module)
        for target, line in arrows(module):
            if MODULES[target].stem == "__init__":
                continue
            there = room_of(target)
            beside = home in GROUND and there in GROUND
            if home != there and not beside and LEVEL[there] >= LEVEL[home]:
                wrong.append(f"{module}:{line} imports {target}: {home} may not use {there}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("package", "allowed"), [("trainables", {"trainables"}), ("analysis", {"analysis", "trainables"})]
)
def test_arrows_between_packages_do_not_turn_round(package: str, allowed: set[str]) -> None:
    for module in MODULES:
        if module.partition(".")[0] == package:
            assert {target.partition(".")[0] for target, _ in arrows(module)} <= allowed, module


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {target for target, _ in arrows(module)} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_rooms_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {room: set() for room in LEVEL}
    for module, file in MODULES.items():
        if file.stem == "__init__":
            continue
        there = {room_of(target) for target, _ in arrows(module) if MODULES[target].stem != "__init__"}
        graph[room_of(module)] |= there - {room_of(module)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_folder_has_four_to_nine_entries_and_says_what_belongs_there() -> None:
    folders = sorted({file.parent for file in MODULES.values()})
    assert len(folders) > 20
    for folder in folders:
        entries = [path for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
        count = len(entries) - 1
        assert 4 <= count <= 9, f"{folder.relative_to(ROOT)} has {count} entries"
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(text))
        assert docstring and "\n" not in docstring, f"{folder.relative_to(ROOT)}/__init__.py needs its one line"
        if folder != ROOT / "sweeps":  # whose settings must be there before Ray is imported
            assert len(ast.parse(text).body) == 1, f"{folder.relative_to(ROOT)}/__init__.py holds code"


def test_no_file_is_over_300_lines() -> None:
    long = {name: count for name, file in MODULES.items() if (count := len(file.read_text().splitlines())) > 300}
    assert not long


def test_an_arrow_that_turns_round_would_be_seen() -> None:
    """The proof proves something: a stage that imported the sweep's trials would be found."""
    assert LEVEL["trainables.stages.training"] < LEVEL["trainables.trials"] < LEVEL["sweeps.running"]
    assert room_of("trainables.stages.data.augment.views") == "trainables.stages.data.augment"
    assert ("trainables.store.results", 2) not in set(arrows("trainables.store.entries"))
    with pytest.raises(AssertionError, match="lies in no room"):
        room_of("trainables.stages.nowhere")
