"""Limits over all gateways: what carries syncs between a gateway's book and the one authority.

The counting is the room `limits/`. Here are the authority in its three forms (in the process, one
detached actor, Redis) and `GatewayLimiter`, a gateway's side, which the data plane asks. This door
loads neither Ray nor redis-py: `actor` and `redis_authority` are imported by who wants them.
"""

from aibrix_ray.limiter.authority import Authority, AuthorityUnreachable, LocalAuthority
from aibrix_ray.limiter.gateway import Admitted, GatewayLimiter, LimitedTenant, has_limits

__all__ = [
    "Admitted",
    "Authority",
    "AuthorityUnreachable",
    "GatewayLimiter",
    "LimitedTenant",
    "LocalAuthority",
    "has_limits",
]
