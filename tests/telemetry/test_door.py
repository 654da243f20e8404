from __future__ import annotations

import subprocess
import sys

import aibrix_ray.telemetry


def test_the_door_exports_what_it_says() -> None:
    names = aibrix_ray.telemetry.__all__
    assert names == sorted(names)
    assert all(hasattr(aibrix_ray.telemetry, name) for name in names)


def test_importing_the_room_does_not_import_ray() -> None:
    code = (
        "import sys, aibrix_ray.telemetry, aibrix_ray.telemetry.hub, aibrix_ray.telemetry.buffer;"
        "sys.exit('ray' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
