"""What replicas say of themselves, gathered, merged and handed on; windows over it.

This door is pure. The modules that use Ray are imported by their own paths: `telemetry.actor` (the
detached Telemetry actor), `telemetry.reporter` (the reporter of a node and a replica's side of it),
`telemetry.client` (a gateway's side).
"""

from aibrix_ray.telemetry.store import TelemetryStore, Update, Version
from aibrix_ray.telemetry.windows import LoadWindow, LoadWindows

__all__ = ["LoadWindow", "LoadWindows", "TelemetryStore", "Update", "Version"]
