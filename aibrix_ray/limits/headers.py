"""The `x-ratelimit-*` headers, as OpenAI's clients read them."""

from __future__ import annotations

import math
from functools import lru_cache

from aibrix_ray.limits.subject import MINUTE_S, Kind

Header = tuple[bytes, bytes]
Headers = tuple[Header, ...]

_LIMIT = {kind: f"x-ratelimit-limit-{kind}".encode() for kind in Kind}
_REMAINING = {kind: f"x-ratelimit-remaining-{kind}".encode() for kind in Kind}
_RESET = {kind: f"x-ratelimit-reset-{kind}".encode() for kind in Kind}


def rate_headers(kind: Kind, limit: int, remaining: int) -> Headers:
    """Return limit, remaining and reset (until nothing is spent) of requests or tokens."""
    return (
        _limit_header(kind, limit),
        (_REMAINING[kind], b"%d" % remaining),
        (_RESET[kind], duration((limit - remaining) * MINUTE_S / limit)),
    )


def duration(seconds: float) -> bytes:
    """Return a span such as `17ms`, `2s` or `6m0s`, rounded up."""
    ms = math.ceil(seconds * 1000 - 1e-6)
    return b"%dms" % ms if ms < 1000 else _whole(math.ceil(ms / 1000))


def retry_header(retry_after_s: float) -> Header:
    """Return the finer companion of `retry-after`, which OpenAI's clients prefer."""
    return (b"retry-after-ms", b"%d" % max(1, math.ceil(retry_after_s * 1000)))


@lru_cache(maxsize=4096)
def _limit_header(kind: Kind, limit: int) -> Header:
    return (_LIMIT[kind], b"%d" % limit)


@lru_cache(maxsize=4096)
def _whole(seconds: int) -> bytes:
    return b"%ds" % seconds if seconds < 60 else b"%dm%ds" % divmod(seconds, 60)
