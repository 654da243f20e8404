"""Files and manifests that the tests of this folder use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from aibrix_ray.config import ParsedFile, ServeFile
from aibrix_ray.kuberay import RenderOptions, render

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "kuberay" / "rayservice-quickstart.yaml"
#: KubeRay's own schemas; not part of the repository.
CRDS = ROOT.parent / "shared" / "data" / "kuberay-crds"

OPTIONS = RenderOptions(name="llm", image="registry/aibrix-ray:1")

GATEWAY = """
- name: gateway
  import_path: aibrix_ray:gateway
  route_prefix: null
"""


def group_text(name: str, args: str) -> str:
    """Return a replica group; `args` is what stands between the braces of its flow mapping."""
    return f"""
- name: {name}
  import_path: aibrix_ray:replica_group
  route_prefix: null
  args: {{{args}}}
"""


def parse(*applications: str, top: str = "proxy_location: Disabled") -> ParsedFile:
    """Return the parsed file of these applications."""
    return ServeFile.read(f"{top}\napplications:{''.join(applications)}").parse()


def make_manifest(*groups: str, gateway: str = GATEWAY, **options: Any) -> dict[str, Any]:
    """Return the manifest of a gateway and these groups."""
    chosen = RenderOptions(**{"name": OPTIONS.name, "image": OPTIONS.image, **options})
    return render(parse(gateway, *groups), chosen)


def workers_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the worker groups."""
    found: list[dict[str, Any]] = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return found


def head_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the head group."""
    found: dict[str, Any] = manifest["spec"]["rayClusterConfig"]["headGroupSpec"]
    return found


def pod_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return the pod of a head or worker group."""
    found: dict[str, Any] = group["template"]["spec"]
    return found


def container_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return the one container of a head or worker group."""
    (found,) = pod_of(group)["containers"]
    assert isinstance(found, dict)
    return found


def serve_config_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return what KubeRay hands to Serve."""
    found: dict[str, Any] = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    return found
