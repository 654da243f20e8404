from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import yaml

from aibrix_ray.config import GatewayArgs, GroupArgs, ServeFile
from aibrix_ray.errors import ConfigError
from aibrix_ray.kuberay import SecretKey, notes, render, to_yaml
from tests.kuberay.files import (
    GATEWAY,
    OPTIONS,
    ROOT,
    container_of,
    group_text,
    head_of,
    make_manifest,
    parse,
    pod_of,
    serve_config_of,
    workers_of,
)

QUICKSTART = (ROOT / "examples" / "quickstart.yaml").read_text()
OPEN = "args: {auth: {open_to_network: true}}"
STORE_ENV = {
    "name": "AIBRIX_RAY_STORE",
    "valueFrom": {"secretKeyRef": {"name": "aibrix-ray-store", "key": "AIBRIX_RAY_STORE"}},
}
TINY = group_text("tiny", "model: tiny")

#: Every field of a group that a GPU may have; see the test that holds it complete.
FULL_GROUP = """
- name: full
  import_path: aibrix_ray:replica_group
  route_prefix: null
  args:
    model: full
    source: org/full
    revision: v1.0
    engine: {kind: vllm, max_model_len: 8192, args: {seed: 7}}
    accelerator: H100
    tensor_parallel: 2
    pipeline_parallel: 2
    replicas: {min: 2, max: 3}
    num_cpus: 8
    cost_per_hour: 12.5
    max_outstanding: 64
    drain_timeout_s: 90
    max_surge_percent: 100
    env: {LANG: C.UTF-8, ANSWER: "1e3"}
    labels: {team: "no"}
"""
OTHER_AUTH = {"limiter": "redis://cache:6379/0"}
FULL_GATEWAY = """
- name: gateway
  import_path: aibrix_ray:gateway
  route_prefix: null
  args:
    host: 127.0.0.1
    port: 9000
    listen: own
    per_node: 3
    drain_timeout_s: 40
    max_body_bytes: 1048576
    keep_alive_s: 30
    http: {max_connections: 100}
    auth: {keys: false, limiter: "redis://cache:6379/0"}
  deployments:
  - name: gateway
    user_config:
      routing: {policy: least-request}
      models: {full: {aliases: [f, "007"], timeout_s: 900}}
"""


def changed(path: list[Any], value: object) -> dict[str, Any]:
    """Return the quickstart's manifest after one value of the file has changed."""
    data = yaml.safe_load(QUICKSTART)
    here = data["applications"]
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return render(ServeFile.read(to_yaml(data)).parse(), OPTIONS)


def test_rendering_twice_gives_the_same_bytes() -> None:
    texts = {
        to_yaml(render(ServeFile.read(QUICKSTART).parse(), OPTIONS)).encode() for _ in range(3)
    }
    assert len(texts) == 1


def test_rendering_leaves_the_parsed_file_as_it_is() -> None:
    parsed = parse(GATEWAY, TINY)
    before = copy.deepcopy(parsed.data)
    render(parsed, OPTIONS)
    assert parsed.data == before


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ([0, "deployments", 0, "user_config", "routing", "policy"], "my.module:Policy"),
        ([0, "deployments", 0, "user_config", "models", "tiny", "aliases"], ["a", "b"]),
        ([0, "deployments", 0, "user_config", "models", "tiny"], {"timeout_s": 60.0}),
    ],
)
def test_what_changes_at_run_time_touches_serve_config_alone(path: list[Any], value: Any) -> None:
    """U53: KubeRay applies it in place; another rayClusterConfig would be another cluster."""
    before, after = render(ServeFile.read(QUICKSTART).parse(), OPTIONS), changed(path, value)
    assert before["spec"].pop("serveConfigV2") != after["spec"].pop("serveConfigV2")
    assert to_yaml(before) == to_yaml(after)


def test_other_numbers_of_replicas_change_only_counts_of_pods() -> None:
    """U53: KubeRay leaves these counts out when it asks whether the cluster is another one."""
    before = workers_of(render(ServeFile.read(QUICKSTART).parse(), OPTIONS))
    after = workers_of(changed([1, "args", "replicas"], {"min": 2, "max": 4}))
    for group in (*before, *after):
        counts = {key: group.pop(key) for key in ("replicas", "minReplicas", "maxReplicas")}
        assert counts["replicas"] == counts["minReplicas"] <= counts["maxReplicas"]
    assert before == after


