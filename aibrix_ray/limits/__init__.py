"""Requests and tokens a minute, and requests at once, counted over all gateways together.

Pure. One side is the authority's (`Ledger`: every bucket, every slot), the other a gateway's
(`Book`: what it may spend without asking); between them go `Sync` and `Grants`. Who carries those,
and when, is the room `limiter/`.
"""

from aibrix_ray.limits.account import Claim
from aibrix_ray.limits.book import Book
from aibrix_ray.limits.estimate import Estimator
from aibrix_ray.limits.exchange import Batch
from aibrix_ray.limits.headers import Header
from aibrix_ray.limits.ledger import Ledger
from aibrix_ray.limits.messages import Grants, RateAsk, RateGrant, SlotAsk, SlotGrant, Sync
from aibrix_ray.limits.refusal import Refusal
from aibrix_ray.limits.reservation import Reservation
from aibrix_ray.limits.subject import Kind, Limits, Subject, excess, lease_size

__all__ = [
    "Batch",
    "Book",
    "Claim",
    "Estimator",
    "Grants",
    "Header",
    "Kind",
    "Ledger",
    "Limits",
    "RateAsk",
    "RateGrant",
    "Refusal",
    "Reservation",
    "SlotAsk",
    "SlotGrant",
    "Subject",
    "Sync",
    "excess",
    "lease_size",
]
