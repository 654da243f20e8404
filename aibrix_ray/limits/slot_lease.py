"""A gateway's part of one concurrency cap."""

from __future__ import annotations

import math

from aibrix_ray.limits.messages import SlotAsk, SlotGrant
from aibrix_ray.limits.subject import lease_size

#: How long it is believed that all slots of a cap are taken. Short: one is free as soon as some
#: gateway's request ends.
FRESH_S = 0.05


class SlotLease:
    """Slots that the authority granted, and how many of them are in use. Never on credit.

    Attributes:
        lease: slots granted; requests beyond them are not admitted.
        in_use: requests under way. More than `lease` only after the authority was away.
        size: how many unused slots are kept for requests to come.
        low: more are asked for when fewer than this are unused.
        free: what nobody held at `free_s`, when the authority last told; -1: it did not know.
    """

    __slots__ = ("cap", "free", "free_s", "in_use", "key", "lease", "low", "size")

    def __init__(self, key: str, cap: int, gateways: int) -> None:
        self.key = key
        self.lease = 0
        self.in_use = 0
        self.free = -1
        self.free_s = -math.inf
        self.resize(cap, gateways)

    def resize(self, cap: int, gateways: int) -> None:
        """Take another cap or another number of gateways."""
        self.cap = cap
        self.size = lease_size(cap, gateways)
        self.low = self.size / 2

    def wake(self) -> None:
        """Ask ahead again, after a time in which all slots were taken."""
        self.low = self.size / 2

    def is_taken(self, now_s: float) -> bool:
        """Return whether all slots are known to be taken; false if the authority must be asked."""
        return self.free == 0 and now_s - self.free_s <= FRESH_S

    def ask(self, need: int, *, idle: bool, live: bool) -> SlotAsk:
        """Return what to tell the authority, and from now on hold no more than that.

        If the lease is not `live` only what is in use is held: the rest may be another's by now.
        """
        target = 0 if idle else self.size
        unused = max(0, self.lease - self.in_use) if live else 0
        kept = min(unused, need + target)
        self.lease = self.in_use + kept
        self.low = 0.0
        return SlotAsk(
            key=self.key,
            cap=self.cap,
            hold=self.lease,
            need=max(0, need - kept),
            ahead=max(0, target - max(0, kept - need)),
        )

    def apply(self, ask: SlotAsk, grant: SlotGrant, *, now_s: float) -> None:
        """Take the authority's answer."""
        self.lease = grant.lease
        self.free, self.free_s = grant.free, now_s
        if grant.lease >= ask.hold + ask.need + ask.ahead:
            self.wake()
