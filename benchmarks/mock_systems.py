"""The systems that stand before the mocks, and how each is started: ours in three forms, and peers.

All of them forward in turn (ours: to the least loaded) over keep-alive connections; they write no
line of log a request and retry nothing, where they can be told so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.cells import (
    CACHE_AWARE,
    HAPROXY,
    LITELLM,
    OURS,
    OURS_ALL_ON,
    OURS_TCP,
    SERVE_INGRESS,
    SGLANG_ROUTER,
    VLLM_ROUTER,
)
from benchmarks.install_peers import haproxy_binary, peer_command
from benchmarks.mocks import ANY_KEY, MODEL, Backend
from benchmarks.ours import make_all_on, our_command, why_not_all_on, why_not_ours
from benchmarks.processes import free_port
from benchmarks.ray_env import RAY_ENV, serve_haproxy_env

_LOOPBACK = "127.0.0.1"
_NOT_INSTALLED = "not installed: python benchmarks/install_peers.py"
_INGRESS_SCRIPT = Path(__file__).with_name("serve_ingress.py")
_LITELLM_ENV = {
    # It would fetch its price list from the network, and refuse to start without a master key.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
}
_HAPROXY_CONFIG = """\
global
    maxconn 4096
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option http-no-delay
    http-reuse always
    balance roundrobin
frontend clients
    bind {listen}
    default_backend mocks
backend mocks
"""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a system is to stand: its port, what is behind it, and a folder of its own."""

    port: int
    backends: Sequence[Backend]
    folder: Path

    @property
    def urls(self) -> list[str]:
        """The backends over TCP."""
        return [f"http://{_LOOPBACK}:{backend.port}" for backend in self.backends]


@dataclass(frozen=True, slots=True)
class Launch:
    """A command, its environment, and the API key that its clients send."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    key: str = ANY_KEY


@dataclass(frozen=True, slots=True)
class Gateway:
    """One of the systems."""

    name: str
    launch: Callable[[Site], Launch]
    #: Why it cannot run here, or None.
    missing: str | None
    #: Whether it decides one of the narrow claims: measured in every round, and by --quick.
    contested: bool = True
    #: How many times as long it is measured: a slow one completes little in a short time.
    patience: int = 1
    stop_timeout_s: float = 10.0


def gateways() -> list[Gateway]:
    """Return every system, those that cannot run here included, with the reason."""
    ours = why_not_ours("gateway")
    router, sglang, litellm = map(_missing_peer, ("vllm-router", "sglang-router", "litellm"))
    haproxy = None if haproxy_binary() else _NOT_INSTALLED
    return [
        Gateway(OURS, _ours, ours),
        Gateway(OURS_ALL_ON, _ours_all_on, ours or why_not_all_on()),
        Gateway(OURS_TCP, _ours_tcp, ours, contested=False),
        Gateway(VLLM_ROUTER, _vllm_router, router),
        Gateway(CACHE_AWARE, _vllm_router_cache_aware, router),
        Gateway(SGLANG_ROUTER, _sglang_router, sglang, contested=False),
        Gateway(HAPROXY, _haproxy, haproxy, contested=False),
        Gateway(LITELLM, _litellm, litellm, contested=False, patience=6),
        Gateway(
            SERVE_INGRESS,
            _serve_ingress,
            haproxy,
            contested=False,
            patience=2,
            stop_timeout_s=45.0,
        ),
    ]


def our_gateway(*, policy: str) -> Gateway:
    """Return ours with another routing policy, and with all that this version can turn on."""
    all_on = why_not_all_on() is None

    def launch(site: Site) -> Launch:
        found = (_ours_all_on if all_on else _ours)(site)
        return replace(found, argv=[*found.argv, "--policy", policy])

    return Gateway(OURS_ALL_ON if all_on else OURS, launch, why_not_ours("gateway"))


def _missing_peer(name: str) -> str | None:
    return None if peer_command(name) else _NOT_INSTALLED


def _ours(site: Site) -> Launch:
    backends = [f"--backend={MODEL}=uds:{backend.uds}" for backend in site.backends]
    return Launch([str(our_command()), "gateway", "--port", str(site.port), *backends])


def _ours_tcp(site: Site) -> Launch:
    backends = [f"--backend={MODEL}={url}" for url in site.urls]
    return Launch([str(our_command()), "gateway", "--port", str(site.port), *backends])


def _ours_all_on(site: Site) -> Launch:
    plain = _ours(site)
    config, key = make_all_on(site.folder, model=MODEL)
    # A store that this machine's user has set would be stronger than the one in the file.
    env = {"AIBRIX_RAY_STORE": ""}
    return Launch([*plain.argv, "--config", str(config)], env=env, key=key)


def _vllm_router(site: Site, policy: str = "round_robin") -> Launch:
    return Launch(_router_argv("vllm-router", site, policy, log_level="warning"))


def _vllm_router_cache_aware(site: Site) -> Launch:
    return _vllm_router(site, "cache_aware")


def _sglang_router(site: Site) -> Launch:
    argv = _router_argv("sglang-router", site, "round_robin", log_level="warn")
    return Launch([argv[0], "launch", *argv[1:]])


def _router_argv(name: str, site: Site, policy: str, *, log_level: str) -> list[str]:
    """Return what both Rust routers are told; the one came of the other."""
    listen = ["--host", _LOOPBACK, "--port", str(site.port)]
    metrics = ["--prometheus-host", _LOOPBACK, "--prometheus-port", str(free_port())]
    options = ["--policy", policy, "--disable-retries", "--log-level", log_level]
    return [str(peer_command(name)), *listen, "--worker-urls", *site.urls, *options, *metrics]


def _litellm(site: Site) -> Launch:
    def deployment(url: str) -> dict[str, object]:
        params = {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "none"}
        return {"model_name": MODEL, "litellm_params": params}

    config = {
        "model_list": [deployment(url) for url in site.urls],
        "litellm_settings": {"num_retries": 0},
        "general_settings": {"disable_spend_logs": True},
    }
    path = site.folder / "litellm.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    listen = ["--host", _LOOPBACK, "--port", str(site.port)]
    argv = [str(peer_command("litellm")), "--config", str(path), *listen, "--telemetry", "False"]
    return Launch(argv, env=_LITELLM_ENV)


def _serve_ingress(site: Site) -> Launch:
    argv = [sys.executable, str(_INGRESS_SCRIPT), "--port", str(site.port)]
    argv += [f"--backend={url}" for url in site.urls]
    env = {**RAY_ENV, **serve_haproxy_env(site.folder), "RAY_TMPDIR": str(site.folder)}
    return Launch(argv, env=env)


def _haproxy(site: Site) -> Launch:
    servers = [
        f"    server mock{index} {_LOOPBACK}:{backend.port}\n"
        for index, backend in enumerate(site.backends)
    ]
    path = site.folder / "haproxy.cfg"
    listen = f"{_LOOPBACK}:{site.port}"
    path.write_text(_HAPROXY_CONFIG.format(listen=listen) + "".join(servers))
    return Launch([str(haproxy_binary()), "-db", "-f", str(path)])
