"""Two replicas are asked the same: the first one to answer wins, the other is given up."""

from __future__ import annotations

import asyncio
from typing import Any

from aibrix_ray.dataplane.channel import Connection
from aibrix_ray.dataplane.exchange import Exchange

Asked = asyncio.Task[Connection | None]


async def first_answer(
    exchange: Exchange, rival: Exchange, asked: Asked, asked_too: Asked
) -> tuple[Connection | None, bool]:
    """Wait for an answer to `exchange` or to its `rival`, and end the question to the other.

    `exchange` goes on with who answered; whatever became of the other is in `rival` afterwards.

    Returns:
        The connection that answers, `None` if both replicas failed; and whether the replica that
        is now in `rival` failed, rather than being given up.
    """
    waiting: set[Asked] = {asked, asked_too}
    try:
        winner: Asked | None = None
        while waiting and winner is None:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            answers = [task for task in (asked, asked_too) if task in done and _answered(task)]
            winner = answers[0] if answers else None
    finally:
        await cancel(*waiting)
    if winner is asked_too:
        for name in ("replica", "connection", "sent_s", "moved"):
            mine, other = getattr(exchange, name), getattr(rival, name)
            setattr(exchange, name, other)
            setattr(rival, name, mine)
    loser = asked if winner is asked_too else asked_too
    failed = loser not in waiting and not _answered(loser)
    return (winner.result() if winner is not None else None), failed


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """End tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _answered(task: Asked) -> bool:
    """Return whether a question that is over got an answer; one that was interrupted counts."""
    return task.exception() is not None or task.result() is not None
