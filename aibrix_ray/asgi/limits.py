"""What one client connection, and all of them together, may take from a server."""

from __future__ import annotations

import contextlib
import logging
import resource
from dataclasses import dataclass

logger = logging.getLogger(__name__)

#: Files that a process needs besides its connections: libraries, logs, Ray's own sockets.
_RESERVED_FILES = 256


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of one server; every one has an end, so that no client holds anything for ever.

    Attributes:
        max_connections: open connections; one more is answered with 503.
        max_header_bytes: a request's head, its target included (431). Checked exactly where a head
            comes in several reads, and to the size of one read (256 KiB) behind a pipelined
            request.
        max_headers: header lines of a request (431).
        max_url_bytes: a request's target (414).
        max_pipelined: requests of one connection that wait behind the one being answered.
        upload_timeout_s: for a head to be complete, and for the longest pause in a body (408).
        max_body_bytes: a body that is announced larger than this and waits for `100 Continue` is
            answered with 413 instead; None: the application's business.
    """

    max_connections: int = 100_000
    max_header_bytes: int = 64 * 1024
    max_headers: int = 256
    max_url_bytes: int = 16 * 1024
    max_pipelined: int = 64
    upload_timeout_s: float = 60.0
    max_body_bytes: int | None = None


def connections_possible(wanted: int) -> int:
    """Return how many client connections the limit on open files leaves, at most `wanted`.

    A request that is forwarded takes two files, one to each side, so half of the limit is for
    clients: a gateway that ran out of files could not reach its replicas, and would take them for
    dead. The soft limit is raised to the hard one first.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    possible = wanted
    if soft != resource.RLIM_INFINITY:
        possible = min(wanted, max(1, (soft - _RESERVED_FILES) // 2))
    if possible < wanted:
        logger.warning(
            "max_connections is %s, not %s: the limit on open files (ulimit -n) is %s",
            possible,
            wanted,
            soft,
        )
    return possible
