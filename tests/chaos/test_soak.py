"""A soak: an installation under load, from which something is taken away every few seconds.

60 s in the suite; `make chaos` runs 10 minutes of another seed each time. A failure names what was
done around it, and `AIBRIX_CHAOS_SEED` repeats the same plan.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from tests.chaos.chaos import Chaos
from tests.chaos.clients import Clients, Failure, Question
from tests.chaos.memory import Watch
from tests.chaos.schedule import plan
from tests.e2e.installation import Installation, metric, simulated_file, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SECONDS = float(os.environ.get("AIBRIX_CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("AIBRIX_CHAOS_SEED", "1"))

_CLIENTS = 64
_GATEWAYS = 2
_REPLICAS = 3
_MAX_TOKENS = 48
_WARM_UP_S = 15.0
#: An installation's gateway holds a Ray worker, whose own buffers still fill in the first minutes.
_LEVEL = 1.10


def soak_file() -> str:
    """Return the YAML: limits that nobody reaches, so that they are counted."""
    text = simulated_file(replicas=_REPLICAS, per_node=_GATEWAYS)
    limits = "limits: {requests_per_minute: 100000000, max_concurrent: 100000}"
    return text.replace("wait_for_replica_s: 30", f"wait_for_replica_s: 30, {limits}")


@pytest.mark.timeout(SECONDS * 3 + 300)
async def test_nothing_is_lost_whatever_is_killed_or_stopped() -> None:
    print(f"chaos: seed {SEED}, {SECONDS:g} s")
    with Installation(soak_file()) as running:
        chaos = Chaos(
            running,
            plan(seed=SEED, duration_s=SECONDS),
            gateways=_GATEWAYS,
            replicas=_REPLICAS,
        )
        await chaos.recovered()
        clients = Clients(
            running.url, count=_CLIENTS, max_tokens=_MAX_TOKENS, excuses=chaos.excuses
        )
        async with Watch(running.gateways) as watch, clients:
            await clients.until(2 * _CLIENTS)
            await chaos.run()
            await chaos.recovered()
            await clients.until(2 * _CLIENTS)
        told = chaos.diary(chaos.start_s, chaos.start_s + SECONDS * 10)
        print(f"{clients.seen.plain} answers, {clients.seen.streams} streams, ", end="")
        print(f"{clients.seen.excused} broken by killed gateways\n{told}")

        assert_none(clients.seen.lost, "plain requests", chaos)
        assert_none(clients.seen.broken, "streams", chaos)
        growths = watch.growths(warm_up_s=_WARM_UP_S)
        assert growths, "no gateway lived long enough to watch its memory"
        assert max(growths.values()) <= _LEVEL, f"gateways grew: {growths}"
        wait_until(lambda: in_flight(running) == 0, timeout_s=15.0, what="nothing in flight")
        running.interrupt()
        running.wait(60.0)
        wait_until(lambda: not running.descendants(), timeout_s=15.0, what="no process is left")


def assert_none(failures: Sequence[Failure], of_what: str, chaos: Chaos) -> None:
    """Fail with the first failures, each with what was done around it."""
    told = [
        f"{failure.begun_s - chaos.start_s:.2f} to {failure.ended_s - chaos.start_s:.2f} s: "
        f"{failure.what}\n{chaos.diary(failure.begun_s, failure.ended_s)}"
        for failure in failures[:5]
    ]
    listed = "\n\n".join(told)
    assert not failures, f"seed {SEED}: {len(failures)} {of_what} failed:\n{listed}"


def in_flight(running: Installation) -> int:
    return metric(running.url, "aibrix_ray_in_flight_requests ")


def test_the_text_that_is_expected_is_long_enough_to_be_cut() -> None:
    assert len(Question("Hello", _MAX_TOKENS, chat=False).answer) > _MAX_TOKENS
