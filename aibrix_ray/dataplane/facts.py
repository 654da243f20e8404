"""What one request was, for the access log and the trace: filled by whoever knows, read at its end.

Never a prompt, a key, a header's value or a query string: this is what leaves the gateway.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Where the facts stand in a request's scope; absent where nobody reads them.
FACTS = "aibrix.facts"


@dataclass(slots=True, eq=False)
class RequestFacts:
    """One request. The rim fills what it sees; the data plane fills the second part.

    Attributes:
        client: its address, behind trusted proxies the one that they name; "" on a Unix socket.
        status: what the client was told; 499 where it left before, 0 where nothing was said.
        bytes_out: bytes of the answer's body.
        ttft_s: from the request's head to the first byte of the answer's body, unless the data
            plane knows better (a held stream begins with comments).
        duration_s: from the request's head to the end of its answer.

        model: the model's own name, also where an alias was asked for.
        replica: who answered, or was asked last.
        tenant: whose key it was.
        prompt_tokens, completion_tokens: as the engine counted them.
        retries: attempts beyond the first.
        ending: how it ended, in the words of `Ending`.
    """

    started_s: float
    client: str = ""
    method: str = ""
    path: str = ""
    request_id: str = ""
    status: int = 0
    bytes_out: int = 0
    ttft_s: float | None = None
    duration_s: float = 0.0
    model: str = ""
    replica: str = ""
    tenant: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retries: int = 0
    ending: str = ""
