"""Makers of backends and gateways; what a test leaves under way fails it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from aibrix_ray.config import GatewayArgs
from tests.dataplane.backends import (
    Backend,
    Handler,
    MakeBackend,
    MakeRawBackend,
    RawBackend,
    Script,
    echo,
)
from tests.dataplane.gateways import Gateway, MakeGateway, Replicas, make_user_config
from tests.dataplane.waiting import within


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run on uvloop, as a replica does; `tests/test_asgi.py` runs on asyncio's own loop."""
    return {"uvloop": uvloop.new_event_loop}


class ErrorLog(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        self.lines.append(f"{record.name}: {record.getMessage()}\n{trace}")


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket."""
    path = tempfile.mkdtemp(prefix="ab-")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture
async def backend(socket_dir: Path) -> AsyncIterator[MakeBackend]:
    made: list[Backend] = []

    async def make(handler: Handler = echo, *, tcp: bool = False, token: str = "") -> Backend:
        uds = None if tcp else str(socket_dir / f"app-{len(made)}.sock")
        made.append(Backend(handler, uds=uds, token=token))
        await made[-1].start()
        return made[-1]

    yield make
    for each in made:
        await within(each.kill())


@pytest.fixture
async def raw_backend(socket_dir: Path) -> AsyncIterator[MakeRawBackend]:
    made: list[RawBackend] = []

    async def make(script: Script, *, tcp: bool = False) -> RawBackend:
        uds = None if tcp else str(socket_dir / f"raw-{len(made)}.sock")
        made.append(RawBackend(script, uds=uds))
        await made[-1].start()
        return made[-1]

    yield make
    for each in made:
        await within(each.kill())


@pytest.fixture
async def gateway(backend: MakeBackend, raw_backend: MakeRawBackend) -> AsyncIterator[MakeGateway]:
    """Make gateways; each ends with nothing under way and no error in the log.

    Depends on the makers of backends only to be torn down before them.
    """
    made: list[Gateway] = []
    errors = ErrorLog()
    logging.getLogger().addHandler(errors)

    async def make(
        replicas: Replicas | Mapping[str, Replicas] = (),
        *,
        models: Mapping[str, Any] = {},
        args: Mapping[str, Any] = {},
        max_outstanding: int = 512,
        clock: Callable[[], float] = time.monotonic,
        **model: Any,
    ) -> Gateway:
        made.append(
            Gateway(
                replicas,
                user_config=make_user_config(model, models),
                args=GatewayArgs(**args),
                max_outstanding=max_outstanding,
                clock=clock,
            )
        )
        await made[-1].start()
        return made[-1]

    yield make
    try:
        for each in made:
            await each.close()
    finally:
        logging.getLogger().removeHandler(errors)
    tolerated = [text for each in made for text in each.tolerated]
    unexpected = [line for line in errors.lines if not any(text in line for text in tolerated)]
    assert not unexpected, "\n".join(unexpected)
