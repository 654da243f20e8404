"""One JSON request and its whole answer: for probes, never for load."""

from __future__ import annotations

import http.client

from benchmarks.processes import NotMeasured


def post(port: int, path: str, body: str, *, key: str = "", timeout_s: float = 10.0) -> bytes:
    """Post `body` to loopback `port` and return the body of a 200.

    Raises NotMeasured on any other answer, and OSError where nobody listens.
    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        content = response.read()
    except http.client.HTTPException as error:
        raise NotMeasured(f"no proper HTTP answer: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise NotMeasured(f"HTTP {response.status}: {content[:200]!r}")
    return content
