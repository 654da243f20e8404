"""A client that decides every byte and packet it sends, and sees every one it gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Self

from tests.dataplane.waiting import within

CHAT = "/v1/chat/completions"


@dataclass
class Answer:
    """An HTTP answer as it came over the wire; `body` is without the framing."""

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str) -> str | None:
        return next((v for k, v in self.headers if k == name), None)

    def all(self, name: str) -> list[str]:
        return [v for k, v in self.headers if k == name]

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error object; fails where the answer is not one of OpenAI's shape."""
        assert self.header("content-type") == "application/json", self
        error: dict[str, Any] = self.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error

    @property
    def chunked(self) -> bool:
        return self.header("transfer-encoding") == "chunked"


class RawClient:
    """One TCP connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, *, receive_buffer_bytes: int | None = None) -> Self:
        """Connect; with a small receive buffer a client that does not read is soon noticed."""
        sock = socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except OSError:
            sock.close()
            raise
        limit = receive_buffer_bytes or 1 << 20
        return cls(*await asyncio.open_connection(sock=sock, limit=limit))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def flush(self) -> None:
        await within(self.writer.drain())

    def post(
        self, body: bytes | dict[str, Any], path: str = CHAT, *lines: str, version: str = "1.1"
    ) -> None:
        """Send a request with a Content-Length in one packet."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        self.send(
            head("POST", path, *lines, f"content-length: {len(data)}", version=version) + data
        )

    def get(self, path: str, *lines: str, method: str = "GET", version: str = "1.1") -> None:
        self.send(head(method, path, *lines, version=version))

    async def head(self) -> Answer:
        """Read up to the end of the answer's head."""
        lines = (await within(self.reader.readuntil(b"\r\n\r\n"))).decode().split("\r\n")
        pairs = [line.partition(": ") for line in lines[1:] if line]
        return Answer(int(lines[0].split()[1]), [(k.lower(), v) for k, _, v in pairs])

    async def chunk(self) -> bytes:
        """Read one chunk of a chunked answer; b"" is its regular end."""
        size = int(await within(self.reader.readuntil(b"\r\n")), 16)
        data = await within(self.reader.readexactly(size + 2))
        assert data.endswith(b"\r\n")
        return data[:-2]

    async def answer(self, method: str = "POST") -> Answer:
        """Read one whole answer."""
        answer = await self.head()
        length = answer.header("content-length")
        if method == "HEAD" or answer.status in (204, 304):
            return answer
        if answer.chunked:
            while data := await self.chunk():
                answer.body += data
        elif length is not None:
            answer.body = await within(self.reader.readexactly(int(length)))
        else:
            answer.body = await self.rest()
        return answer

    async def rest(self) -> bytes:
        """Read up to the end of the connection, be it closed or reset."""
        data = b""
        with contextlib.suppress(ConnectionError):
            while piece := await within(self.reader.read(65536)):
                data += piece
        return data

    def leave(self) -> None:
        """Go away as a process that was killed: the gateway sees a reset connection."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


def head(method: str, path: str, *lines: str, version: str = "1.1") -> bytes:
    """Return the head of a request."""
    first = f"{method} {path} HTTP/{version}"
    return "\r\n".join([first, "host: gateway", *lines, "", ""]).encode()
