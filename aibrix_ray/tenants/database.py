"""Transactions on SQLite and PostgreSQL, for several threads and processes.

Opens nothing until the first transaction, so a gateway starts while its store is down. Blocking:
call it in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from aibrix_ray.errors import Conflict, StoreUnavailable
from aibrix_ray.tenants.location import prepare_file
from aibrix_ray.tenants.tables import prepare

#: For a connection, for a statement, and for another writer's lock.
_PATIENCE_S = 5
_WRITES = "aibrix_writes"


class Database:
    """An engine whose transactions are bounded in time and fail as `StoreUnavailable`.

    When the database dies, so does every transaction under way; the next one connects anew.
    """

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self._engine = _engine(url)
        self._writer = self._engine.execution_options(**{_WRITES: True})
        self._prepared = False
        self._preparing = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Give a connection in a transaction that only reads.

        Raises:
            StoreUnavailable: the database cannot be reached, or fails.
            ConfigError: its tables are those of another version, or its file cannot be made.
        """
        with self._transaction(self._engine) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """Give a connection in a transaction; it is committed unless the block raises.

        Raises:
            StoreUnavailable: the database cannot be reached, or fails; whether the transaction
                was committed is then unknown.
            Conflict: a unique value is taken, or what is referred to has gone.
            ConfigError: its tables are those of another version, or its file cannot be made.
        """
        with self._transaction(self._writer) as connection:
            yield connection

    def close(self) -> None:
        """Close the idle connections; those in use close with their transaction."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        try:
            self._prepare_once()
            with engine.begin() as connection:
                yield connection
        except IntegrityError as error:
            raise Conflict("What this is about was changed by another request.") from error
        except (DBAPIError, PoolTimeout) as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()
            raise StoreUnavailable(reason[0] if reason else type(error).__name__) from error

    def _prepare_once(self) -> None:
        if self._prepared:
            return
        with self._preparing:
            if self._prepared:
                return
            prepare_file(self.url)
            with self._writer.begin() as connection:
                prepare(connection)
            self._prepared = True


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": _PATIENCE_S})
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = sa.create_engine(
        url,
        pool_size=2,
        max_overflow=2,
        pool_timeout=_PATIENCE_S,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": _PATIENCE_S,
            "tcp_user_timeout": _PATIENCE_S * 1000,
            "prepare_threshold": None,  # a pooler between us may change the session
        },
    )
    sa.event.listen(engine, "begin", _begin_postgres)
    return engine


def _set_up_sqlite(connection: Any, record: object) -> None:
    # Python's driver would begin a transaction by itself, at a moment of its own.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys = ON")
    # Readers go on beside a writer. Only speed hangs on it, and while another process is
    # switching it cannot be set: then a later connection does.
    with suppress(connection.OperationalError):
        connection.execute("PRAGMA journal_mode = WAL").close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes then would fail where another one wrote meanwhile.
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgres(connection: sa.Connection) -> None:
    # For this transaction alone: behind a pooler the session is also somebody else's.
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{_PATIENCE_S}s'")
