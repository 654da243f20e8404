"""Chooses replicas. Knows loads; opens no connection, holds no clock. One policy a file."""

from aibrix_ray.routing.least_request import LeastRequest
from aibrix_ray.routing.policy import POLICIES, RoutingPolicy, make_policy

__all__ = ["POLICIES", "LeastRequest", "RoutingPolicy", "make_policy"]
