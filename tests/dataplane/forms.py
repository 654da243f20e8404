"""Multipart bodies, byte by byte."""

from __future__ import annotations

BOUNDARY = "----xyz"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
TRANSCRIBE = "/v1/audio/transcriptions"


def field(name: str, value: bytes, *, filename: str | None = None) -> bytes:
    """Return one part."""
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"\r\nContent-Type: application/octet-stream'
    return f"--{BOUNDARY}\r\n{disposition}\r\n\r\n".encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    """Return a whole body."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
