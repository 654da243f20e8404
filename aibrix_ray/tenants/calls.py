"""Calls of the store from an event loop: in few threads, each bounded in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aibrix_ray.errors import ConfigError, StoreUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 4
#: Calls that may be under way or wait for a thread; a store that hangs must not fill memory.
_MOST_CALLS = 64
#: A little longer than the store's own patience, which says better what is wrong.
TIMEOUT_S = 8.0


class StoreCalls:
    """Runs blocking calls of the store beside the loop, in threads of their own.

    A store that hangs keeps these threads, and no others; further calls fail at once.
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="aibrix-store")
        self._open = 0

    async def run(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, or raise what it raises.

        Raises:
            StoreUnavailable: it takes too long (and goes on in its thread), too many are under
                way, or the store's tables are not ours.
        """
        if self._open >= _MOST_CALLS:
            raise StoreUnavailable("too many calls of the store are under way")
        self._open += 1
        loop = asyncio.get_running_loop()
        future = self._executor.submit(call)
        future.add_done_callback(lambda _: _on_loop(loop, self._ended))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise StoreUnavailable(f"no answer within {self._timeout_s:g} s") from error
        except ConfigError as error:
            logger.error("the store of tenants and keys cannot be used: %s", error)
            raise StoreUnavailable(str(error)) from error

    def close(self) -> None:
        """Take no more calls; those under way end in their threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _ended(self) -> None:
        self._open -= 1


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:
        return  # the loop has closed, and nobody counts any more
