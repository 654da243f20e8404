"""Usage in the store, by hour. Blocking; every call is one transaction, or `StoreUnavailable`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from aibrix_ray.tenants.database import Database
from aibrix_ray.tenants.key_rows import touch
from aibrix_ray.tenants.records import UsageCounts, UsageKey
from aibrix_ray.tenants.tables import usage, writers

HOUR_S = 3600
DAY_S = 86_400
#: A writer that has been silent for so long has died.
_FORGET_WRITER_S = 30 * DAY_S

COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
#: What a report may be grouped by → the column, or the start of its time.
GROUPS: Mapping[str, sa.ColumnElement[str] | sa.ColumnElement[int]] = {
    "day": usage.c.hour_s - usage.c.hour_s % DAY_S,
    "hour": usage.c.hour_s,
    "tenant": usage.c.tenant,
    "key": usage.c.key_id,
    "model": usage.c.model,
    "adapter": usage.c.adapter,
}
_TIMES = {"day": "%Y-%m-%d", "hour": "%Y-%m-%dT%H:%M:%SZ"}


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which usage, and how it is added up. Hours are whole: one that has begun counts.

    Attributes:
        group_by: names of `GROUPS`, in the order of the columns; none: one row for everything.
        tenant: a tenant's name; None: all.
        model: a model's name; None: all.
        since_s: from the hour that this falls into.
        until_s: hours that begin before this.
        limit: rows at most; None: all.
    """

    group_by: tuple[str, ...] = ("tenant", "model", "adapter")
    tenant: str | None = None
    model: str | None = None
    since_s: float | None = None
    until_s: float | None = None
    limit: int | None = None


class UsageRows:
    """Adds usage up and reports it."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def add(self, writer: str, batch: int, counts: Mapping[UsageKey, UsageCounts]) -> None:
        """Add what a writer has counted; the same batch again adds nothing.

        So a writer that does not know whether a batch has arrived sends it again, unchanged.

        Args:
            writer: an id that nobody else has.
            batch: its number, which grows.
            counts: what to add; also, these keys were used just now.
        """
        now_s = self._clock()
        with self._database.writing() as connection:
            if not _is_next(connection, writer, batch, now_s):
                return
            # In one order everywhere: two gateways must not wait for each other in a circle.
            rows = [asdict(key) | asdict(counts[key]) for key in sorted(counts, key=_order)]
            if rows:
                connection.execute(_adding(connection), rows)
            touch(connection, (key.key_id for key in counts), now_s)

    def report(self, query: UsageQuery) -> list[dict[str, str | int]]:
        """Return rows of the groups' values and the sums, ordered by the groups."""
        groups = [GROUPS[name].label(name) for name in query.group_by]
        sums = [sa.func.coalesce(sa.func.sum(usage.c[name]), 0).label(name) for name in COUNTS]
        statement = sa.select(*groups, *sums).where(*_conditions(query))
        if groups:
            # By position: PostgreSQL would not see that two parameters are the same expression.
            places: list[sa.ColumnElement[int]] = [
                sa.literal_column(str(place + 1)) for place in range(len(groups))
            ]
            statement = statement.group_by(*places).order_by(*places)
        with self._database.reading() as connection:
            rows = connection.execute(statement.limit(query.limit)).mappings().all()
        return [{name: _value(name, value) for name, value in row.items()} for row in rows]


def _is_next(connection: sa.Connection, writer: str, batch: int, now_s: float) -> bool:
    """Note the batch; return false if it, or a later one, is in already."""
    statement = _insert(connection)(writers).values(writer=writer, batch=batch, at_s=now_s)
    # The row stays locked until the end: a call that was given up may still be under way.
    statement = statement.on_conflict_do_update(
        index_elements=[writers.c.writer],
        set_={"batch": batch, "at_s": now_s},
        where=writers.c.batch < batch,
    )
    # SQLAlchemy forgets the row count of an INSERT unless it is asked for.
    done = connection.execute(statement, execution_options={"preserve_rowcount": True})
    noted = done.rowcount == 1
    if noted and batch == 1:
        connection.execute(writers.delete().where(writers.c.at_s < now_s - _FORGET_WRITER_S))
    return noted


def _adding(connection: sa.Connection) -> sa.Executable:
    statement = _insert(connection)(usage)
    sums = {name: usage.c[name] + statement.excluded[name] for name in COUNTS}
    return statement.on_conflict_do_update(index_elements=list(usage.primary_key), set_=sums)


def _insert(
    connection: sa.Connection,
) -> Callable[[sa.Table], postgresql.Insert] | Callable[[sa.Table], sqlite.Insert]:
    return postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert


def _order(key: UsageKey) -> tuple[int, str, str, str, str]:
    return (key.hour_s, key.tenant, key.key_id, key.model, key.adapter)


def _conditions(query: UsageQuery) -> list[sa.ColumnElement[bool]]:
    found: list[sa.ColumnElement[bool]] = []
    if query.tenant is not None:
        found.append(usage.c.tenant == query.tenant)
    if query.model is not None:
        found.append(usage.c.model == query.model)
    if query.since_s is not None:
        found.append(usage.c.hour_s >= int(query.since_s // HOUR_S) * HOUR_S)
    if query.until_s is not None:
        found.append(usage.c.hour_s < query.until_s)
    return found


def _value(name: str, value: object) -> str | int:
    if name in _TIMES:
        assert isinstance(value, int), "times are whole hours"
        return datetime.fromtimestamp(value, UTC).strftime(_TIMES[name])
    # PostgreSQL adds up whole numbers as decimals.
    return value if isinstance(value, str) else int(value)  # type: ignore[call-overload]
