"""What the gateway reads of a request, and how it writes one to a replica.

Only what is routed on is decoded; the body itself is forwarded byte for byte. The one exception: a
request that names an alias, or no model at all, has its `model` field set to the model's own name,
because the engine knows no other; every other field keeps its bytes even then.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection
from typing import Any

import msgspec

from aibrix_ray.asgi import Headers
from aibrix_ray.errors import BadRequest

#: Every JSON endpoint of vLLM's application that a client may call. Never: adapter load and
#: unload, sleep, reset, profiling, collective_rpc.
JSON_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/score",
        "/score",
        "/v1/rerank",
        "/v2/rerank",
        "/rerank",
        "/classify",
        "/v1/classify",
        "/pooling",
        "/v1/pooling",
        "/tokenize",
        "/detokenize",
    }
)
#: The streams of these can go on at another replica.
CARRIED_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
#: Paths where `"stream": true` asks for an event stream.
STREAMED_PATHS = CARRIED_PATHS | {"/v1/responses", "/v1/messages"}
MULTIPART_PATHS = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})
#: Answers of these are tokens of their own; of the others only the prompt counts.
GENERATING_PATHS = STREAMED_PATHS | MULTIPART_PATHS
FORWARDED_PATHS = JSON_PATHS | MULTIPART_PATHS

#: Hop-by-hop, ours, or the client's credentials: none of them is a replica's business.
_DROPPED_REQUEST = frozenset(
    {
        b"host",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"transfer-encoding",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
        b"content-length",
        b"authorization",
        b"x-api-key",
        b"cookie",
        b"accept-encoding",
        b"x-request-id",
    }
)
_DROPPED_RESPONSE = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"trailer",
        # ours, whatever a replica says
        b"x-request-id",
        b"request-id",
        b"target-replica",
    }
)
_PRIVATE = b"x-aibrix-"
_ORDINARY_CONNECTION = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close"})

_REQUEST_IDS = itertools.count(1)
_REQUEST_ID_PREFIX = os.urandom(8).hex().encode()
_SANE_ID = re.compile(rb"[!-~]{1,128}").fullmatch


class Peek(msgspec.Struct, gc=False):
    """The fields of a JSON body that are routed on; the values are checked where they are used."""

    model: Any = None
    stream: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    n: Any = None
    user: Any = None
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()


_PEEK = msgspec.json.Decoder(Peek)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def peek(body: bytes) -> Peek:
    """Decode the fields that are routed on.

    Raises:
        BadRequest: the body is not a JSON object.
    """
    try:
        return _PEEK.decode(body)
    except msgspec.ValidationError as error:
        raise BadRequest(f"The request body must be a JSON object: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The request body is not valid JSON: {error}") from None
    except RecursionError:
        raise BadRequest("The request body is nested too deeply") from None


def with_model(body: bytes, model: str) -> bytes:
    """Return the body with its `model` set; all other fields keep their bytes."""
    fields = _FIELDS.decode(body)
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def identity(headers: Headers) -> tuple[bytes, str | None]:
    """Return the client's `x-request-id` if it is a sane one, else a new one; and the `user`.

    By the `user` header AIBrix's clients name a user; anyone can set it.
    """
    request_id = user = None
    for name, value in headers:
        if name == b"x-request-id":
            if request_id is None and _SANE_ID(value):
                request_id = value
        elif name == b"user":
            user = value.decode("latin-1") or None
    return request_id or b"%b%08x" % (_REQUEST_ID_PREFIX, next(_REQUEST_IDS)), user


def request_head(
    path: str,
    query: bytes,
    headers: Headers,
    *,
    length: int,
    request_id: bytes,
    token: str,
    extra: bytes = b"",
) -> bytes:
    """Return the head of the request to a replica, ready to be followed by the body.

    `extra` are private header lines, each with its line end.
    """
    target = path.encode("ascii", "replace")
    if query:
        target += b"?" + query
    parts = [
        b"POST %b HTTP/1.1\r\nhost: replica\r\ncontent-length: %d\r\nx-aibrix-meta: 1\r\n"
        b"x-request-id: %b\r\n%b" % (target, length, request_id, extra)
    ]
    if token:
        parts.append(b"x-aibrix-token: %b\r\n" % token.encode())
    named = _named_by_connection(headers)
    for name, value in headers:
        if name not in _DROPPED_REQUEST and not name.startswith(_PRIVATE) and name not in named:
            parts.append(b"%b: %b\r\n" % (name, value))
    parts.append(b"\r\n")
    return b"".join(parts)


def response_headers(headers: Headers, extra: Headers) -> Headers:
    """Return the headers for the client: the replica's without private ones, and ours."""
    named = _named_by_connection(headers)
    kept = [
        pair
        for pair in headers
        if pair[0] not in _DROPPED_RESPONSE
        and not pair[0].startswith(_PRIVATE)
        and pair[0] not in named
    ]
    kept += extra
    return kept


def _named_by_connection(headers: Headers) -> Collection[bytes]:
    """Return the further hop-by-hop headers that `Connection` names (RFC 9110, 7.6.1)."""
    for name, value in headers:
        if name == b"connection" and value not in _ORDINARY_CONNECTION:
            return {token.strip().lower() for token in value.split(b",")}
    return ()
