"""Closed-loop clients: streamed completions over raw sockets, each timed to its first token.

A process of its own, so that the load is the same whatever it is pointed at. Each connection sends
a prompt nobody sent before, waits for the whole stream, and sends the next. It looks at bytes as
they come and takes an answer apart only once it is whole, so it costs some tens of microseconds a
stream; `python benchmarks/gateway.py` measures that too, against the mock.

    python benchmarks/stream_client.py --port 8000 --model tiny --connections 8 --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import uvloop

TOKENS = 32
_PROMPT_WORDS = 24
_WORDS = [
    "river",
    "stone",
    "cloud",
    "engine",
    "window",
    "paper",
    "garden",
    "letter",
    "winter",
    "number",
    "silver",
    "market",
]
_FIRST_EVENT = b"data: {"
_LAST_CHUNK = b"0\r\n\r\n"
_STREAM_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Tally:
    """What was seen between the two ends of the measured window."""

    starts_s: float
    ends_s: float
    ttft_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    arrivals: int = 0
    all_streams: int = 0
    errors: int = 0
    first_error: str = ""

    def count(self, stream: Stream) -> None:
        """Take in a finished stream, if it ended inside the window."""
        self.all_streams += 1
        if self.starts_s <= stream.done_s < self.ends_s:
            self.ttft_s.append(stream.first_s - stream.sent_s)
            self.total_s.append(stream.done_s - stream.sent_s)
            self.arrivals += stream.arrivals

    def fail(self, error: str) -> None:
        """Count a stream that did not come whole."""
        self.errors += 1
        self.first_error = self.first_error or error


@dataclass(slots=True)
class Stream:
    """The times of one stream, and its bytes so far."""

    sent_s: float
    first_s: float = 0.0
    done_s: float = 0.0
    arrivals: int = 0
    data: bytearray = field(default_factory=bytearray)

    def add(self, data: bytes) -> bool:
        """Take bytes as they arrived; return whether the answer is whole."""
        self.data += data
        self.arrivals += 1
        if not self.first_s and _FIRST_EVENT in self.data:
            self.first_s = time.perf_counter()
        if not self.data.endswith(_LAST_CHUNK) and not self._is_plain():
            return False
        self.done_s = time.perf_counter()
        return True

    def problem(self, usage: re.Pattern[bytes]) -> str | None:
        """Return what is wrong with a whole answer."""
        if not self.data.startswith(b"HTTP/1.1 200"):
            return bytes(self.data[-300:]).decode(errors="replace")
        if not usage.search(self.data):
            return f"no usage of {TOKENS} tokens: {bytes(self.data[-300:])!r}"
        return None if b"data: [DONE]" in self.data else "no [DONE]"

    def _is_plain(self) -> bool:
        """An error answer has a length instead of chunks; what is read of it is enough."""
        return not self.data.startswith(b"HTTP/1.1 200") and b"\r\n\r\n" in self.data


class Connection(asyncio.Protocol):
    """One keep-alive connection; `fetch` runs one stream over it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._stream: Stream | None = None
        self._whole: asyncio.Future[Stream] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._stream and self._whole and self._stream.add(data) and not self._whole.done():
            self._whole.set_result(self._stream)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._whole and not self._whole.done():
            self._whole.set_exception(exc or ConnectionResetError("closed in mid stream"))

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def fetch(self, request: bytes) -> Stream:
        """Send `request` and return its stream once it is whole."""
        assert self._transport is not None, "fetch on a closed connection"
        self._whole = asyncio.get_running_loop().create_future()
        self._stream = Stream(sent_s=time.perf_counter())
        self._transport.write(request)
        async with asyncio.timeout(_STREAM_TIMEOUT_S):
            return await self._whole

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()


