"""A mock OpenAI backend that is never the slow part: a raw asyncio Protocol on uvloop.

It answers `/v1/chat/completions`, `/v1/completions`, `/v1/models` and `/health` from bytes made
once at start. It reads of a request its path, its content length and whether the body asks for a
stream; it parses no JSON and generates nothing. A stream is sent as an engine sends it: every event
is one HTTP chunk, written on a loop turn of its own (or every `--delay-ms`), so a gateway in front
has as many arrivals to deal with as there are tokens.

    python benchmarks/mock_backend.py --port 9101 --uds a.sock
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvloop

TOKENS = 32
_END_OF_HEAD = b"\r\n\r\n"
_LARGEST_HEAD_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Answers:
    """Every byte the mock can say, ready for the wire."""

    health: bytes
    models: bytes
    chat: bytes
    completion: bytes
    chat_stream: tuple[bytes, ...]
    completion_stream: tuple[bytes, ...]
    not_found: bytes
    length_required: bytes


def make_answers(model: str = "mock", *, tokens: int = TOKENS) -> Answers:
    """Return the answers for `model`, streams being `tokens` events and `[DONE]`."""
    usage = {"prompt_tokens": 24, "completion_tokens": tokens, "total_tokens": 24 + tokens}
    text = " token" * tokens
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "logprobs": None, "finish_reason": "length"}
    chat = {**_head("chat.completion", model), "choices": [{**choice, "message": message}]}
    plain = {**_head("text_completion", model), "choices": [{**choice, "text": text}]}
    card = {"id": model, "object": "model", "created": 0, "owned_by": "mock", "max_model_len": 8192}
    return Answers(
        health=_json_answer({}),
        models=_json_answer({"object": "list", "data": [card]}),
        chat=_json_answer({**chat, "usage": usage}),
        completion=_json_answer({**plain, "usage": usage}),
        chat_stream=_stream([_chat_event(model, last=i == tokens - 1) for i in range(tokens)]),
        completion_stream=_stream(
            [_completion_event(model, last=i == tokens - 1) for i in range(tokens)]
        ),
        not_found=_json_answer(
            {"error": {"message": "no such path", "code": 404}}, "404 Not Found"
        ),
        length_required=_json_answer(
            {"error": {"message": "a body needs a content-length", "code": 411}},
            "411 Length Required",
        ),
    )


def _head(kind: str, model: str) -> dict[str, object]:
    return {"id": "cmpl-0123456789abcdef", "object": kind, "created": 1_700_000_000, "model": model}


def _chat_event(model: str, *, last: bool) -> dict[str, object]:
    choice = {"index": 0, "delta": {"content": " token"}, "logprobs": None}
    reason = "length" if last else None
    return {
        **_head("chat.completion.chunk", model),
        "choices": [{**choice, "finish_reason": reason}],
    }


def _completion_event(model: str, *, last: bool) -> dict[str, object]:
    choice = {"index": 0, "text": " token", "logprobs": None}
    reason = "length" if last else None
    return {**_head("text_completion", model), "choices": [{**choice, "finish_reason": reason}]}


def _json_answer(content: object, status: str = "200 OK") -> bytes:
    body = json.dumps(content, separators=(",", ":")).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + _END_OF_HEAD + body


def _stream(events: Sequence[dict[str, object]]) -> tuple[bytes, ...]:
    """Return what is written on each turn; the head goes out with the first event."""
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    chunks = [_chunk(json.dumps(event, separators=(",", ":")).encode()) for event in events]
    return (head + chunks[0], *chunks[1:], _chunk(b"[DONE]") + b"0\r\n\r\n")


def _chunk(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


class MockProtocol(asyncio.Protocol):
    """One connection: collects a request, answers it, and only then looks at the next."""

    __slots__ = ("_answers", "_buffer", "_closing", "_delay_s", "_loop", "_streaming", "_transport")

    def __init__(
        self, answers: Answers, loop: asyncio.AbstractEventLoop, *, delay_s: float
    ) -> None:
        self._answers = answers
        self._loop = loop
        self._delay_s = delay_s
        self._buffer = b""
        self._streaming = False
        self._closing = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        if not self._streaming:
            self._serve_buffered()

    def _serve_buffered(self) -> None:
        """Answer every whole request that has arrived, up to the first stream."""
        while self._buffer and not self._streaming and self._transport is not None:
            end = self._buffer.find(_END_OF_HEAD)
            if end < 0:
                if len(self._buffer) > _LARGEST_HEAD_BYTES:
                    self._transport.abort()
                return
            head = self._buffer[:end]
            length = content_length(head)
            if length is None:
                self._closing = True
                self._write(self._answers.length_required)
                return
            stop = end + len(_END_OF_HEAD) + length
            if len(self._buffer) < stop:
                return  # the body is still on its way
            body = self._buffer[end + len(_END_OF_HEAD) : stop]
            self._buffer = self._buffer[stop:]
            self._closing = b"\r\nconnection: close" in head.lower()
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        answers = self._answers
        if head.startswith(b"POST /v1/chat/completions "):
            self._generate(body, answers.chat, answers.chat_stream)
        elif head.startswith(b"POST /v1/completions "):
            self._generate(body, answers.completion, answers.completion_stream)
        elif head.startswith(b"GET /health "):
            self._write(answers.health)
        elif head.startswith(b"GET /v1/models "):
            self._write(answers.models)
        else:
            self._write(answers.not_found)

    def _generate(self, body: bytes, whole: bytes, parts: tuple[bytes, ...]) -> None:
        if b'"stream":true' in body or b'"stream": true' in body:
            self._streaming = True
            self._send_part(parts, 0)
        else:
            self._write(whole)

    def _send_part(self, parts: tuple[bytes, ...], index: int) -> None:
        """Write one part and put the next on a later turn of the loop."""
        if self._transport is None:
            return  # the client left
        if index == len(parts) - 1:
            self._streaming = False
            self._write(parts[index])
            self._serve_buffered()
            return
        self._transport.write(parts[index])
        if self._delay_s:
            self._loop.call_later(self._delay_s, self._send_part, parts, index + 1)
        else:
            self._loop.call_soon(self._send_part, parts, index + 1)

    def _write(self, data: bytes) -> None:
        assert self._transport is not None, "an answer to a connection that is gone"
        self._transport.write(data)
        if self._closing:
            self._transport.close()
            self._transport = None


def content_length(head: bytes) -> int | None:
    """Return the length of the body that follows `head`; None where it is not told up front."""
    lowered = head.lower()
    start = lowered.find(b"\r\ncontent-length:")
    if start < 0:
        return None if b"\r\ntransfer-encoding:" in lowered else 0
    start += len(b"\r\ncontent-length:")
    stop = lowered.find(b"\r\n", start)
    return int(lowered[start : stop if stop >= 0 else len(lowered)])


async def serve(
    answers: Answers,
    *,
    port: int | None = None,
    uds: Path | None = None,
    delay_s: float = 0.0,
) -> list[asyncio.Server]:
    """Listen on loopback `port` (0 picks one), on the Unix socket `uds`, or on both."""
    loop = asyncio.get_running_loop()

    def protocol() -> MockProtocol:
        return MockProtocol(answers, loop, delay_s=delay_s)

    servers = []
    if port is not None:
        servers.append(await loop.create_server(protocol, "127.0.0.1", port, backlog=1024))
    if uds is not None:
        uds.unlink(missing_ok=True)
        servers.append(await loop.create_unix_server(protocol, os.fspath(uds), backlog=1024))
    return servers


async def _serve_until_stopped(args: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    answers = make_answers(args.model, tokens=args.tokens)
    servers = await serve(answers, port=args.port, uds=args.uds, delay_s=args.delay_ms / 1000)
    await stopped.wait()
    for server in servers:
        server.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description="A fast mock of an OpenAI server.")
    parser.add_argument("--port", type=int, help="TCP port on loopback")
    parser.add_argument("--uds", type=Path, help="path of a Unix socket")
    parser.add_argument("--model", default="mock", help="model name in answers")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="events a stream")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="pause between events")
    args = parser.parse_args(argv)
    if args.port is None and args.uds is None:
        parser.error("give --port, --uds or both")
    uvloop.run(_serve_until_stopped(args))


if __name__ == "__main__":
    main()
