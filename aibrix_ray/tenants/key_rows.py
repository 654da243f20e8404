"""API keys in the store. Blocking; every call is one transaction and raises `StoreUnavailable`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import sqlalchemy as sa

from aibrix_ray.errors import Conflict, NotFound
from aibrix_ray.tenants.database import Database
from aibrix_ray.tenants.records import FoundKey, IssuedKey, KeyRecord, KeyState
from aibrix_ray.tenants.secret import digest_of, new_id, new_key, shown_prefix
from aibrix_ray.tenants.spec import NewKey
from aibrix_ray.tenants.tables import count_change, keys, read_change, tenants
from aibrix_ray.tenants.tenant_rows import tenant_named, tenant_record

_RECORDS = sa.select(
    keys.c.id,
    tenants.c.name.label("tenant"),
    *(
        keys.c[name]
        for name in (
            *("name", "prefix", "role", "created_s", "expires_s", "revoked_s", "last_used_s"),
        )
    ),
).join_from(keys, tenants)


class KeyRows:
    """Makes, lists, revokes, rotates and looks up keys."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def create(self, spec: NewKey) -> IssuedKey:
        """Make a key. Its text is in the answer and nowhere else.

        Raises:
            NotFound: there is no such tenant.
        """
        now_s = self._clock()
        expires_s = None if spec.expires_in_s is None else now_s + spec.expires_in_s
        with self._database.writing() as connection:
            tenant = tenant_named(connection, spec.tenant)
            return _issue(
                connection,
                tenant_id=tenant.id,
                name=spec.name,
                role=spec.role,
                created_s=now_s,
                expires_s=expires_s,
            )

    def get(self, key_id: str) -> KeyRecord:
        """Return a key by its id.

        Raises:
            NotFound: there is none.
        """
        with self._database.reading() as connection:
            return _key_of_id(connection, key_id)

    def list(
        self, *, tenant: str | None = None, after: str | None = None, limit: int | None = None
    ) -> list[KeyRecord]:
        """Return keys, the oldest first: those of a tenant's name, those behind the id `after`.

        Raises:
            NotFound: there is no key `after`, or no such tenant.
        """
        query = _RECORDS.order_by(keys.c.created_s, keys.c.id).limit(limit)
        with self._database.reading() as connection:
            if tenant is not None:
                query = query.where(keys.c.tenant_id == tenant_named(connection, tenant).id)
            if after is not None:
                last = _key_of_id(connection, after)
                place = sa.tuple_(keys.c.created_s, keys.c.id)
                query = query.where(place > sa.tuple_(last.created_s, last.id))
            return [_key_record(row) for row in connection.execute(query)]

    def revoke(self, key_id: str) -> KeyRecord:
        """End a key for good; gateways refuse it within seconds. Again: nothing changes.

        Raises:
            NotFound: there is no such key.
        """
        with self._database.writing() as connection:
            if _key_of_id(connection, key_id).revoked_s is None:
                _update(connection, key_id, revoked_s=self._clock())
            return _key_of_id(connection, key_id)

    def rotate(self, key_id: str, *, grace_s: float) -> IssuedKey:
        """Make a key in place of another, which works for `grace_s` longer, or until its own end.

        Tenant, name, role and lifetime are those of the old key.

        Raises:
            NotFound: there is no such key.
            Conflict: it has ended already.
        """
        now_s = self._clock()
        with self._database.writing() as connection:
            old = _key_of_id(connection, key_id)
            state = old.state(now_s)
            if state is not KeyState.ACTIVE:
                raise Conflict(f"The key `{key_id}` is {state}; create a new one.")
            lifetime_s = None if old.expires_s is None else old.expires_s - old.created_s
            issued = _issue(
                connection,
                tenant_id=tenant_named(connection, old.tenant).id,
                name=old.name,
                role=old.role,
                created_s=now_s,
                expires_s=None if lifetime_s is None else now_s + lifetime_s,
            )
            end_s = now_s + grace_s
            _update(connection, key_id, expires_s=min(end_s, old.expires_s or end_s))
            return issued

    def find(self, digests: Iterable[bytes]) -> tuple[int, dict[bytes, FoundKey]]:
        """Return which digests are those of keys that are not revoked, and as of which change.

        Whether a key has expired is left to the caller: it will ask itself again and again.
        """
        query = (
            sa.select(keys.c.sha256, keys.c.id.label("key_id"), keys.c.role, keys.c.expires_s)
            .add_columns(*tenants.columns)
            .join_from(keys, tenants)
            .where(keys.c.sha256.in_(list(digests)), keys.c.revoked_s.is_(None))
        )
        with self._database.reading() as connection:
            change = read_change(connection)
            found = {}
            for row in connection.execute(query):
                values = row._mapping
                digest = bytes(values[keys.c.sha256])
                found[digest] = FoundKey(
                    digest=digest,
                    key_id=values["key_id"],
                    is_admin=values[keys.c.role] == "admin",
                    expires_s=values[keys.c.expires_s],
                    tenant=tenant_record(row),
                )
            return change, found

    def latest_change(self) -> int:
        """Return a number that grows with every change of tenants and keys."""
        with self._database.reading() as connection:
            return read_change(connection)

    def touch(self, key_ids: Iterable[str]) -> None:
        """Note that keys were used just now."""
        with self._database.writing() as connection:
            touch(connection, key_ids, self._clock())


def touch(connection: sa.Connection, key_ids: Iterable[str], now_s: float) -> None:
    """Note in a transaction that keys were used; no change that gateways need to know."""
    # In one order everywhere: two transactions that lock the same rows must not wait in a circle.
    rows = [{"touched": key_id} for key_id in sorted(set(key_ids))]
    if rows:
        connection.execute(
            keys.update()
            .where(
                keys.c.id == sa.bindparam("touched"),
                sa.func.coalesce(keys.c.last_used_s, 0.0) < now_s,
            )
            .values(last_used_s=now_s),
            rows,
        )


def _issue(
    connection: sa.Connection,
    *,
    tenant_id: str,
    name: str,
    role: str,
    created_s: float,
    expires_s: float | None,
) -> IssuedKey:
    key, key_id = new_key(), new_id("key")
    connection.execute(
        keys.insert().values(
            id=key_id,
            tenant_id=tenant_id,
            name=name,
            sha256=digest_of(key.encode()),
            prefix=shown_prefix(key),
            role=role,
            created_s=created_s,
            expires_s=expires_s,
        )
    )
    count_change(connection)
    return IssuedKey(_key_of_id(connection, key_id), key)


def _update(connection: sa.Connection, key_id: str, **values: float) -> None:
    connection.execute(keys.update().where(keys.c.id == key_id).values(**values))
    count_change(connection)


def _key_of_id(connection: sa.Connection, key_id: str) -> KeyRecord:
    row = connection.execute(_RECORDS.where(keys.c.id == key_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no key `{key_id}`.")
    return _key_record(row)


def _key_record(row: sa.Row[tuple[object, ...]]) -> KeyRecord:
    return KeyRecord(**row._mapping)
