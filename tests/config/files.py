"""The files that the tests of this folder read."""

from __future__ import annotations

import textwrap
from pathlib import Path

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"

GATEWAY = """
- name: gateway
  import_path: aibrix_ray:gateway
  route_prefix: null
"""
GROUP = """
- name: tiny
  import_path: aibrix_ray:replica_group
  route_prefix: null
  args: {model: tiny}
"""


def make_file(
    *,
    top: str = "proxy_location: Disabled",
    gateway: str = GATEWAY,
    gateway_args: str = "",
    user_config: str = "",
    group: str = GROUP,
    group_args: str = "",
    more: str = "",
) -> str:
    """Return a file of one gateway and one group; `*_args` and `user_config` are flow mappings."""
    if gateway_args:
        gateway = f"{gateway.rstrip()}\n  args: {gateway_args}\n"
    if user_config:
        gateway += f"  deployments:\n  - {{name: gateway, user_config: {user_config}}}\n"
    if group_args:
        group = group.replace("{model: tiny}", group_args)
    return f"{top}\napplications:{gateway.rstrip()}{group.rstrip()}\n{textwrap.dedent(more)}"
