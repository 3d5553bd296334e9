"""Private parts of other libraries: each in one module of ours, below an upper bound, and still where we expect it."""

import ast
import importlib
import inspect
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PACKAGES = ("sweeps", "trainables", "analysis")
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]

HOMES = {
    "optuna": ("sweeps/search/optuna_private.py",),
    "ray": ("sweeps/cluster/ray_private.py",),
    "torch": ("trainables/stages/models/torch_private.py",),
    "mlflow": (
        "analysis/reading/mlflow_sqlite.py",
        "analysis/pages/mlflow_view.py",
        "trainables/tracking/local_store.py",
    ),
}
"""Library -> the modules that use its private parts; no other module may."""
OWNED = {home for homes in HOMES.values() for home in homes}
HIDDEN = ("system_attrs", "max_failures", "run_metadata", "num_failures", "update_resources")
"""Attributes of Optuna's and Ray's trials without an underscore that are undocumented or said to be experimental."""
HIDDEN_TEXTS = (
    "sharedViewState",
    "viewStateShareKey",
    "compareRuns",
    "experimentKind",
    "run_uuid",
    "storage_location",
    "torch._",
    "ray._",
)
"""Parts of strings that name something private."""
STANDARD = {("os", "_exit"), ("super()", "_expand_help"), ("self", "_actions")}
"""Of the standard library: documented, and what argparse's own classes read of each other."""


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def foreign(module: str) -> bool:
    return module.partition(".")[0] not in (*PACKAGES, *sys.stdlib_module_names)


def uses(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """(Line, private part) of everything in a module that belongs to somebody else.

    Args:
        own: private names that classes of ours define; what `self` has besides them comes from a library's class.
    """
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names if foreign(alias.name)]
                yield from ((node.lineno, name) for name in found if any(map(private, name.split("."))))
            case ast.ImportFrom(module=str(module), names=names) if foreign(module):
                found = [f"{module}.{alias.name}" for alias in names]
                yield from ((node.lineno, name) for name in found if any(map(private, name.split("."))))
            case ast.Attribute(value=value, attr=name) if private(name) or name in HIDDEN:
                base = ast.unparse(value)
                if not (base in ("self", "cls") and name in own) and (base, name) not in STANDARD:
                    yield node.lineno, f"{base}.{name}"
            case ast.keyword(arg=str(name)) if private(name):
                yield node.value.lineno, f"the argument {name}"
            case ast.Constant(value=str(text)) if node not in docstrings:
                yield from ((node.lineno, f"the name {name}") for name in HIDDEN_TEXTS if name in text)


def own_names() -> set[str]:
    """Private names that classes of ours define: methods, class attributes, what they assign to `self`."""
    found: set[str] = set()
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in FILES if name_of(file) not in OWNED]
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for part in ast.walk(node):
            match part:
                case ast.FunctionDef(name=name) | ast.Attribute(attr=name, ctx=ast.Store()):
                    found.add(name)
                case ast.AnnAssign(target=ast.Name(id=name), value=value) if value is not None:
                    found.add(name)
                case ast.Assign(targets=[ast.Name(id=name)]):
                    found.add(name)
    return found


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_private_parts_are_used_in_the_modules_of_their_library_alone() -> None:
    own = own_names()
    found = {
        name_of(file): [f"{name_of(file)}:{line} uses {what}" for line, what in uses(ast.parse(file.read_text()), own)]
        for file in FILES
    }
    wrong = [line for name, lines in found.items() if name not in OWNED for line in lines]
    assert not wrong, "Private parts of other libraries belong in the modules of HOMES:\n" + "\n".join(wrong)
    assert all(found[name] for name in OWNED), "a module of HOMES uses nothing private any more: take it out"


@pytest.mark.parametrize(
    "code",
    [
        "import ray._private.services",
        "from ray._private import ray_constants",
        "from torch.nn.modules.batchnorm import _BatchNorm",
        "def f(study): return study._storage",
        "def f(study, all): return study.sampler._trials(all)",
        "class Later(Sampler):\n def f(self): return self._reseed_everything()",
        "ray.init(_node_ip_address='127.0.0.1')",
        "trial.max_failures = 3",
        "client.set_experiment_tag('0', f'mlflow.sharedViewState.{name}', view)",
        "query = 'SELECT run_uuid FROM runs'",
        "if 'torch._dynamo' in sys.modules: pass",
    ],
)
def test_every_kind_of_private_part_would_be_seen(code: str) -> None:
    assert list(uses(ast.parse(code), {"_reseed"}))


