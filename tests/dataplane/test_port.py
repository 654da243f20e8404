"""Nobody else on the gateways' port: claims, strangers, siblings."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from aibrix_ray.asgi import tcp_socket
from aibrix_ray.dataplane.port import HUNG_S, Listener, PortClaim, listeners
from aibrix_ray.errors import ConfigError
from aibrix_ray.runtime_dir import ENVIRONMENT, remove_stale, start_time

Listen = Callable[..., socket.socket]

STRANGER = """
import socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
sock.bind(("127.0.0.1", int(sys.argv[1])))
sock.listen()
print("listening", flush=True)
sys.stdin.read()
"""

SIBLING = """
import sys
from aibrix_ray.asgi import tcp_socket
from aibrix_ray.dataplane.port import PortClaim
sock = tcp_socket("127.0.0.1", int(sys.argv[1]), reuse_port=True)
claim = PortClaim(sys.argv[2], sock)
sock.listen()
print("listening", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, socket_dir: Path) -> Path:
    monkeypatch.setenv(ENVIRONMENT, str(socket_dir))
    return socket_dir


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Bind a shared port (0: a free one) and listen on it."""
    with ExitStack() as stack:

        def bind(port: int = 0, host: str = "127.0.0.1") -> socket.socket:
            sock = stack.enter_context(tcp_socket(host, port, reuse_port=True))
            sock.listen()
            return sock

        yield bind


@pytest.fixture
def spawn() -> Iterator[Callable[..., int]]:
    """Start a process that listens; return its pid."""
    with ExitStack() as stack:

        def start(code: str, *arguments: object) -> int:
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code, *map(str, arguments)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            assert process.stdin is not None
            assert process.stdout is not None
            stack.callback(process.stdin.close)
            assert process.stdout.readline() == b"listening\n"
            return process.pid

        yield start


def port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


def inode_of(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_a_gateway_alone_on_its_port_is_alone(listen: Listen) -> None:
    sock = listen()
    claim = PortClaim("app", sock)
    assert claim.port == port_of(sock)
    claim.check()


def test_a_socket_that_does_not_listen_yet_is_claimed(listen: Listen) -> None:
    with tcp_socket("127.0.0.1", 0, reuse_port=True) as sock:
        claim = PortClaim("app", sock)
        claim.check()
        stranger = listen(claim.port)
        with pytest.raises(ConfigError):
            claim.check()
        stranger.close()
        claim.check()


def test_a_stranger_on_the_port_is_named_together_with_the_field_to_change(
    listen: Listen, spawn: Callable[..., int]
) -> None:
    claim = PortClaim("app", listen())
    pid = spawn(STRANGER, claim.port)
    with pytest.raises(ConfigError) as refused:
        claim.check()
    assert (refused.value.path, refused.value.value) == ("gateway.args.port", claim.port)
    assert f"127.0.0.1:{claim.port}" in str(refused.value)
    assert f"(pid {pid}, " in str(refused.value)
    assert "change `port`" in refused.value.hint


def test_a_second_socket_of_this_process_is_a_stranger_too(listen: Listen) -> None:
    claim = PortClaim("app", listen())
    listen(claim.port)
    with pytest.raises(ConfigError, match=re.escape(f"(pid {os.getpid()}, ")):
        claim.check()


def test_siblings_of_the_application_are_accepted(
    listen: Listen, spawn: Callable[..., int]
) -> None:
    claim = PortClaim("app", listen())
    spawn(SIBLING, claim.port, "app")
    claim.check()


def test_gateways_of_another_application_are_strangers(
    listen: Listen, sibling: Callable[..., int]
) -> None:
    claim = PortClaim("app", listen())
    pid = sibling(claim, "other")
    with pytest.raises(ConfigError, match=f"pid {pid}"):
        claim.check()


def test_who_listens_on_another_address_takes_nothing_from_us(listen: Listen) -> None:
    claim = PortClaim("app", listen())
    listen(claim.port, "127.0.0.2")
    claim.check()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_who_listens_on_all_addresses_overlaps(listen: Listen, host: str) -> None:
    claim = PortClaim("app", listen())
    try:
        listen(claim.port, host)
    except OSError:
        pytest.skip(f"{host} is not available here")
    with pytest.raises(ConfigError, match=re.escape(host)):
        claim.check()


def test_a_gateway_on_all_addresses_overlaps_with_any(listen: Listen) -> None:
    claim = PortClaim("app", listen(host="0.0.0.0"))
    listen(claim.port)
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1"):
        claim.check()


def test_another_port_is_nobodys_business(listen: Listen) -> None:
    claim = PortClaim("app", listen())
    listen()
    claim.check()


def test_a_claim_that_was_released_claims_nothing(listen: Listen, claims: Path) -> None:
    sock = listen()
    claim = PortClaim("app", sock)
    claim.release()
    assert list(claims.iterdir()) == []
    with pytest.raises(ConfigError):
        claim.check()
    claim.release()


@pytest.mark.parametrize(
    "owner", ["{pid}.0", "{pid}.999", "4194304.1"], ids=["no start", "another start", "no process"]
)
def test_the_claim_of_a_process_that_has_died_counts_for_nothing(
    listen: Listen, claims: Path, owner: str
) -> None:
    claim = PortClaim("app", listen())
    stranger = listen(claim.port)
    stale = claims / f"port-{claim.port}.{owner.format(pid=os.getpid())}.claim"
    stale.write_text(f"app\n{inode_of(stranger)}\n")
    with pytest.raises(ConfigError):
        claim.check()
    remove_stale()
    assert [path.name for path in claims.iterdir()] == [
        f"port-{claim.port}.{os.getpid()}.{start_time(os.getpid())}.claim"
    ]


@pytest.mark.parametrize("text", ["", "app", "app\nnot a number\n", "\n\n"])
def test_a_claim_that_cannot_be_read_is_no_claim(listen: Listen, claims: Path, text: str) -> None:
    claim = PortClaim("app", listen())
    listen(claim.port)
    init = f"port-{claim.port}.1.{start_time(1)}.claim"
    (claims / init).write_text(text)
    with pytest.raises(ConfigError):
        claim.check()


# Siblings that hang


@pytest.fixture
def sibling(spawn: Callable[..., int], claims: Path) -> Callable[..., int]:
    """Start a process on the port and write the claim that a gateway would have made."""

    def start(claim: PortClaim, application: str = "app") -> int:
        before = set(listeners(claim.port))
        pid = spawn(STRANGER, claim.port)
        (listener,) = set(listeners(claim.port)) - before
        path = claims / f"port-{claim.port}.{pid}.{start_time(pid)}.claim"
        path.write_text(f"{application}\n{listener.inode}\n")
        return pid

    return start


def age(claims: Path, pid: int, seconds: float) -> None:
    """Make the claim of a process look as if it had been touched so long ago."""
    (path,) = claims.glob(f"*.{pid}.*.claim")
    then_s = time.time() - seconds
    os.utime(path, (then_s, then_s))


def test_a_sibling_that_looks_hung_twice_in_a_row_is_hung(
    listen: Listen, claims: Path, sibling: Callable[..., int]
) -> None:
    claim = PortClaim("app", listen())
    pid = sibling(claim)
    claim.check()
    claim.beat()
    assert claim.hung_siblings() == []
    age(claims, pid, HUNG_S + 2)
    claim.beat()
    assert claim.hung_siblings() == []
    claim.beat()
    assert claim.hung_siblings() == [pid]


def test_a_sibling_that_has_woken_up_is_not_hung(
    listen: Listen, claims: Path, sibling: Callable[..., int]
) -> None:
    claim = PortClaim("app", listen())
    pid = sibling(claim)
    for seconds in (HUNG_S + 2, 0, HUNG_S + 2, HUNG_S - 2):
        age(claims, pid, seconds)
        claim.beat()
        assert claim.hung_siblings() == []


def test_neither_a_gateway_itself_nor_another_application_hangs_for_it(
    listen: Listen, claims: Path, sibling: Callable[..., int]
) -> None:
    claim = PortClaim("app", listen())
    pid = sibling(claim, "other")
    age(claims, pid, 100)
    age(claims, os.getpid(), 100)
    for _ in range(2):
        assert claim.hung_siblings() == []


def test_a_claim_that_somebody_removed_does_not_end_the_watch(listen: Listen) -> None:
    claim = PortClaim("app", listen())
    claim.release()
    claim.beat()
    assert claim.hung_siblings() == []


# /proc/net


def test_listeners_are_found_by_port_with_address_and_inode(listen: Listen) -> None:
    first = listen()
    port = port_of(first)
    second = listen(port, "127.0.0.2")
    assert set(listeners(port)) == {
        Listener("127.0.0.1", inode_of(first)),
        Listener("127.0.0.2", inode_of(second)),
    }


def test_connections_of_a_port_are_no_listeners(listen: Listen) -> None:
    sock = listen()
    with socket.create_connection(("127.0.0.1", port_of(sock))):
        assert len(list(listeners(port_of(sock)))) == 1


def test_an_ipv6_listener_is_found(listen: Listen) -> None:
    try:
        sock = listen(host="::1")
    except OSError:
        pytest.skip("there is no IPv6 here")
    assert list(listeners(port_of(sock))) == [Listener("::1", inode_of(sock))]
    PortClaim("app", sock).check()
