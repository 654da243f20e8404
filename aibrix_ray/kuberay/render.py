"""A Serve file → a RayService. Pure: equal input gives equal output, byte for byte.

What may change while the installation runs is in `serveConfigV2` alone, which KubeRay applies in
place; `rayClusterConfig`, whose change makes KubeRay build a second cluster, holds only what pods
are made of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from aibrix_ray.config import ParsedFile, serve_keys
from aibrix_ray.config.gateway import SHUTDOWN_MARGIN_S
from aibrix_ray.errors import ConfigError
from aibrix_ray.kuberay.options import HF_TOKEN, STORE, STORE_SECRET, RenderOptions, SecretKey
from aibrix_ray.kuberay.text import to_yaml
from aibrix_ray.kuberay.workers import WorkerGroup, gpus_of, worker_groups

#: KubeRay's readiness probe and its service ask the container's port of this name.
SERVE_PORT_NAME = "serve"
_DEFAULT_SERVE_PORT = 8000
_ANY_ADDRESS = "0.0.0.0"
_ANY_ADDRESSES = (_ANY_ADDRESS, "::")

#: Ports of Ray and KubeRay in every pod → who listens there.
_TAKEN_PORTS = {
    6379: "Ray's GCS",
    8080: "Ray's metrics",
    8265: "Ray's dashboard",
    10001: "Ray's client server",
    52365: "Ray's dashboard agent",
}
_RAY_WORKER_PORTS = range(10002, 20000)

#: The head holds Ray's and Serve's control processes and gateways, never a replica.
_HEAD_CPUS = 2
_HEAD_MEMORY_GIB = 8

#: How long Serve looks for another place for a replica whose pod is being deleted, before it
#: stops it where it is.
_REPLACEMENT_S = 120
#: From the end of the preStop hook until Kubernetes kills what is left.
_KILL_MARGIN_S = 30
#: Until every node has heard that the pod takes no new connections.
_ENDPOINTS_S = 15

_SECRET = re.compile(r"(?:^|_)(?:token|key|secret|password|credentials?)$", re.IGNORECASE)


def render(parsed: ParsedFile, options: RenderOptions) -> dict[str, Any]:
    """Return the RayService of a file as plain data.

    Raises:
        ConfigError: the file has no gateway, its port is one of Ray's, it speaks TLS, or a Secret
            is named that nobody reads.
    """
    port = _port(parsed)
    _refuse_tls(parsed)
    _refuse_idle_secret(parsed, options)
    workers = worker_groups(parsed.groups)
    metadata: dict[str, Any] = {"name": options.name}
    if options.namespace is not None:
        metadata["namespace"] = options.namespace
    metadata["labels"] = {
        "app.kubernetes.io/name": "aibrix-ray",
        "app.kubernetes.io/managed-by": "aibrix-ray",
    }
    cluster: dict[str, Any] = {
        "rayVersion": options.ray_version,
        "headGroupSpec": _head(port, parsed, options),
    }
    if workers:
        cluster["workerGroupSpecs"] = [_workers(group, port, parsed, options) for group in workers]
    drain_s = max([_gateway_drain_s(parsed), *(group.drain_timeout_s for group in workers)])
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": metadata,
        "spec": {
            # A cluster that was replaced stays until the answers that it has begun are complete.
            "rayClusterDeletionDelaySeconds": math.ceil(drain_s) + _KILL_MARGIN_S,
            "upgradeStrategy": {"type": "NewCluster"},
            "serveConfigV2": to_yaml(_serve_config(parsed)),
            "rayClusterConfig": cluster,
        },
    }


def notes(parsed: ParsedFile, options: RenderOptions) -> Iterator[str]:
    """Yield what the user should know about the manifest of this file, a sentence each."""
    yield from _notes_on_keys(parsed, options)
    sizes: dict[str, dict[int, str]] = {}
    for name, group in parsed.groups.items():
        for variable in group.env:
            if _SECRET.search(variable):
                yield (
                    f"{name}.env.{variable} stands in the manifest as it is; "
                    "for Hugging Face, --hf-token-secret takes it from a Secret"
                )
        if (group.source or "").startswith(("/", ".", "~")):
            yield f"{name}.source is a directory: {group.source} must exist in the image"
        if group.replicas.min == 0:
            yield f"{name}.replicas.min is 0: no pod is started for it"
        sizes.setdefault(group.accelerator or "", {}).setdefault(gpus_of(group), name)
    for accelerator, names in sizes.items():
        if len(names) > 1:
            yield (
                f"{' and '.join(names.values())} use {accelerator} in replicas of different size "
                f"({', '.join(map(str, names))}): every pod has {max(names)}"
            )


def _notes_on_keys(parsed: ParsedFile, options: RenderOptions) -> Iterator[str]:
    if parsed.gateway is None:
        return
    base = f"{parsed.gateway_name}.args.auth"
    secret = _store_secret(parsed, options)
    if secret is not None:
        yield (
            "clients need an API key; pods start once the store's URL is there: kubectl create "
            f"secret generic {secret.secret} --from-literal={secret.key}=postgresql://... "
            f"(without keys: {base}.open_to_network: true)"
        )
    store = parsed.gateway.auth.store
    if store is not None and secret is not None:
        yield f"{base}.store stands in the manifest as it is, but pods take the Secret's; remove it"
    elif store is not None:
        yield (
            f"{base}.store stands in the manifest as it is, password included; "
            "--store-secret takes it from a Secret"
        )
        if store.startswith("sqlite"):
            yield (
                f"{base}.store is a file: each pod has one of its own, and loses it when it ends; "
                "gateways on several pods need a PostgreSQL"
            )


def _asks_for_keys(parsed: ParsedFile) -> bool:
    """Every pod is reached by others, so only a word of the user's leaves the keys out."""
    assert parsed.gateway is not None, "_port() lets no file without a gateway through"
    return parsed.gateway.auth.keys or not parsed.gateway.auth.open_to_network


