"""Who may use the gateways: tenants, their API keys, and what they have used.

`Store` is durable and blocking (SQLAlchemy; SQLite or PostgreSQL). `TenantDirectory` and
`UsageRecorder` stand between it and a gateway's loop: no request waits for the store, save the
first one with a key. `Tenancy` is all of it. Knows no HTTP, no Ray, and no request but its headers.
"""

from aibrix_ray.tenants.calls import StoreCalls
from aibrix_ray.tenants.directory import TenantDirectory
from aibrix_ray.tenants.location import ENVIRONMENT, shown, store_url
from aibrix_ray.tenants.recorder import UsageRecorder
from aibrix_ray.tenants.records import IssuedKey, KeyRecord, KeyState, TenantRecord
from aibrix_ray.tenants.report import key_data, parse_groups, parse_moment, tenant_data, to_csv
from aibrix_ray.tenants.spec import NewKey, NewTenant, PriorityName, Rotation, TenantSettings
from aibrix_ray.tenants.store import Store
from aibrix_ray.tenants.tenancy import Tenancy
from aibrix_ray.tenants.tenant import Priority, Tenant, key_of
from aibrix_ray.tenants.usage_rows import COUNTS, UsageQuery

__all__ = [
    "COUNTS",
    "ENVIRONMENT",
    "IssuedKey",
    "KeyRecord",
    "KeyState",
    "NewKey",
    "NewTenant",
    "Priority",
    "PriorityName",
    "Rotation",
    "Store",
    "StoreCalls",
    "Tenancy",
    "Tenant",
    "TenantDirectory",
    "TenantRecord",
    "TenantSettings",
    "UsageQuery",
    "UsageRecorder",
    "key_data",
    "key_of",
    "parse_groups",
    "parse_moment",
    "shown",
    "store_url",
    "tenant_data",
    "to_csv",
]
