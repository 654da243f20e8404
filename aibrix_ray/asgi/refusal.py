"""The answers that a connection gives by itself, without an application: in OpenAI's shape."""

from __future__ import annotations

import http

import msgspec

from aibrix_ray.errors import ApiError, whole_seconds


def refusal(error: ApiError) -> bytes:
    """Return the whole answer for `error`; the connection closes behind it."""
    body = msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": error.type,
                "param": error.param,
                "code": error.code,
            }
        }
    )
    lines = [
        f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    if error.retry_after_s is not None:
        lines.append(f"retry-after: {whole_seconds(error.retry_after_s)}")
    return "\r\n".join([*lines, "", ""]).encode() + body
