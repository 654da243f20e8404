"""Nobody else on the gateways' port.

`SO_REUSEPORT` lets any process of this user share a port in silence, Serve's own proxy among them,
and the kernel then gives it a part of the connections. A test bind proves nothing. So each gateway
claims its socket's inode in a file, and every listener of the port in /proc/net must be claimed by
a live gateway of the same application.

The claims are also how gateways of a node watch each other. One that hangs still gets its share of
new connections from the kernel and answers none; Serve notices, but then grants it the whole drain
timeout. So each gateway touches its claim, and one whose claim grows old is ended by its siblings.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aibrix_ray.errors import ConfigError
from aibrix_ray.runtime_dir import runtime_dir, start_time

_LISTEN = "0A"
#: A gateway whose loop has not turned for so long is hung.
HUNG_S = 6.0


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket of this network namespace."""

    address: str
    inode: int


class PortClaim:
    """One gateway's claim on its port, from before it listens until it has stopped."""

    def __init__(self, application: str, sock: socket.socket) -> None:
        host, port = sock.getsockname()[:2]
        self._application = application
        self._host = host
        self.port: int = port
        pid = os.getpid()
        name = f"port-{port}.{pid}.{start_time(pid)}.claim"
        self._path = runtime_dir() / name
        self._path.write_text(f"{application}\n{os.fstat(sock.fileno()).st_ino}\n")
        self._suspects: set[int] = set()

    def check(self) -> None:
        """Check that only gateways of this application listen.

        Raises:
            ConfigError: somebody else does; names the port and the field to change.
        """
        mine = self._claimed_inodes()
        for listener in listeners(self.port):
            if listener.inode not in mine and _overlap(listener.address, self._host):
                raise ConfigError(
                    path="gateway.args.port",
                    value=self.port,
                    expected="a port on which nobody else listens",
                    hint=f"another process listens on {listener.address}:{self.port}"
                    f"{_owner(listener.inode)}; stop it or change `port` of the gateway",
                )

    def beat(self) -> None:
        """Touch the claim: this gateway's loop turns."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path)

    def hung_siblings(self) -> list[int]:
        """Return the pids of siblings that have not touched their claims; call right after `beat`.

        A sibling must look hung twice in a row: after a suspend or a step of the clock, everybody
        does once.
        """
        old = set()
        with contextlib.suppress(FileNotFoundError):
            mine_s = self._path.stat().st_mtime
            for pid, path in self._siblings():
                with contextlib.suppress(FileNotFoundError):  # it has just ended
                    if pid != os.getpid() and mine_s - path.stat().st_mtime > HUNG_S:
                        old.add(pid)
        confirmed = sorted(old & self._suspects)
        self._suspects = old
        return confirmed

    def release(self) -> None:
        """Give the claim up."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def _claimed_inodes(self) -> set[int]:
        found = set()
        for _, path in self._siblings():
            with contextlib.suppress(OSError, ValueError, IndexError):
                found.add(int(path.read_text().splitlines()[1]))
        return found

    def _siblings(self) -> Iterator[tuple[int, Path]]:
        """Yield pid and claim of each live gateway of this application on this port, us too."""
        for path in runtime_dir().glob(f"port-{self.port}.*.claim"):
            pid, started = path.name.split(".")[1:3]
            with contextlib.suppress(OSError, IndexError):
                application = path.read_text().splitlines()[0]
                if start_time(int(pid)) == started and application == self._application:
                    yield int(pid), path


def listeners(port: int) -> Iterator[Listener]:
    """Yield the sockets that listen on `port`; nothing on a system without /proc/net."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            address, _, hex_port = fields[1].rpartition(":")
            if fields[3] == _LISTEN and int(hex_port, 16) == port:
                yield Listener(_address(address), int(fields[9]))


def _address(text: str) -> str:
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def _overlap(one: str, other: str) -> bool:
    wildcards = {"0.0.0.0", "::"}
    return one == other or one in wildcards or other in wildcards


def _owner(inode: int) -> str:
    """Return ` (pid 17, name)` of the process that has the socket, where that can be seen."""
    target = f"socket:[{inode}]"
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(fd) == target for fd in (entry / "fd").iterdir()):
                name = (entry / "comm").read_text().strip()
                return f" (pid {entry.name}, {name})"
        except OSError:
            continue
    return ""
