"""The tables, and how they come into being. Times are seconds since 1970, ids are texts.

`meta.change` grows with every change of tenants and keys, in the transaction that makes it: a
reader that has seen a number knows everything that was changed up to it.
"""

from __future__ import annotations

import sqlalchemy as sa

from aibrix_ray.errors import ConfigError

#: Of the tables below. A store of another version is refused, never guessed at.
SCHEMA_VERSION = 1
#: Name of the lock under which PostgreSQL makes the tables; any number that nobody else uses.
_ADVISORY_LOCK = 0x61_69_62_72_69_78

#: Characters of a model's or adapter's name that usage keeps: PostgreSQL's keys end at 2.7 kB.
NAME_MAX = 256

metadata = sa.MetaData()

meta = sa.Table(
    "aibrix_meta",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)

tenants = sa.Table(
    "aibrix_tenants",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("allowed_models", sa.JSON(none_as_null=True)),
    sa.Column("requests_per_minute", sa.BigInteger),
    sa.Column("tokens_per_minute", sa.BigInteger),
    sa.Column("max_concurrent", sa.BigInteger),
    sa.Column("priority", sa.String(8), nullable=False),
    sa.Column("slo_tier", sa.String(64)),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("created_s", sa.Float(53), nullable=False),
)

keys = sa.Table(
    "aibrix_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column(
        "tenant_id", sa.ForeignKey(tenants.c.id, ondelete="CASCADE"), nullable=False, index=True
    ),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("sha256", sa.LargeBinary(32), nullable=False, unique=True),
    sa.Column("prefix", sa.String(16), nullable=False),
    sa.Column("role", sa.String(8), nullable=False),
    sa.Column("created_s", sa.Float(53), nullable=False),
    sa.Column("expires_s", sa.Float(53)),
    sa.Column("revoked_s", sa.Float(53)),
    sa.Column("last_used_s", sa.Float(53)),
)

#: What was used, by hour. It refers to tenants and keys by value: it outlives both.
usage = sa.Table(
    "aibrix_usage",
    metadata,
    sa.Column("hour_s", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("tenant", sa.String(64), primary_key=True),
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("model", sa.String(NAME_MAX), primary_key=True),
    sa.Column("adapter", sa.String(NAME_MAX), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
)

#: The last batch of usage that each writer has added: a batch sent twice counts once.
writers = sa.Table(
    "aibrix_usage_writers",
    metadata,
    sa.Column("writer", sa.String(64), primary_key=True),
    sa.Column("batch", sa.BigInteger, nullable=False),
    sa.Column("at_s", sa.Float(53), nullable=False),
)


def prepare(connection: sa.Connection) -> None:
    """Make the tables if they are not there; safe where several processes start at once.

    The connection is in a transaction that excludes other writers (SQLite: BEGIN IMMEDIATE);
    PostgreSQL takes a lock of its own here.

    Raises:
        ConfigError: the tables are those of another version.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    metadata.create_all(connection)
    found = connection.scalar(sa.select(meta.c.value).where(meta.c.name == "schema"))
    if found is None:
        connection.execute(
            meta.insert(),
            [{"name": "schema", "value": SCHEMA_VERSION}, {"name": "change", "value": 0}],
        )
    elif found != SCHEMA_VERSION:
        raise ConfigError(
            path="auth.store",
            value=f"tables of version {found}",
            expected=f"tables of version {SCHEMA_VERSION}",
            hint="run the version of aibrix-ray that made them, or name another store",
        )


def read_change(connection: sa.Connection) -> int:
    """Return the number of the latest change; read it before what it is to vouch for."""
    query = sa.select(meta.c.value).where(meta.c.name == "change")
    return int(connection.execute(query).scalar_one())


def count_change(connection: sa.Connection) -> None:
    """Say that this transaction changes tenants or keys."""
    connection.execute(meta.update().where(meta.c.name == "change").values(value=meta.c.value + 1))
