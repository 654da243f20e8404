"""Serving ASGI applications from within a Ray replica. Knows no Ray."""

from aibrix_ray.asgi.limits import ConnectionLimits, connections_possible
from aibrix_ray.asgi.server import HttpServer
from aibrix_ray.asgi.sockets import tcp_socket, unix_socket
from aibrix_ray.asgi.tls import Certificate
from aibrix_ray.asgi.types import (
    ON_DISCONNECT,
    TASK,
    WRITE,
    AsgiApp,
    Headers,
    Message,
    Receive,
    Scope,
    Send,
)

__all__ = [
    "ON_DISCONNECT",
    "TASK",
    "WRITE",
    "AsgiApp",
    "Certificate",
    "ConnectionLimits",
    "Headers",
    "HttpServer",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "connections_possible",
    "tcp_socket",
    "unix_socket",
]
