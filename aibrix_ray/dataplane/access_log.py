"""One JSON line a request, by the logger `aibrix_ray.access`.

Where nobody has given that logger (or the root) a handler, the lines go to standard output, which
in a Ray worker is a file of its own. Set one up to send them elsewhere.
"""

from __future__ import annotations

import datetime
import logging
import sys

import msgspec

from aibrix_ray.dataplane.facts import RequestFacts

LOGGER = logging.getLogger("aibrix_ray.access")

_encode = msgspec.json.Encoder(decimal_format="number").encode


def prepare() -> None:
    """See to it that lines which are asked for appear somewhere."""
    if LOGGER.level == logging.NOTSET:
        LOGGER.setLevel(logging.INFO)
    if not LOGGER.hasHandlers():
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        LOGGER.addHandler(handler)


def write(facts: RequestFacts) -> None:
    """Log a request that has ended."""
    LOGGER.info("%s", line(facts, datetime.datetime.now(datetime.UTC)))


def line(facts: RequestFacts, now: datetime.datetime) -> str:
    """Return the line; `now` is the time of the request's end."""
    ttft_s = facts.ttft_s
    return _encode(
        {
            "time": now.isoformat(timespec="milliseconds"),
            "request_id": facts.request_id,
            "client": facts.client,
            "method": facts.method,
            "path": facts.path,
            "status": facts.status,
            "ending": facts.ending,
            "model": facts.model,
            "replica": facts.replica,
            "tenant": facts.tenant,
            "retries": facts.retries,
            "ttft_s": None if ttft_s is None else round(ttft_s, 6),
            "duration_s": round(facts.duration_s, 6),
            "prompt_tokens": facts.prompt_tokens,
            "completion_tokens": facts.completion_tokens,
            "bytes_out": facts.bytes_out,
        }
    ).decode()
