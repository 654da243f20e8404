"""Servers with an application and limits of a test's own, on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

import pytest
import uvloop

from aibrix_ray.asgi import (
    AsgiApp,
    Certificate,
    ConnectionLimits,
    HttpServer,
    Receive,
    Scope,
    Send,
    tcp_socket,
)
from tests.dataplane.clients import RawClient


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body and answer with it."""
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        body += message["body"]
        more = message["more_body"]
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Running:
    """A server on a port of its own, and the clients that a test connects to it."""

    def __init__(self, server: HttpServer, port: int) -> None:
        self.server = server
        self.port = port
        self.clients: list[RawClient] = []

    async def connect(self) -> RawClient:
        self.clients.append(await RawClient.open(self.port))
        return self.clients[-1]

    async def close(self) -> None:
        for client in self.clients:
            client.close()
        await self.server.close()


class MakeServer(Protocol):
    async def __call__(
        self,
        app: AsgiApp = ...,
        *,
        keep_alive_s: float = 60,
        certificate: Certificate | None = None,
        **limits: Any,
    ) -> Running:
        """Serve `app`; by default it echoes. `limits` are those of `ConnectionLimits`."""
        ...


@pytest.fixture
async def serve() -> AsyncIterator[MakeServer]:
    made: list[Running] = []

    async def make(
        app: AsgiApp = echo,
        *,
        keep_alive_s: float = 60,
        certificate: Certificate | None = None,
        **limits: Any,
    ) -> Running:
        server = HttpServer(
            app,
            keep_alive_s=keep_alive_s,
            limits=ConnectionLimits(**limits),
            certificate=certificate,
        )
        sock = tcp_socket("127.0.0.1", 0)
        made.append(Running(server, sock.getsockname()[1]))
        await server.listen(sock)
        return made[-1]

    yield make
    for each in made:
        await each.close()
