"""The protocol of a routing policy, and the table of those we ship."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from aibrix_ray.errors import ConfigError
from aibrix_ray.registry import Registry
from aibrix_ray.types import Decision, Outcome, ReplicaView, RequestView


class RoutingPolicy(Protocol):
    """Chooses a replica for a request. Pure: no clock, no I/O, no randomness of its own.

    One object serves one model in one gateway (or one simulated gateway). `choose` is called with
    the replicas that may take the request (ready, not draining, not full, not yet tried by it) and
    never with an empty sequence; it must not change what it is given. `observe` is told how each
    attempt ended.
    """

    def choose(
        self, request: RequestView, replicas: Sequence[ReplicaView], now_s: float
    ) -> Decision:
        """Return where the request goes, or that it should queue or be rejected, and why."""
        ...

    def observe(self, outcome: Outcome) -> None:
        """Learn from an attempt that ended."""
        ...


#: name → class; an instance is made with the policy's options from the YAML and `seed=`.
POLICIES: Registry[Any] = Registry("routing policy")


def make_policy(
    name: str, *, seed: int, options: dict[str, Any] | None = None, path: str = "routing"
) -> RoutingPolicy:
    """Build the policy that `name` stands for.

    Raises:
        ConfigError: the name or an option is unknown.
    """
    factory = POLICIES.resolve(name, path=f"{path}.policy")
    try:
        policy: RoutingPolicy = factory(seed=seed, **(options or {}))
    except TypeError as error:
        raise ConfigError(
            path=f"{path}.options",
            value=options,
            expected=f"the options of {name!r}",
            hint=str(error),
        ) from error
    return policy
