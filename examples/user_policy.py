"""A routing policy of your own: the same user goes to the same replica, unless that one is busy.

`examples/user_policy.yaml` names it by import path. Start it from the root of the repository, so
that the gateways find the module `examples.user_policy`, and ask with a `user`:

    make serve FILE=examples/user_policy.yaml
    curl -i http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
        -d '{"model": "sim", "prompt": "Hello", "max_tokens": 8, "user": "alice"}'

The header `target-replica` of the answer names the replica: one per user, as long as it keeps up.

A policy is pure: it has no clock and opens no connection, so the test below needs neither Ray nor
a gateway. `python -m examples.user_policy` runs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from aibrix_ray import Decision, Outcome, ReplicaView, RequestView, Verdict


class StickyUser:
    """Rendezvous hashing: when a replica comes or goes, only the users of that one move."""

    def __init__(self, *, seed: int, slack: int = 4) -> None:
        # `seed` differs from gateway to gateway; not using it makes all of them agree.
        self._slack = slack

    def choose(
        self, request: RequestView, replicas: Sequence[ReplicaView], now_s: float
    ) -> Decision:
        least = min(replica.load for replica in replicas)
        calm = [replica for replica in replicas if replica.load <= least + self._slack]
        if request.user is None:
            return Decision(Verdict.SEND, min(calm, key=lambda replica: replica.load), "least load")
        user = request.user
        best = max(calm, key=lambda replica: _weight(user, replica.replica_id))
        return Decision(Verdict.SEND, best, "the user's replica")

    def observe(self, outcome: Outcome) -> None:
        """Learn nothing: the loads say enough."""


def _weight(user: str, replica_id: str) -> bytes:
    return hashlib.blake2b(f"{user} {replica_id}".encode(), digest_size=8).digest()


def main() -> None:
    policy = StickyUser(seed=0, slack=2)
    replicas = [ReplicaView(replica_id=name, group="g", model="m") for name in "abc"]
    alice = RequestView(request_id="1", model="m", user="alice")
    home = policy.choose(alice, replicas, now_s=0.0).replica
    assert home is not None
    assert policy.choose(alice, replicas[::-1], now_s=1.0).replica is home
    home.in_flight = 3
    assert policy.choose(alice, replicas, now_s=2.0).replica is not home
    print("alice's replica is", home.replica_id, "unless it is three requests behind")


if __name__ == "__main__":
    main()
