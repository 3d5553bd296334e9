"""cluster.yaml, both halves, against the checks that `ray up` itself makes, and ours for what Ray lets through."""

import copy
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from sweeps.cluster.joining import NOT_SHIPPED

FILE = Path(__file__).parents[2] / "cluster.yaml"
PACKAGES = ("sweeps", "trainables", "analysis")
MARK = "# ==== Machines of your own"


def halves() -> dict[str, dict[str, Any]]:
    aws, _, rest = FILE.read_text(encoding="utf-8").partition(MARK)
    lines = rest.splitlines()[1:]
    assert all(line.startswith("# ") for line in lines)
    return {"aws": yaml.safe_load(aws), "local": yaml.safe_load("\n".join(line[2:] for line in lines))}


@pytest.fixture(params=["aws", "local"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return halves()[request.param]


def test_ray_up_accepts_it(config: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_up_would_refuse_a_typing_error(config: dict[str, Any]) -> None:
    broken = {**config, "max_wrokers": 3}
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config(broken))


def test_nothing_listens_to_the_world(config: dict[str, Any]) -> None:
    starts = " ".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert "0.0.0.0" not in starts
    assert "--dashboard-host=127.0.0.1" in starts
    assert starts.count("RAY_AUTH_MODE=token") == starts.count("ray start ")
    (server,) = [command for command in config["head_start_ray_commands"] if "mlflow server" in command]
    for part in ("--host 127.0.0.1", "--workers 1", "--allowed-hosts", "ENABLE_JOB_EXECUTION=false"):
        assert part in server


def test_every_node_gets_this_project_and_no_nightly_build(config: dict[str, Any]) -> None:
    commands = config["setup_commands"]
    assert any("uv sync" in command and "--extra cluster" in command for command in commands)
    assert config["file_mounts"]["~/compression-sweeps"] == "."


def test_no_file_of_ours_stays_behind(config: dict[str, Any], tmp_path: Path) -> None:
    """Neither `ray up`, nor a driver that joins a cluster, leaves a package out because of its name."""
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=FILE.parent, capture_output=True, text=True, check=True
    )
    ours = set(tracked.stdout.split())
    assert "trainables/stages/data/__init__.py" in ours
    create_package(str(FILE.parent), tmp_path / "shipped.zip", include_gitignore=True, excludes=list(NOT_SHIPPED))
    with zipfile.ZipFile(tmp_path / "shipped.zip") as shipped:
        assert ours <= set(shipped.namelist())
    ignored = (FILE.parent / ".gitignore").read_text(encoding="utf-8").split()
    assert config["rsync_filter"] == [".gitignore"]
    for pattern in [*config["rsync_exclude"], *ignored]:
        names = pattern.strip("*/").split("/")
        at_top = pattern.startswith("/")
        assert not [path for path in ours if names[0] in (path.split("/")[:1] if at_top else path.split("/"))], pattern


def test_aws_workers_are_spot_and_every_node_is_in_a_group_of_the_users_own() -> None:
    types = halves()["aws"]["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu_spot"]["min_workers"] == 0 < types["gpu_spot"]["max_workers"]
    assert all(kind["node_config"]["SecurityGroupIds"] for kind in types.values())
