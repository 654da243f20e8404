"""Whose request it is, with and without proxies."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_ray.dataplane.client_address import TrustedProxies
from tests.dataplane.gateways import MakeGateway
from tests.dataplane.waiting import eventually

PROXIES = TrustedProxies(["10.0.0.0/8", "192.0.2.7", "fd00::/8"])

TABLE = {
    # name: (peer, X-Forwarded-For lines, client)
    "nobody forwards": ("10.0.0.1", [], "10.0.0.1"),
    "a stranger says so himself": ("203.0.113.9", ["1.2.3.4"], "203.0.113.9"),
    "a proxy says so": ("10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
    "what the client made up stands left": ("10.0.0.1", ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
    "a chain of proxies": ("10.0.0.1", ["1.2.3.4, 192.0.2.7, 10.9.9.9"], "1.2.3.4"),
    "a chain over lines": ("10.0.0.1", ["6.6.6.6, 1.2.3.4", "192.0.2.7"], "1.2.3.4"),
    "only proxies": ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
    "a port": ("10.0.0.1", ["1.2.3.4:5678"], "1.2.3.4"),
    "IPv6": ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
    "IPv6 in brackets": ("fd00::1", ["[2001:db8::1]:443"], "2001:db8::1"),
    "IPv4 in IPv6": ("::ffff:10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
    "unknown": ("10.0.0.1", ["1.2.3.4, unknown"], "10.0.0.1"),
    "unknown behind a proxy": ("10.0.0.1", ["1.2.3.4, unknown, 10.0.0.2"], "10.0.0.2"),
    "nonsense": ("10.0.0.1", ["<script>"], "10.0.0.1"),
    "empty items": ("10.0.0.1", [", ,"], "10.0.0.1"),
}


@pytest.mark.parametrize(("peer", "lines", "client"), TABLE.values(), ids=TABLE)
def test_the_client_is_the_first_from_the_right_that_is_no_proxy(
    peer: str, lines: list[str], client: str
) -> None:
    headers = [(b"x-forwarded-for", line.encode()) for line in lines]
    assert PROXIES.client(peer, headers)[0] == client


@pytest.mark.parametrize(
    ("peer", "forwarded", "proto", "scheme"),
    [
        ("10.0.0.1", b"1.2.3.4", b"https", "https"),
        ("10.0.0.1", b"1.2.3.4", b"HTTPS", "https"),
        ("10.0.0.1", b"", b"https", "https"),
        ("203.0.113.9", b"1.2.3.4", b"https", None),
        ("10.0.0.1", b"1.2.3.4, 10.0.0.2", b"https", "https"),
        ("10.0.0.1", b"1.2.3.4, 10.0.0.2", b"https, http", "https"),
        ("10.0.0.1", b"6.6.6.6, 1.2.3.4, 10.0.0.2", b"http, https, http", "https"),
        ("10.0.0.1", b"1.2.3.4", b"gopher", None),
        ("10.0.0.1", b"1.2.3.4", b"", None),
    ],
)
def test_the_scheme_is_what_the_clients_proxy_said(
    peer: str, forwarded: bytes, proto: bytes, scheme: str | None
) -> None:
    headers = [(b"x-forwarded-for", forwarded), (b"x-forwarded-proto", proto)]
    assert PROXIES.client(peer, headers)[1] == scheme


@given(
    peer=st.sampled_from(["10.0.0.1", "203.0.113.9"]),
    lines=st.lists(st.binary(max_size=60), max_size=4),
)
def test_no_header_makes_it_fail_and_a_stranger_is_never_believed(
    peer: str, lines: list[bytes]
) -> None:
    headers = [(b"x-forwarded-for", line) for line in lines]
    headers += [(b"x-forwarded-proto", line) for line in lines]
    client, scheme = PROXIES.client(peer, headers)
    assert client
    if peer == "203.0.113.9":
        assert (client, scheme) == (peer, None)


@pytest.mark.parametrize(
    ("proxy", "client"), [("127.0.0.0/8", "1.2.3.4"), ("10.0.0.1", "127.0.0.1")]
)
async def test_the_access_log_has_the_clients_address(
    gateway: MakeGateway, caplog: pytest.LogCaptureFixture, proxy: str, client: str
) -> None:
    caplog.set_level(logging.INFO, logger="aibrix_ray.access")
    args = {"http": {"access_log": True, "trusted_proxies": [proxy]}}
    connection = await (await gateway(args=args)).connect()
    connection.get("/healthz", "x-forwarded-for: 6.6.6.6, 1.2.3.4")
    assert (await connection.answer()).status == 200
    lines = [r.getMessage() for r in caplog.records if r.name == "aibrix_ray.access"]
    await eventually(lambda: bool(lines), "it is logged")
    assert json.loads(lines[0])["client"] == client
