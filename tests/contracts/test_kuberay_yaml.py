"""sweeps/cluster/kuberay.yaml against the schema of KubeRay's own resource, and against what README.md says of it."""

import copy
import json
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from sweeps import kd_prune

ROOT = Path(__file__).parents[2]
FILE = ROOT / "sweeps" / "cluster" / "kuberay.yaml"


def strict(schema: Any) -> Any:
    """The schema as kubectl applies it: a field that it does not name is a mistake."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        closed.setdefault("additionalProperties", schema.get("x-kubernetes-preserve-unknown-fields", False))
    return closed


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The custom resource definition, strict; `metadata` is Kubernetes' own and open."""
    told = json.loads((Path(__file__).parent / "raycluster_schema.json").read_text(encoding="utf-8"))
    assert told["licence"].startswith("Apache-2.0")
    closed: dict[str, Any] = strict(told["schema"])
    closed["properties"]["metadata"] = {"type": "object"}
    return closed


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILE.read_text(encoding="utf-8")))


@pytest.fixture
def cluster() -> dict[str, Any]:
    return copy.deepcopy(documents()[1])


def test_the_operator_accepts_it(cluster: dict[str, Any], schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(cluster, schema)


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("spec",), "headGroupSpecs", {}),
        (("spec", "authOptions"), "mode", "password"),
        (("spec", "headGroupSpec", "rayStartParams"), "num-cpus", 0),
        (("spec", "workerGroupSpecs", 0), "maxReplicas", "8"),
        (("spec", "headGroupSpec", "template", "spec", "containers", 0), "volumeMount", []),
    ],
)
def test_it_would_refuse_a_typing_error(
    path: tuple[Any, ...], key: str, value: object, cluster: dict[str, Any], schema: dict[str, Any]
) -> None:
    place = cluster
    for step in path:
        place = place[step]
    place[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster, schema)


def test_it_is_the_cluster_that_sweeps_want(cluster: dict[str, Any]) -> None:
    spec = cluster["spec"]
    assert spec["rayVersion"] == version("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] and spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] == 0 < workers["maxReplicas"]
    (head,), (worker,) = (group["template"]["spec"]["containers"] for group in (spec["headGroupSpec"], workers))
    assert head["image"] == worker["image"], "drivers and trials need the same code"
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    claim = documents()[0]
    assert claim["kind"] == "PersistentVolumeClaim"
    (volume,) = spec["headGroupSpec"]["template"]["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_its_names_are_those_of_the_commands_above_it(cluster: dict[str, Any]) -> None:
    text = FILE.read_text(encoding="utf-8")
    name = cluster["metadata"]["name"]
    assert f"service/{name}-head-svc 8265" in text
    assert f"kubectl get secret {name} " in text
    (head,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    (mount,) = head["volumeMounts"]
    command = text.partition("-- compression-sweep ")[2].partition("\n#   kubectl delete")[0].replace("\\\n#", " ")
    flags = kd_prune._parse(shlex.split(command))[1]
    assert flags.out.is_relative_to(mount["mountPath"])
    assert flags.data_dir.is_relative_to(mount["mountPath"])
    assert flags.storage.startswith("s3://")
    assert flags.gpus <= cluster["spec"]["workerGroupSpecs"][0]["maxReplicas"]
