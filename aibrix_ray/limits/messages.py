"""What a gateway tells the authority and what it hears back: plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RateAsk:
    """One bucket in a `Sync`. Its parts are applied in the order of the fields.

    Attributes:
        key: the subject's key and the kind.
        limit: the bucket's size, which is also what refills in a minute.
        level: what the bucket would hold by now, as far as this gateway knew it under an earlier
            incarnation of the authority and nothing happened since; infinite: nothing to say.
        charge: what was spent already, or beyond a reservation; taken even from an empty bucket.
        give_back: what was taken and is not needed.
        need: what waiting requests lack; with less than `least` none of them can go on.
        least: see `need`.
        ahead: what is wanted besides, for requests to come; given while the bucket is not scarce.
    """

    key: str
    limit: int
    level: float = math.inf
    charge: float = 0.0
    give_back: float = 0.0
    need: int = 0
    least: int = 0
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class SlotAsk:
    """One concurrency cap in a `Sync`: the slots that the gateway holds now, and what it wants."""

    key: str
    cap: int
    hold: int = 0
    need: int = 0
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Sync:
    """All that one gateway has to say, in one call.

    A gateway's slots belong to its `session`. It begins with a sync that `joins`, which holds every
    slot it has, and ends with one that `leaves` or when nothing is heard for `RECLAIM_S`.
    `gateways` is how many a settled authority last told; 0: none did yet.
    """

    session: str
    gateways: int
    joins: bool = False
    replaces: str = ""
    leaves: bool = False
    rates: list[RateAsk] = field(default_factory=list)
    slots: list[SlotAsk] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RateGrant:
    """The answer to a `RateAsk`: what was granted, and what the bucket holds after it."""

    granted: int
    level: float


@dataclass(frozen=True, slots=True)
class SlotGrant:
    """The answer to a `SlotAsk`: the slots held now, and how many nobody holds.

    `free` is -1 while the authority does not know yet who holds what, or not everybody of us.
    """

    lease: int
    free: int


@dataclass(frozen=True, slots=True)
class Grants:
    """The answer to a `Sync`; grants stand in the order of what was asked.

    `known` is false for a session that the authority does not know (it began anew, or did not hear
    from it for too long): then nothing was done, and the gateway has to join again. `gateways` is
    how many there are to divide each limit among; `settled`: these are all.
    """

    incarnation: str
    known: bool
    gateways: int = 1
    settled: bool = True
    rates: list[RateGrant] = field(default_factory=list)
    slots: list[SlotGrant] = field(default_factory=list)
