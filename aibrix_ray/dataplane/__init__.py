"""The gateway's data plane: an ASGI application that carries bytes between clients and replicas.

Not named `gateway`, because that name of the package is the builder in `import_path:
aibrix_ray:gateway`, and a sub-package of the same name would replace it once imported.
"""

from aibrix_ray.dataplane.app import GatewayApp
from aibrix_ray.dataplane.channel import Address
from aibrix_ray.dataplane.fleet import Fleet, Member
from aibrix_ray.dataplane.wire import FORWARDED_PATHS

__all__ = ["FORWARDED_PATHS", "Address", "Fleet", "GatewayApp", "Member"]
