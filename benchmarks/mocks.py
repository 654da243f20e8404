"""Mock backends as running services, what is asked of them, and the check that they answer."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mock_backend import TOKENS
from benchmarks.post import post
from benchmarks.processes import NotMeasured, Service, free_port

MODEL = "mock"
PATH = "/v1/chat/completions"
#: Every client sends one, as official clients do, whether it is looked at or not.
ANY_KEY = "sk-of-nobody-but-as-long-as-a-key-is-0123456789"
_TOKEN = b'" token"'
READY_TIMEOUT_S = 30.0
_PROMPT = "Tell me, in exactly thirty-two tokens, what the weather does in the mountains in May."


@dataclass(frozen=True, slots=True)
class Backend:
    """One mock, on a port and on a Unix socket."""

    port: int
    uds: Path
    service: Service


def start_mock(scratch: Path, name: str, *, delay_ms: float = 0.0) -> Backend:
    """Start a mock and return it once it answers right."""
    port, uds = free_port(), scratch / f"{name}.sock"
    script = str(Path(__file__).with_name("mock_backend.py"))
    command = [sys.executable, script, "--port", str(port), "--uds", str(uds), "--model", MODEL]
    command += ["--delay-ms", str(delay_ms)]
    service = Service(name, command, log=scratch / f"{name}.log")
    service.wait_ready(lambda: check_answers(port), timeout_s=READY_TIMEOUT_S)
    return Backend(port=port, uds=uds, service=service)


def request_body(*, stream: bool) -> str:
    """Return the one body that is posted: some 190 bytes."""
    messages = [{"role": "user", "content": _PROMPT}]
    body = {"model": MODEL, "messages": messages, "max_tokens": TOKENS, "stream": stream}
    return json.dumps(body, separators=(",", ":"))


def check_answers(port: int, *, key: str = ANY_KEY) -> tuple[int, int]:
    """Ask once plainly and once for a stream; return the sizes of the two bodies in bytes.

    Raises NotMeasured where an answer is not whole, and OSError where nobody listens.
    """
    plain = post(port, PATH, request_body(stream=False), key=key)
    stream = post(port, PATH, request_body(stream=True), key=key)
    if not json.loads(plain).get("choices"):
        raise NotMeasured(f"a plain answer without choices: {plain[:200]!r}")
    # Tokens and not events: some write the end's reason as an event of its own.
    tokens = stream.count(_TOKEN)
    if tokens != TOKENS or b"data: [DONE]" not in stream:
        raise NotMeasured(f"a stream of {tokens} tokens for {TOKENS}, or without its end")
    return len(plain), len(stream)