def test_a_group_on_a_new_accelerator_only_appends_a_worker_group() -> None:
    """KubeRay adds worker groups at the end of the list in place."""
    before = make_manifest(TINY)
    after = make_manifest(TINY, group_text("big", "model: big, accelerator: H100"))
    assert workers_of(after)[:1] == workers_of(before)
    assert head_of(after) == head_of(before)


def test_the_gateway_is_opened_to_the_pods_network() -> None:
    for host in ("", "args: {host: 127.0.0.1}", "args: {host: 10.1.2.3, auth: {keys: true}}"):
        manifest = make_manifest(TINY, gateway=f"{GATEWAY}  {host}\n")
        gateway = serve_config_of(manifest)["applications"][0]
        assert gateway["args"]["host"] == "0.0.0.0"


def test_a_host_that_is_open_already_stays() -> None:
    manifest = make_manifest(
        TINY, gateway=f'{GATEWAY}  args: {{host: "::", auth: {{keys: true}}}}\n'
    )
    assert serve_config_of(manifest)["applications"][0]["args"]["host"] == "::"


def test_every_field_of_the_file_reaches_serve() -> None:
    """U49: nothing that is accepted is dropped."""
    parsed = parse(FULL_GATEWAY, FULL_GROUP)
    expected = parsed.to_serve_dict()
    assert set(expected["applications"][0]["args"]) == set(GatewayArgs.model_fields)
    assert set(expected["applications"][1]["args"]) == set(GroupArgs.model_fields)
    expected["applications"][0]["args"]["host"] = "0.0.0.0"
    expected["applications"][0]["args"]["auth"] = {"keys": True, **OTHER_AUTH}
    assert serve_config_of(render(parsed, OPTIONS)) == expected


def test_the_pods_are_made_of_what_the_group_says() -> None:
    (group,) = workers_of(render(parse(FULL_GATEWAY, FULL_GROUP), OPTIONS))
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 3)
    assert group["rayStartParams"] == {"num-cpus": "8"}
    resources = container_of(group)["resources"]
    assert resources["limits"] == resources["requests"]
    assert resources["limits"]["nvidia.com/gpu"] == "4"
    assert int(resources["limits"]["cpu"]) >= 8
    assert pod_of(group)["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]


def test_every_pod_names_the_gateways_port_serve() -> None:
    """KubeRay's probe and its service look for the port of this name."""
    manifest = render(parse(FULL_GATEWAY, FULL_GROUP), OPTIONS)
    for group in (head_of(manifest), *workers_of(manifest)):
        ports = {port["name"]: port["containerPort"] for port in container_of(group)["ports"]}
        assert ports["serve"] == 9000


def test_the_probes_are_left_to_kuberay() -> None:
    """It adds `/-/healthz` on the port `serve` only to a container that has no probe."""
    manifest = make_manifest(TINY)
    for group in (head_of(manifest), *workers_of(manifest)):
        assert {"readinessProbe", "livenessProbe"}.isdisjoint(container_of(group))


def test_behind_serves_proxy_the_port_is_that_of_the_proxy() -> None:
    gateway = "\n- {name: gateway, import_path: 'aibrix_ray:gateway', args: {listen: serve}}\n"
    top = "proxy_location: EveryNode\nhttp_options: {port: 9100, host: 127.0.0.1}"
    manifest = render(parse(gateway, TINY, top=top), OPTIONS)
    assert serve_config_of(manifest)["http_options"] == {"port": 9100, "host": "0.0.0.0"}
    assert container_of(workers_of(manifest)[0])["ports"] == [
        {"name": "serve", "containerPort": 9100}
    ]
    assert serve_config_of(manifest)["applications"][0]["args"]["auth"] == {"keys": True}
    silent = gateway.replace("serve}", "serve, auth: {open_to_network: true}}")
    plain = render(parse(silent, TINY, top="proxy_location: EveryNode"), OPTIONS)
    assert container_of(workers_of(plain)[0])["ports"][0]["containerPort"] == 8000


def test_pods_get_the_time_to_drain() -> None:
    """U54."""
    manifest = render(parse(FULL_GATEWAY, FULL_GROUP), OPTIONS)
    (worker,) = workers_of(manifest)
    assert pod_of(head_of(manifest))["terminationGracePeriodSeconds"] > 40
    assert pod_of(worker)["terminationGracePeriodSeconds"] > 90
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] > 90