def _store_secret(parsed: ParsedFile, options: RenderOptions) -> SecretKey | None:
    """Return where pods find the URL of the store of keys; None: in the file, or nowhere."""
    assert parsed.gateway is not None, "_port() lets no file without a gateway through"
    if not _asks_for_keys(parsed):
        return None
    return options.store or (STORE_SECRET if parsed.gateway.auth.store is None else None)


def _port(parsed: ParsedFile) -> int:
    if parsed.gateway is None:
        raise ConfigError(
            path="applications",
            value=list(parsed.groups),
            expected="an application with import_path aibrix_ray:gateway: KubeRay asks its port "
            "whether a pod is ready",
        )
    path = f"{parsed.gateway_name}.args.port"
    port = parsed.gateway.port
    if parsed.gateway.listen == "serve":
        path = "http_options.port"
        port = (parsed.data.get("http_options") or {}).get("port", _DEFAULT_SERVE_PORT)
    owner = _TAKEN_PORTS.get(port)
    if owner is None and port in _RAY_WORKER_PORTS:
        owner = f"Ray's workers ({_RAY_WORKER_PORTS.start} to {_RAY_WORKER_PORTS.stop - 1})"
    if owner is not None:
        raise ConfigError(
            path=path,
            value=port,
            expected=f"a port that is free in a pod of KubeRay's, but it is that of {owner}",
            hint=f"set {path} to {_DEFAULT_SERVE_PORT}",
        )
    return port


def _refuse_tls(parsed: ParsedFile) -> None:
    """A pod whose port speaks TLS never becomes ready: KubeRay's probe is plain HTTP."""
    assert parsed.gateway is not None, "_port() lets no file without a gateway through"
    path, value = f"{parsed.gateway_name}.args.http.tls", parsed.gateway.http.tls
    found: object = value.model_dump() if value is not None else None
    if parsed.gateway.listen == "serve":
        path = "http_options.ssl_certfile"
        found = (parsed.data.get("http_options") or {}).get("ssl_certfile")
    if found is not None:
        raise ConfigError(
            path=path,
            value=found,
            expected="nothing, because KubeRay's readiness probe asks the gateway's port in plain "
            "HTTP, so no pod would become ready",
            hint=f"remove {path} and terminate TLS at the Ingress or Gateway before the Service",
        )


def _refuse_idle_secret(parsed: ParsedFile, options: RenderOptions) -> None:
    if options.store is not None and not _asks_for_keys(parsed):
        raise ConfigError(
            path="--store-secret",
            value=options.store.secret,
            expected=f"no value, because {parsed.gateway_name}.args.auth asks for no keys",
            hint="remove it, or set auth.keys: true",
        )