@dataclass(frozen=True, slots=True)
class Load:
    """Where to, how much, and which prompts."""

    port: int
    model: str
    connections: int
    seconds: float
    warm_up_s: float
    seed: int
    key: str = ""

    def request(self, connection: int, index: int) -> bytes:
        """Return a request whose prompt shares no prefix with any other's."""
        number = f"{self.seed}-{self.connections}-{connection}-{index}"
        words = random.Random(number).choices(_WORDS, k=_PROMPT_WORDS)
        body = json.dumps(
            {
                "model": self.model,
                "prompt": " ".join([number[::-1], *words]),
                "max_tokens": TOKENS,
                "ignore_eos": True,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        head += f"Authorization: Bearer {self.key}\r\n\r\n" if self.key else "\r\n"
        return head.encode() + body


async def run(load: Load, *, check_usage: bool = True) -> dict[str, object]:
    """Keep `load.connections` streams open until the window ends; return what was seen in it."""
    starts_s = time.perf_counter() + load.warm_up_s
    tally = Tally(starts_s=starts_s, ends_s=starts_s + load.seconds)
    pattern = rb'"completion_tokens":\s*%d\b' % TOKENS if check_usage else rb""
    clients = [
        asyncio.create_task(_client(load, number, tally, re.compile(pattern)))
        for number in range(load.connections)
    ]
    await asyncio.sleep(tally.starts_s - time.perf_counter())
    cpu_before_s = _own_cpu_s()
    await asyncio.sleep(tally.ends_s - time.perf_counter())
    cpu_s = _own_cpu_s() - cpu_before_s
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    return _report(load, tally, cpu_s)


async def _client(load: Load, number: int, tally: Tally, usage: re.Pattern[bytes]) -> None:
    loop = asyncio.get_running_loop()
    connection: Connection | None = None
    index = 0
    try:
        while True:
            index += 1
            try:
                if connection is None or not connection.is_open:
                    _, connection = await loop.create_connection(Connection, "127.0.0.1", load.port)
                stream = await connection.fetch(load.request(number, index))
            except (OSError, TimeoutError) as error:
                tally.fail(repr(error))
                connection = None
                await asyncio.sleep(0.1)
                continue
            problem = stream.problem(usage)
            if problem is None:
                tally.count(stream)
            else:
                tally.fail(problem)
                connection.close()
                connection = None
    finally:
        if connection is not None:
            connection.close()


def _report(load: Load, tally: Tally, cpu_s: float) -> dict[str, object]:
    streams = len(tally.total_s)
    return {
        "streams": streams,
        "all_streams": tally.all_streams,
        "streams_per_s": streams / load.seconds,
        "ttft_p50_ms": percentile(tally.ttft_s, 50) * 1e3,
        "ttft_p99_ms": percentile(tally.ttft_s, 99) * 1e3,
        "p50_ms": percentile(tally.total_s, 50) * 1e3,
        "p99_ms": percentile(tally.total_s, 99) * 1e3,
        "arrivals_per_stream": tally.arrivals / max(1, streams),
        "client_cpu_us_per_stream": cpu_s / max(1, streams) * 1e6,
        "errors": tally.errors,
        "first_error": tally.first_error,
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the nearest-rank percentile; 0 of nothing."""
    if not values:
        return 0.0
    ranked = sorted(values)
    return ranked[max(0, -(-percent * len(ranked) // 100) - 1)]


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Run one load and print what was seen as one line of JSON."""
    parser = argparse.ArgumentParser(description="Closed-loop streaming clients.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm-up", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="another seed, other prompts")
    parser.add_argument("--key", default="", help="API key of all clients")
    parser.add_argument("--no-usage", action="store_true", help="the server counts no tokens")
    args = parser.parse_args(argv)
    load = Load(
        port=args.port,
        model=args.model,
        connections=args.connections,
        seconds=args.seconds,
        warm_up_s=args.warm_up,
        seed=args.seed,
        key=args.key,
    )
    print(json.dumps(uvloop.run(run(load, check_usage=not args.no_usage))))


if __name__ == "__main__":
    main()
