"""ASGI's five types, and what our server adds to a request's scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

#: The task that runs a request, in its scope. `asyncio.current_task()` asks the kernel for the pid.
TASK = "aibrix.task"
#: An application stores a callable under this key of the scope; it is called once if the client
#: goes away before the answer is complete. Saves a task a request that would wait on `receive`.
ON_DISCONNECT = "aibrix.on_disconnect"
#: In the scope of an answer of our own server: takes bytes of a body that is sent in pieces at once
#: and without a task, and returns whether it did. It did not where its client is slow or has gone
#: or the head is not out yet; then they are for `send`.
WRITE = "aibrix.write"
