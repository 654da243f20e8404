"""Sockets that are bound before anybody listens on them."""

from __future__ import annotations

import contextlib
import os
import socket


def unix_socket(path: str) -> socket.socket:
    """Bind a Unix socket at `path` (inside a 0700 directory); a stale file is replaced."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    os.chmod(path, 0o600)
    sock.setblocking(False)
    return sock


def tcp_socket(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Bind a TCP socket; `port` 0 takes a free one. With `reuse_port`, siblings share the port.

    It does not listen yet: `HttpServer.listen` makes it so.

    Raises:
        OSError: the port is taken by somebody who does not share it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock
