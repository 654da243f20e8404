"""The manifest in kuberay/, and any manifest against KubeRay's own schema."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml

from aibrix_ray.kuberay import SecretKey, to_yaml
from tests.kuberay.files import CRDS, MANIFEST, ROOT, group_text, make_manifest
from tests.kuberay.test_command import run

HOW = "aibrix-ray kube render examples/quickstart.yaml -o kuberay/rayservice-quickstart.yaml"


@pytest.fixture(scope="module")
def crd() -> dict[str, Any]:
    """KubeRay's schema of a RayService, made to refuse unknown fields, which a cluster drops."""
    path = CRDS / "ray.io_rayservices.yaml"
    if not path.exists():
        pytest.skip(f"KubeRay's CRDs are not here: no {path.name} in {CRDS}")
    versions = yaml.safe_load(path.read_text())["spec"]["versions"]
    (v1,) = [version for version in versions if version["name"] == "v1"]
    schema: dict[str, Any] = v1["schema"]["openAPIV3Schema"]
    return {**schema, "properties": {**schema["properties"], "spec": strict(schema, "spec")}}


def strict(schema: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(schema["properties"][name])
    _close(found)
    return found


def _close(schema: dict[str, Any]) -> None:
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for part in schema.get("properties", {}).values():
        _close(part)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _close(schema[key])


def test_the_manifest_in_the_repository_is_a_fresh_render(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = run("kube", "render", "examples/quickstart.yaml")
    assert result.exit_code == 0, result.stderr
    assert MANIFEST.read_text() == result.stdout, f"out of date; run: {HOW}"


def test_the_manifest_in_the_repository_obeys_kuberays_schema(crd: dict[str, Any]) -> None:
    jsonschema.validate(yaml.safe_load(MANIFEST.read_text()), crd)


def test_every_kind_of_manifest_obeys_kuberays_schema(crd: dict[str, Any]) -> None:
    manifest = make_manifest(
        group_text("a", "model: a, replicas: {min: 0, max: 4}, env: {A: b}"),
        group_text("b", "model: b, accelerator: H100, tensor_parallel: 2, num_cpus: 4.5"),
        group_text("c", "model: c, accelerator: AMD-Instinct-MI300X-OAM"),
        namespace="llm",
        hf_token=SecretKey("hf"),
    )
    jsonschema.validate(yaml.safe_load(to_yaml(manifest)), crd)
    jsonschema.validate(make_manifest(), crd)


def test_the_schema_refuses_a_field_that_kuberay_does_not_know(crd: dict[str, Any]) -> None:
    manifest = make_manifest(group_text("a", "model: a"))
    (group,) = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    group["template"]["spec"]["containers"][0]["livecycle"] = {}
    with pytest.raises(jsonschema.ValidationError, match="livecycle"):
        jsonschema.validate(manifest, crd)