def test_what_is_public_or_ours_is_no_private_part() -> None:
    code = """
import os
from trainables.stages.export.writer import _ours
class Mine(Sampler):
    def f(self):
        '''Says torch._dynamo.'''
        self._reseed(), super().__init__(), os._exit(0), self.model.__class__
        return Config(max_failures=3)
"""
    assert not list(uses(ast.parse(code), {"_reseed"}))


def bounds() -> dict[str, list[Requirement]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    wanted = [Requirement(line) for line in lines]
    return {name: [one for one in wanted if one.name == name] for name in HOMES}


@pytest.mark.parametrize("library", HOMES)
def test_a_library_whose_private_parts_are_used_has_an_upper_bound(library: str) -> None:
    wanted = bounds()[library]
    assert wanted
    for requirement in wanted:
        assert "<" in {one.operator for one in requirement.specifier}, f"{requirement} has no upper bound"
        assert requirement.specifier.contains(version(library)), f"tested with {library} {version(library)}"


def there(library: str, holder: Any, *names: str) -> None:
    """Fail, with what to do, if an object, or a module by its name, lacks an attribute or is not there."""
    if isinstance(holder, str):
        try:
            holder = importlib.import_module(holder)
        except ImportError:
            pytest.fail(moved(library, holder))
    for name in names:
        if not hasattr(holder, name):
            what = f"{getattr(holder, '__name__', type(holder).__name__)}.{name}"
            pytest.fail(moved(library, what))


def moved(library: str, what: str) -> str:
    homes = " and ".join(HOMES[library])
    return (
        f"{library} {version(library)} has no `{what}` any more: change {homes}, or bound {library} below this version "
        "in pyproject.toml."
    )


def test_a_part_that_has_moved_is_named_with_what_to_do() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"has no `Path._gone` any more: change sweeps/search/.* or bound"):
        there("optuna", Path, "exists", "_gone")
    with pytest.raises(pytest.fail.Exception, match=r"optuna .* has no `optuna._gone` any more"):
        there("optuna", "optuna._gone")


def test_optuna_has_what_we_use() -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    from sweeps.search.optuna_private import asked_for, cached_trials, trial_of

    study = optuna.create_study()
    there("optuna", study, "_get_trials", "_storage", "_study_id")
    there("optuna", study._storage, "get_trial_id_from_study_id_trial_number")
    arguments = list(inspect.signature(study._get_trials).parameters)
    wanted = ["deepcopy", "states", "use_cache"]
    assert arguments == wanted, moved("optuna", f"Study._get_trials({', '.join(wanted)})")
    study.enqueue_trial({"x": 0.25})
    queued = study.get_trials(deepcopy=False)[0]
    there("optuna", queued, "system_attrs")
    assert asked_for(queued) == {"x": 0.25}, moved("optuna", 'FrozenTrial.system_attrs["fixed_params"]')
    trial = study.ask()
    trial_of(study, trial.number).set_user_attr("seen", True)
    study.tell(trial, 1.0)
    assert study.trials[0].user_attrs == {"seen": True}
    assert [one.number for one in cached_trials(study)] == [0]
    there("optuna", "optuna.storages.journal._storage", "JournalStorageReplayResult")
    assert "_log_number_offset" in inspect.getsource(JournalFileBackend), moved(
        "optuna", "JournalFileBackend._log_number_offset"
    )


def test_optunas_samplers_read_a_study_by_the_method_that_a_part_of_it_has() -> None:
    import optuna

    from sweeps.search.optuna_private import PartOfStudy

    study = optuna.create_study()
    known = {"x": optuna.distributions.FloatDistribution(0, 1)}
    study.add_trial(optuna.create_trial(params={"x": 0.25}, distributions=known, value=1.0))
    space = optuna.search_space.IntersectionSearchSpace().calculate(PartOfStudy(study, []))
    assert space == {}, moved("optuna", "the way samplers read a study, `Study._get_trials`")
    assert set(optuna.search_space.IntersectionSearchSpace().calculate(PartOfStudy(study, study.trials))) == {"x"}