def _serve_config(parsed: ParsedFile) -> dict[str, Any]:
    """Return the file's own data, the gateway opened to the pod's network, behind keys."""
    assert parsed.gateway is not None, "_port() lets no file without a gateway through"
    data = parsed.to_serve_dict()
    own = parsed.gateway.listen == "own"
    if not own:
        data["http_options"] = {**(data.get("http_options") or {}), "host": _ANY_ADDRESS}
    for application in data["applications"]:
        if application.get("import_path") != serve_keys.GATEWAY_PATH:
            continue
        args = dict(application.get("args") or {})
        if own and args.get("host") not in _ANY_ADDRESSES:
            args["host"] = _ANY_ADDRESS
        if _asks_for_keys(parsed):
            args["auth"] = {**(args.get("auth") or {}), "keys": True}
        application["args"] = args
    return data


def _gateway_drain_s(parsed: ParsedFile) -> float:
    assert parsed.gateway is not None, "_port() lets no file without a gateway through"
    return parsed.gateway.drain_timeout_s


def _head(port: int, parsed: ParsedFile, options: RenderOptions) -> dict[str, Any]:
    ports = [
        ("gcs-server", 6379),
        ("dashboard", 8265),
        ("client", 10001),
        (SERVE_PORT_NAME, port),
    ]
    container: dict[str, Any] = {
        "name": "ray-head",
        "image": options.image,
        "ports": [{"name": name, "containerPort": number} for name, number in ports],
        "resources": _resources({"cpu": str(_HEAD_CPUS), "memory": f"{_HEAD_MEMORY_GIB}Gi"}),
        "lifecycle": _pre_stop(f"sleep {_ENDPOINTS_S}"),
    }
    store = _store_secret(parsed, options)
    if store is not None:
        container["env"] = [_from_secret(STORE, store)]
    return {
        # No CPU to hand out: replicas go to workers, gateways ask for none.
        "rayStartParams": {"num-cpus": "0"},
        "template": {
            "spec": {
                "terminationGracePeriodSeconds": math.ceil(_gateway_drain_s(parsed))
                + _KILL_MARGIN_S,
                "containers": [container],
            }
        },
    }


def _workers(
    group: WorkerGroup, port: int, parsed: ParsedFile, options: RenderOptions
) -> dict[str, Any]:
    return {
        "groupName": group.name,
        "replicas": group.fewest,
        "minReplicas": group.fewest,
        "maxReplicas": group.most,
        "rayStartParams": {"num-cpus": str(group.num_cpus)},
        "template": {"spec": _worker_pod(group, port, parsed, options)},
    }


def _worker_pod(
    group: WorkerGroup, port: int, parsed: ParsedFile, options: RenderOptions
) -> dict[str, Any]:
    drain_s = math.ceil(max(_gateway_drain_s(parsed), group.drain_timeout_s))
    leave_s = drain_s + SHUTDOWN_MARGIN_S + _REPLACEMENT_S
    amounts = {"cpu": str(group.cpus), "memory": f"{group.memory_gib}Gi"}
    if group.gpus:
        amounts[group.gpu_resource] = str(group.gpus)
    container: dict[str, Any] = {
        "name": "ray-worker",
        "image": options.image,
        "ports": [{"name": SERVE_PORT_NAME, "containerPort": port}],
        "resources": _resources(amounts),
        "lifecycle": _pre_stop(_leave(leave_s)),
    }
    env = []
    if options.hf_token is not None:
        env.append(_from_secret(HF_TOKEN, options.hf_token))
    store = _store_secret(parsed, options)
    if store is not None:
        env.append(_from_secret(STORE, store))
    if env:
        container["env"] = env
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": leave_s + _KILL_MARGIN_S,
        "containers": [container],
    }
    if group.gpus:
        spec["tolerations"] = [
            {"key": group.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
        ]
    return spec


def _from_secret(variable: str, entry: SecretKey) -> dict[str, Any]:
    reference = {"name": entry.secret, "key": entry.key}
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def _leave(seconds: int) -> str:
    """Return the commands that empty a node before Ray is told to stop.

    Serve starts replacements elsewhere, and the gateways and replicas here drain; once nothing
    runs here, Ray ends by itself, and the pod with it: `sleep` only bounds the wait. The command
    is hidden in Ray's --help, so it may go away: then the pod waits and closes as before.
    """
    return (
        "ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION "
        "--reason-message 'the pod is being deleted' "
        f"--deadline-remaining-seconds {seconds}; sleep {seconds}"
    )


def _pre_stop(command: str) -> dict[str, Any]:
    return {"preStop": {"exec": {"command": ["/bin/bash", "-lc", command]}}}


def _resources(amounts: dict[str, str]) -> dict[str, Any]:
    return {"limits": dict(amounts), "requests": dict(amounts)}
