"""Tenants in the store. Blocking; every call is one transaction and raises `StoreUnavailable`."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from aibrix_ray.errors import Conflict, NotFound
from aibrix_ray.tenants.database import Database
from aibrix_ray.tenants.records import TenantRecord
from aibrix_ray.tenants.secret import new_id
from aibrix_ray.tenants.spec import NewTenant, TenantSettings
from aibrix_ray.tenants.tables import count_change, keys, tenants


class TenantRows:
    """Makes, reads, changes and deletes tenants."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def create(self, spec: NewTenant) -> TenantRecord:
        """Make a tenant.

        Raises:
            Conflict: the name is taken.
        """
        values = spec.model_dump(mode="json")
        values |= {"id": new_id("tenant"), "created_s": self._clock()}
        try:
            with self._database.writing() as connection:
                connection.execute(tenants.insert().values(**values))
                count_change(connection)
                return tenant_named(connection, spec.name)
        except Conflict as error:
            raise Conflict(f"There is a tenant `{spec.name}` already.", param="name") from error

    def get(self, name: str) -> TenantRecord:
        """Return a tenant by its name.

        Raises:
            NotFound: there is none.
        """
        with self._database.reading() as connection:
            return tenant_named(connection, name)

    def list(self, *, after: str = "", limit: int | None = None) -> list[TenantRecord]:
        """Return tenants by name, those behind the name `after`."""
        query = sa.select(tenants).where(tenants.c.name > after)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(tenants.c.name).limit(limit))
            return [tenant_record(row) for row in rows]

    def change(self, name: str, settings: TenantSettings) -> TenantRecord:
        """Change the fields that were given to `settings`; gateways see it within seconds.

        Raises:
            NotFound: there is no such tenant.
        """
        values = settings.model_dump(mode="json", include=settings.model_fields_set)
        with self._database.writing() as connection:
            if values:
                connection.execute(tenants.update().where(tenants.c.name == name).values(**values))
                count_change(connection)
            return tenant_named(connection, name)

    def delete(self, name: str, *, force: bool = False) -> None:
        """Delete a tenant and its keys; its usage stays.

        Raises:
            NotFound: there is no such tenant.
            Conflict: it has keys that work, and `force` is false.
        """
        with self._database.writing() as connection:
            tenant = tenant_named(connection, name)
            working = connection.scalar(
                sa.select(sa.func.count())
                .select_from(keys)
                .where(
                    keys.c.tenant_id == tenant.id,
                    keys.c.revoked_s.is_(None),
                    sa.or_(keys.c.expires_s.is_(None), keys.c.expires_s > self._clock()),
                )
            )
            if working and not force:
                raise Conflict(
                    f"The tenant `{name}` has {working} keys that work; revoke them first, "
                    "or delete it with force."
                )
            connection.execute(keys.delete().where(keys.c.tenant_id == tenant.id))
            connection.execute(tenants.delete().where(tenants.c.id == tenant.id))
            count_change(connection)


def tenant_named(connection: sa.Connection, name: str) -> TenantRecord:
    """Return a tenant by its name.

    Raises:
        NotFound: there is none.
    """
    row = connection.execute(sa.select(tenants).where(tenants.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"There is no tenant `{name}`.", param="tenant")
    return tenant_record(row)


def tenant_record(row: sa.Row[tuple[object, ...]]) -> TenantRecord:
    """Return the record of a row that has the columns of `tenants`."""
    values = {column.name: row._mapping[column] for column in tenants.columns}
    if values["allowed_models"] is not None:
        values["allowed_models"] = tuple(values["allowed_models"])
    return TenantRecord(**values)
