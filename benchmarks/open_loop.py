"""Open-loop clients: requests that come at random times of their own, answered or not.

A process of its own. Arrivals are Poisson from a seed; each takes a free keep-alive connection or
opens one. `--clients` closes the loop instead: so many clients, each asking again at once, which
finds what a server can do at most.

    python benchmarks/open_loop.py --port 8000 --model sim --rate 400 --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp
import uvloop

from benchmarks.stream_client import percentile

_TIMEOUT_S = 60.0
#: After a refusal, in a closed loop.
_BACK_OFF_S = 0.1


@dataclass(frozen=True, slots=True)
class Load:
    """Where to, and how much; `clients` or `rate_per_s`."""

    port: int
    model: str
    seconds: float
    max_tokens: int
    rate_per_s: float = 0.0
    clients: int = 0
    #: Completions this early do not count: the server fills up first.
    warm_up_s: float = 1.0
    seed: int = 0


@dataclass(slots=True)
class Tally:
    """What came back. Latencies are of the whole answer, in seconds."""

    offered: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    #: Answers of 200 that were complete between the warm-up and the end of the load.
    good_in_window: int = 0
    good_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    refused_without_retry_after: int = 0
    timeouts: int = 0
    broken: int = 0
    first_problem: str = ""

    def problem(self, text: str) -> None:
        """Keep the first text that explains a failure."""
        self.first_problem = self.first_problem or text


class Clients:
    """Asks, and counts."""

    def __init__(self, load: Load, session: aiohttp.ClientSession) -> None:
        self._load = load
        self._session = session
        self._url = f"http://127.0.0.1:{load.port}/v1/completions"
        self._starts_s = time.perf_counter() + load.warm_up_s
        self._ends_s = self._starts_s + load.seconds
        self.tally = Tally()

    async def open_loop(self) -> None:
        """Send at random times until the load ends, then wait for all answers."""
        chance = random.Random(self._load.seed)
        due_s = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while due_s < self._ends_s:
                due_s += chance.expovariate(self._load.rate_per_s)
                await asyncio.sleep(due_s - time.perf_counter())
                group.create_task(self._ask())

    async def closed_loop(self) -> None:
        """Keep every client asking until the load ends."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._load.clients):
                group.create_task(self._ask_again())

    def report(self) -> dict[str, object]:
        """Return what was seen as plain data; times in milliseconds."""
        tally = self.tally
        refused = tally.refused_s
        return {
            "offered": tally.offered,
            "offered_per_s": tally.offered / (self._load.seconds + self._load.warm_up_s),
            "goodput_per_s": tally.good_in_window / self._load.seconds,
            "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
            "good_p50_ms": percentile(tally.good_s, 50) * 1e3,
            "good_p99_ms": percentile(tally.good_s, 99) * 1e3,
            "refused": len(refused),
            "refused_p50_ms": percentile(refused, 50) * 1e3,
            "refused_p99_ms": percentile(refused, 99) * 1e3,
            "refused_max_ms": max(refused, default=0.0) * 1e3,
            "refused_without_retry_after": tally.refused_without_retry_after,
            "timeouts": tally.timeouts,
            "broken": tally.broken,
            "first_problem": tally.first_problem,
        }

    async def _ask_again(self) -> None:
        while time.perf_counter() < self._ends_s:
            if not await self._ask():
                await asyncio.sleep(_BACK_OFF_S)

    async def _ask(self) -> bool:
        """Send one request, count what comes of it, and return whether that was an answer."""
        tally = self.tally
        tally.offered += 1
        body = {
            "model": self._load.model,
            "prompt": f"request {tally.offered} of {self._load.seed}",
            "max_tokens": self._load.max_tokens,
            "ignore_eos": True,
        }
        sent_s = time.perf_counter()
        try:
            async with self._session.post(self._url, json=body) as answer:
                content = await answer.read()
        except TimeoutError:
            tally.timeouts += 1
            return False
        except aiohttp.ClientError as error:
            tally.broken += 1
            tally.problem(repr(error))
            return False
        done_s = time.perf_counter()
        tally.statuses[answer.status] += 1
        if answer.status == 200:
            tally.good_s.append(done_s - sent_s)
            tally.good_in_window += self._starts_s <= done_s < self._ends_s
        elif answer.status == 429:
            tally.refused_s.append(done_s - sent_s)
            tally.refused_without_retry_after += "retry-after" not in answer.headers
        else:
            tally.problem(f"{answer.status}: {content[:300]!r}")
        return answer.status == 200


async def run(load: Load) -> dict[str, object]:
    """Put the load on and return what was seen."""
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        clients = Clients(load, session)
        await (clients.closed_loop() if load.clients else clients.open_loop())
        return clients.report()


def main(argv: Sequence[str] | None = None) -> None:
    """Run one load and print what was seen as one line of JSON."""
    parser = argparse.ArgumentParser(description="Open-loop clients.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rate", type=float, default=0.0, help="requests a second, on average")
    how.add_argument("--clients", type=int, default=0, help="clients in a closed loop")
    args = parser.parse_args(argv)
    load = Load(
        port=args.port,
        model=args.model,
        seconds=args.seconds,
        max_tokens=args.max_tokens,
        rate_per_s=args.rate,
        clients=args.clients,
        seed=args.seed,
    )
    print(json.dumps(uvloop.run(run(load))))


if __name__ == "__main__":
    main()
