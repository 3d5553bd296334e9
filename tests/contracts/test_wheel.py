"""The wheel holds what its commands import, and they run where there is no checkout."""

import os
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from tests.contracts.test_rooms import MODULES, ROOT
from trainables.config.flags import ENTRY_POINTS, as_typed

RUN = """
import sys
from importlib.metadata import PathDistribution
from pathlib import Path
site, name, *words = sys.argv[1:]
sys.path.insert(0, site)
sys.argv = [f"/usr/local/bin/{name}", *words]
(distribution,) = (PathDistribution(path) for path in Path(site).glob("*.dist-info"))
(entry,) = distribution.entry_points.select(group="console_scripts", name=name)
main = entry.load()
ours = [module for module in sys.modules.values() if module.__name__.split(".")[0] in {packages}]
assert ours and all(module.__file__.startswith(site) for module in ours), "imported from the checkout"
sys.exit(main())
"""
PACKAGES = ("sweeps", "trainables", "analysis")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel: what `pip install --no-deps --target` unpacks."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, name: str, *words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-P", "-c", RUN.replace("{packages}", repr(PACKAGES)), str(site), name, *words]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=120)


def test_the_wheel_holds_every_module_and_file_of_the_packages_and_nothing_else(site: Path) -> None:
    inside = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    files = {"analysis/plots/front_page.html", "sweeps/cluster/kuberay.yaml", "sweeps/cluster/slurm.sh"}
    files |= {"analysis/serving/assets/page.css", "analysis/serving/assets/page.js"}
    modules = {file.relative_to(ROOT).as_posix() for file in MODULES.values()}
    assert {name for name in inside if ".dist-info/" not in name} == modules | files


def test_the_wheel_says_where_it_runs_and_which_licence_it_has(site: Path) -> None:
    (distribution,) = (PathDistribution(path) for path in site.glob("*.dist-info"))
    told = distribution.metadata.get_all("Classifier") or []
    systems = {line.partition(" :: ")[2] for line in told if line.startswith("Operating System")}
    assert systems == {"POSIX :: Linux", "MacOS"}
    assert not [line for line in distribution.requires or [] if "win32" in line], (
        "a dependency for Windows, where locks.py cannot be imported"
    )
    assert distribution.metadata["License-Expression"] == "MIT"
    named = {entry.name for entry in distribution.entry_points.select(group="console_scripts")}
    assert named == {*ENTRY_POINTS.values(), "compression-analysis", "compression-store"}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("compression-sweep", "compression-sweep --preset quick "),
        ("compression-ablation", "compression-ablation --preset distillation --base quick"),
        ("compression-studies", "[FLAGS of compression-ablation]"),
        ("compression-runtimes", "compression-runtimes --name NAME"),
        ("compression-analysis", "python -m analysis select"),
        ("compression-store", "usage: python -m trainables.store"),
    ],
)
def test_every_command_shows_its_help_outside_the_checkout(site: Path, tmp_path: Path, name: str, says: str) -> None:
    done = run(site, name, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert says in done.stdout
    assert ".py" not in done.stdout.replace("predict.py", ""), "a script that is not installed"
    assert list(tmp_path.iterdir()) == []


def test_an_error_names_the_command_that_was_typed(site: Path, tmp_path: Path) -> None:
    done = run(site, "compression-studies", "pruning", "--storage", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("compression-studies: --storage: ")
    assert done.stderr.endswith("take compression-ablation.\n")


def test_in_a_checkout_commands_are_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "python sweeps/kd_prune.py --plan"
    monkeypatch.setattr(sys, "argv", [str(ROOT / "sweeps" / "kd_prune.py")])
    assert as_typed(text) == text
    monkeypatch.setattr(sys, "argv", ["/venv/bin/compression-sweep"])
    assert as_typed(text) == "compression-sweep --plan"
    assert as_typed("my_ablation.py") == "my_ablation.py"


def test_windows_is_told_in_one_line(tmp_path: Path) -> None:
    script = "import sys; sys.platform = 'win32'; import trainables.locks"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1].startswith("ImportError: Linux or macOS is needed")
