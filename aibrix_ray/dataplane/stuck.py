"""Takes requests away from replicas that hang; those would keep them until their deadlines."""

from __future__ import annotations

from collections.abc import Iterable

from aibrix_ray.dataplane.exchange import PENDING, Exchange
from aibrix_ray.dataplane.fleet import Replica


def leave_stuck(exchanges: Iterable[Exchange], now_s: float) -> None:
    """Move what can be moved away from stuck replicas; eject those that are overdue.

    A request can be moved as long as its client has nothing of the answer, or where another
    replica can go on with its stream; and only if there is another replica for it.
    """
    for exchange in list(exchanges):
        replica = exchange.replica
        if replica is None or exchange.connection is None or exchange.moved:
            continue
        if _hangs(exchange, replica, now_s) and exchange.life.may_move(replica):
            exchange.move(f"replica {replica.replica_id} does not answer")


def _hangs(exchange: Exchange, replica: Replica, now_s: float) -> bool:
    model = exchange.life.model
    waited_s = now_s - exchange.sent_s
    stuck = model.is_stuck(replica, now_s)
    if exchange.first_byte_s != PENDING:
        stream = exchange.stream
        return stuck and stream is not None and stream.carried and model.settings.resume
    if stuck:
        silent_s = model.settings.outliers.silent_s
        return silent_s is not None and waited_s > silent_s
    if not exchange.life.request.stream or not model.outliers.is_overdue(waited_s):
        return False
    if model.outliers.overdue(replica, waited_s, now_s):
        model.sort()
    return model.outliers.is_out(replica)