def test_a_worker_is_emptied_before_ray_is_told_to_stop() -> None:
    """U54: no replica here is killed while gateways elsewhere still route to it."""
    (worker,) = workers_of(render(parse(FULL_GATEWAY, FULL_GROUP), OPTIONS))
    *shell, command = container_of(worker)["lifecycle"]["preStop"]["exec"]["command"]
    assert shell == ["/bin/bash", "-lc"]
    drain, wait = command.split("; ")
    assert drain.startswith("ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION ")
    seconds = int(wait.removeprefix("sleep "))
    assert drain.endswith(f"--deadline-remaining-seconds {seconds}")
    assert 90 < seconds < pod_of(worker)["terminationGracePeriodSeconds"]


def test_the_drain_command_is_one_that_this_ray_has() -> None:
    """It is hidden in Ray's help and may go away."""
    from click.testing import CliRunner
    from ray.scripts.scripts import cli

    help_text = CliRunner().invoke(cli, ["drain-node", "--help"]).output
    for option in ("--reason", "--reason-message", "--deadline-remaining-seconds"):
        assert option in help_text
    assert "DRAIN_NODE_REASON_PREEMPTION" in help_text


def test_no_two_clusters_are_given_one_external_storage() -> None:
    """U52: the namespace in Redis is left to KubeRay, which takes the cluster's own id."""
    text = json.dumps(make_manifest(TINY, group_text("big", "model: big, accelerator: H100")))
    assert "external-storage" not in text
    assert "externalStorageNamespace" not in text
    assert "gcsFaultToleranceOptions" not in text


def test_the_token_comes_from_a_secret_and_only_to_the_workers() -> None:
    gateway = f"{GATEWAY}  {OPEN}\n"
    manifest = make_manifest(TINY, gateway=gateway, hf_token=SecretKey("hugging-face", "token"))
    assert container_of(workers_of(manifest)[0])["env"] == [
        {
            "name": "HF_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": "hugging-face", "key": "token"}},
        }
    ]
    assert "env" not in container_of(head_of(manifest))
    assert "env" not in container_of(workers_of(make_manifest(TINY, gateway=gateway))[0])


def test_gateways_ask_for_keys_and_every_pod_gets_their_store_from_a_secret() -> None:
    manifest = make_manifest(TINY)
    assert serve_config_of(manifest)["applications"][0]["args"]["auth"] == {"keys": True}
    for group in (head_of(manifest), *workers_of(manifest)):
        assert container_of(group)["env"] == [STORE_ENV]
    other = make_manifest(TINY, store=SecretKey("keys", "url"))
    (variable,) = container_of(head_of(other))["env"]
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "keys", "key": "url"}}


def test_no_keys_are_asked_for_where_the_file_says_so() -> None:
    manifest = make_manifest(TINY, gateway=f"{GATEWAY}  {OPEN}\n")
    (args,) = [serve_config_of(manifest)["applications"][0]["args"]]
    assert args == {"host": "0.0.0.0", "auth": {"open_to_network": True}}
    assert all("env" not in container_of(group) for group in [head_of(manifest)])


def test_a_store_that_stands_in_the_file_stays_there_and_is_noted() -> None:
    gateway = f"{GATEWAY}  args: {{auth: {{store: 'postgresql://a:b@c/d'}}}}\n"
    manifest = make_manifest(TINY, gateway=gateway)
    auth = serve_config_of(manifest)["applications"][0]["args"]["auth"]
    assert auth == {"keys": True, "store": "postgresql://a:b@c/d"}
    assert "env" not in container_of(head_of(manifest))
    (note,) = notes(parse(gateway, TINY), OPTIONS)
    assert "gateway.args.auth.store" in note
    assert "a:b" not in note


def test_the_secret_that_pods_wait_for_is_noted() -> None:
    (note,) = notes(parse(GATEWAY, TINY), OPTIONS)
    assert "secret generic aibrix-ray-store --from-literal=AIBRIX_RAY_STORE=postgresql" in note
    assert "gateway.args.auth.open_to_network: true" in note


def test_a_secret_that_is_named_is_stronger_than_the_files_store() -> None:
    gateway = f"{GATEWAY}  args: {{auth: {{store: 'postgresql://a:b@c/d'}}}}\n"
    named = SecretKey("keys", "url")
    manifest = make_manifest(TINY, gateway=gateway, store=named)
    for group in (head_of(manifest), *workers_of(manifest)):
        (variable,) = container_of(group)["env"]
        assert variable["valueFrom"] == {"secretKeyRef": {"name": "keys", "key": "url"}}
    found = "\n".join(notes(parse(gateway, TINY), replace(OPTIONS, store=named)))
    assert "secret generic keys --from-literal=url=postgresql" in found
    assert "pods take the Secret's" in found


