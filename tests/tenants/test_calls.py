"""Calls of a store that hangs: bounded in time and in number."""

from __future__ import annotations

import asyncio
import threading

import pytest

from aibrix_ray.errors import ConfigError, StoreUnavailable
from aibrix_ray.tenants import StoreCalls


async def test_a_call_that_hangs_is_given_up_and_its_thread_comes_back() -> None:
    calls, hung = StoreCalls(timeout_s=0.05), threading.Event()
    with pytest.raises(StoreUnavailable) as caught:
        await calls.run(lambda: hung.wait(30))
    assert "0.05 s" in caught.value.reason
    hung.set()
    assert await calls.run(lambda: 7) == 7
    calls.close()


async def test_a_store_that_hangs_is_soon_asked_no_more() -> None:
    calls, hung = StoreCalls(timeout_s=0.05), threading.Event()
    many = [calls.run(lambda: hung.wait(30)) for _ in range(200)]
    answers = await asyncio.gather(*many, return_exceptions=True)
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)
    reasons = [answer.reason for answer in answers if isinstance(answer, StoreUnavailable)]
    assert sum("too many" in reason for reason in reasons) == 200 - 64
    hung.set()
    async with asyncio.timeout(20):
        while calls._open:
            await asyncio.sleep(0.001)
    assert await calls.run(lambda: 7) == 7
    calls.close()


async def test_a_store_of_another_version_is_unavailable_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = StoreCalls()

    def refuse() -> None:
        raise ConfigError(path="auth.store", value="tables of version 9", expected="version 1")

    with pytest.raises(StoreUnavailable):
        await calls.run(refuse)
    assert "tables of version 9" in caplog.text
    calls.close()