def test_ray_has_what_we_use() -> None:
    import ray
    from ray.tune.experiment import Trial

    there("ray", "ray._private.ray_constants", "ENABLE_RAY_CLUSTER")
    from sweeps.cluster.ray_private import allow_failures, forgive_failure, give_resources

    there("ray", "ray._private.node", "Node")
    there("ray", ray._private.node.Node, "start_api_server")
    there("ray", "ray._raylet", "Config", "AuthenticationTokenLoader")
    for name in ("_node_ip_address", "_temp_dir", "_system_config"):
        assert name in inspect.getsource(ray.init), moved("ray", f"init({name}=)")
    trial = Trial("a trainable", stub=True)
    there("ray", trial, "max_failures", "num_failures", "update_resources")
    trial.run_metadata.num_failures = 1
    assert not trial.should_recover()
    allow_failures(trial, 2)
    assert trial.should_recover(), moved("ray", "Trial.max_failures")
    trial.run_metadata.num_failures = 4
    assert not trial.should_recover()
    forgive_failure(trial)
    assert trial.should_recover(), moved("ray", "Trial.max_failures")
    give_resources(trial, {"cpu": 3.0})
    assert trial.placement_group_factory.required_resources == {"CPU": 3.0}, moved("ray", "Trial.update_resources")


def test_torch_has_what_we_use() -> None:
    import torch
    from torch import nn

    there("torch", "torch.nn.modules.batchnorm", "_BatchNorm")
    from trainables.stages.models.torch_private import BatchNorm

    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        assert issubclass(kind, BatchNorm), moved("torch", f"_BatchNorm as a base of {kind.__name__}")
    there("torch", "torch._inductor.cpp_builder", "get_cpp_compiler")
    there("torch", "torch._inductor.exc", "InvalidCxxCompiler")
    assert "import torch._dynamo\n" in inspect.getsource(torch.compiler.reset), moved("torch", "_dynamo")


def test_mlflow_has_what_we_use() -> None:
    import mlflow.server

    there("mlflow", "mlflow.store.tracking.dbmodels.models")
    from mlflow.store.tracking.dbmodels import models

    columns = {
        "SqlRun": {"run_uuid", "experiment_id", "start_time", "artifact_uri", "lifecycle_stage"},
        "SqlTag": {"run_uuid", "key", "value"},
        "SqlParam": {"run_uuid", "key", "value"},
        "SqlLatestMetric": {"run_uuid", "key", "value", "is_nan"},
        "SqlMetric": {"run_uuid", "key", "value", "is_nan", "step"},
        "SqlExperiment": {"artifact_location"},
    }
    tables = {"SqlRun": "runs", "SqlTag": "tags", "SqlParam": "params", "SqlLatestMetric": "latest_metrics"}
    tables |= {"SqlMetric": "metrics", "SqlExperiment": "experiments"}
    for name, wanted in columns.items():
        there("mlflow", models, name)
        table = getattr(models, name).__table__
        assert table.name == tables[name], moved("mlflow", f"table {tables[name]}")
        lost = wanted - set(table.columns.keys())
        assert not lost, moved("mlflow", f"{table.name}.{min(lost, default='')}")
    there("mlflow", "mlflow.store.model_registry.dbmodels.models", "SqlModelVersion")
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion

    assert SqlModelVersion.__tablename__ == "model_versions", moved("mlflow", "table model_versions")
    there("mlflow", SqlModelVersion, "source", "storage_location")
    pages = Path(mlflow.server.__file__).parent / "js/build/static/js"
    scripts = [script.read_text(encoding="utf-8") for script in sorted(pages.rglob("*.js"))]
    words = ("mlflow.sharedViewState", "viewStateShareKey", "mlflow.experimentKind", "custom_model_development")
    for word in (*words, "compareRunsMode", "compareRunSections", "compareRunCharts", "runsHiddenMode", "SHOWALL"):
        assert any(word in script for script in scripts), moved("mlflow", f"{word} of its pages")