def test_a_secret_that_nobody_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--store-secret.*asks for no keys.*auth\.keys: true"):
        make_manifest(TINY, gateway=f"{GATEWAY}  {OPEN}\n", store=SecretKey("keys", "url"))


def test_keys_that_are_asked_for_beside_an_open_door_have_their_store_in_a_secret() -> None:
    args = "args: {host: 0.0.0.0, auth: {keys: true, open_to_network: true}}"
    manifest = make_manifest(TINY, gateway=f"{GATEWAY}  {args}\n")
    for group in (head_of(manifest), *workers_of(manifest)):
        assert container_of(group)["env"] == [STORE_ENV]


def test_a_store_in_each_pods_own_file_is_noted() -> None:
    gateway = f"{GATEWAY}  args: {{auth: {{store: 'sqlite:////keys.db'}}}}\n"
    found = "\n".join(notes(parse(gateway, TINY), OPTIONS))
    assert "gateway.args.auth.store is a file: each pod has one of its own" in found


@pytest.mark.parametrize(
    ("gateway", "top", "path"),
    [
        (
            f"{GATEWAY}  args: {{http: {{tls: {{cert_file: /tls.crt, key_file: /tls.key}}}}}}\n",
            "proxy_location: Disabled",
            "gateway.args.http.tls",
        ),
        (
            "\n- {name: gateway, import_path: 'aibrix_ray:gateway', "
            "args: {listen: serve, auth: {keys: true}}}\n",
            "http_options: {ssl_certfile: /tls.crt, ssl_keyfile: /tls.key}",
            "http_options.ssl_certfile",
        ),
    ],
)
def test_tls_on_the_port_is_refused_because_the_probe_is_plain_http(
    gateway: str, top: str, path: str
) -> None:
    parsed = parse(gateway, TINY, top=top)
    with pytest.raises(ConfigError) as refused:
        render(parsed, OPTIONS)
    assert refused.value.path == path
    assert "/tls.crt" in str(refused.value.value)
    assert "readiness probe" in refused.value.expected
    assert "terminate TLS at the Ingress or Gateway" in refused.value.hint


def test_the_head_has_no_cpu_for_replicas() -> None:
    assert head_of(make_manifest(TINY))["rayStartParams"] == {"num-cpus": "0"}


def test_a_gateway_alone_is_served_by_the_head() -> None:
    assert "workerGroupSpecs" not in make_manifest()["spec"]["rayClusterConfig"]


def test_names_image_and_version_are_those_of_the_options() -> None:
    manifest = make_manifest(TINY, name="chat", namespace="llm", image="a/b:c")
    assert manifest["metadata"]["name"] == "chat"
    assert manifest["metadata"]["namespace"] == "llm"
    assert manifest["spec"]["rayClusterConfig"]["rayVersion"] == "2.60.0"
    for group in (head_of(manifest), *workers_of(manifest)):
        assert container_of(group)["image"] == "a/b:c"
    assert "namespace" not in make_manifest(TINY)["metadata"]


def test_a_file_without_a_gateway_is_refused() -> None:
    other = "\n- {name: other, import_path: 'mine:app'}\n"
    with pytest.raises(ConfigError, match="aibrix_ray:gateway"):
        render(parse(other), OPTIONS)


@pytest.mark.parametrize("port", [6379, 8080, 8265, 10001, 15000, 19999])
def test_a_port_of_rays_is_refused_by_name(port: int) -> None:
    with pytest.raises(ConfigError, match=r"gateway\.args\.port.*Ray.*set gateway\.args\.port"):
        make_manifest(TINY, gateway=f"{GATEWAY}  args: {{port: {port}}}\n")


def test_what_the_user_should_know_is_noted() -> None:
    text = "\n".join(
        notes(
            parse(
                GATEWAY,
                group_text("a", "model: a, accelerator: L4, env: {HF_TOKEN: hf_x}"),
                group_text("b", "model: b, accelerator: L4, tensor_parallel: 2, source: /models/b"),
                group_text("c", "model: c, replicas: {min: 0, max: 1}"),
            ),
            OPTIONS,
        )
    )
    assert "a.env.HF_TOKEN" in text
    assert "hf_x" not in text
    assert "b.source" in text
    assert "c.replicas.min is 0" in text
    assert "a and b use L4 in replicas of different size (1, 2): every pod has 2" in text


def test_there_is_nothing_else_to_note_about_the_quickstart() -> None:
    assert len(list(notes(ServeFile.read(QUICKSTART).parse(), OPTIONS))) == 1
