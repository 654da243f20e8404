"""The blocks of one engine's KV cache, with prefix caching. Knows hashes, no tokens' meaning.

A block is in one of four states, and their sum is the size of the cache:

    free ──allocate/append──▶ private ──publish──▶ shared, referenced
      ▲                          │                    │       ▲
      └──────────free────────────┘                  free    touch
      └───────────evict (least recently used)──── shared, unreferenced

A published block is found by the hash of its tokens and of all tokens before it. Private blocks
are alike, so they are counted and have no identity.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

_UNREFERENCED = 0


class Lease:
    """The blocks that one sequence holds. Made by `BlockCache.allocate`, ended by its `free`."""

    __slots__ = ("private", "shared")

    def __init__(self) -> None:
        self.private = 0
        self.shared: list[int] = []

    @property
    def blocks(self) -> int:
        """Blocks held in all."""
        return self.private + len(self.shared)


class BlockCache:
    """Owns the blocks. What is referenced is never taken; what is not goes oldest first.

    `releases` grows whenever blocks become available: who was refused need not ask before.
    """

    __slots__ = (
        "_leases",
        "_references",
        "_unreferenced",
        "evictions",
        "free_blocks",
        "releases",
        "total_blocks",
    )

    def __init__(self, total_blocks: int) -> None:
        self.total_blocks = self.free_blocks = total_blocks
        self.evictions = 0
        self.releases = 0
        self._leases: set[Lease] = set()
        self._references: dict[int, int] = {}
        # Oldest first. A sequence's blocks enter last block first: a block is useless without
        # those before it, so these must outlive it.
        self._unreferenced: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that can be had now: free ones, and cached ones that nobody references."""
        return self.free_blocks + len(self._unreferenced)

    @property
    def usage(self) -> float:
        """Share of the blocks that somebody holds."""
        return 1.0 - self.available / self.total_blocks

    @property
    def cached(self) -> int:
        """Blocks that can be found by a hash."""
        return len(self._references)

    @property
    def leases(self) -> int:
        """Leases that have not been freed."""
        return len(self._leases)

    def match(self, hashes: Sequence[int], limit: int) -> int:
        """Return how many leading blocks of `hashes`, at most `limit`, are cached."""
        references = self._references
        hits = 0
        for block_hash in hashes:
            if hits >= limit or block_hash not in references:
                break
            hits += 1
        return hits

    def allocate(self, hits: Sequence[int], fresh: int) -> Lease | None:
        """Lease the cached blocks `hits` and `fresh` new ones: all of them or, if short, none."""
        unreferenced = self._unreferenced
        taken = sum(1 for block_hash in hits if block_hash in unreferenced)
        if self.available - taken < fresh:
            return None
        lease = Lease()
        self._leases.add(lease)
        for block_hash in hits:
            self.touch(lease, block_hash)
        self._take(lease, fresh)
        return lease

    def touch(self, lease: Lease, block_hash: int) -> None:
        """Reference one cached block, so that it cannot be evicted before the lease is freed."""
        if self._references[block_hash] == _UNREFERENCED:
            del self._unreferenced[block_hash]
        self._references[block_hash] += 1
        lease.shared.append(block_hash)

    def append(self, lease: Lease) -> bool:
        """Add one block to a lease; false, and nothing changes, if none is available."""
        if self.free_blocks:
            self.free_blocks -= 1
            lease.private += 1
            return True
        if not self._unreferenced:
            return False
        self._take(lease, 1)
        return True

    def publish(self, lease: Lease, block_hash: int) -> None:
        """Let others find one full private block of the lease.

        Where an equal block is cached already, this one stays private, as in vLLM.
        """
        if block_hash in self._references:
            return
        assert lease.private > 0, "a block is published that the lease does not hold"
        lease.private -= 1
        lease.shared.append(block_hash)
        self._references[block_hash] = 1

    def free(self, lease: Lease) -> None:
        """End a lease: private blocks become free, published ones stay cached until evicted."""
        self._leases.remove(lease)
        self.releases += 1
        self.free_blocks += lease.private
        references = self._references
        for block_hash in reversed(lease.shared):
            references[block_hash] -= 1
            if references[block_hash] == _UNREFERENCED:
                self._unreferenced[block_hash] = None

    def check_integrity(self) -> None:
        """Assert that no block is lost, doubled, or referenced by nobody."""
        counted = dict.fromkeys(self._references, 0)
        for lease in self._leases:
            assert lease.private >= 0, "a lease holds less than nothing"
            for block_hash in lease.shared:
                counted[block_hash] += 1
        assert counted == self._references, "reference counts differ from the leases"
        idle = {block_hash for block_hash, count in counted.items() if count == _UNREFERENCED}
        assert idle == set(self._unreferenced), "the eviction order differs from the references"
        private = sum(lease.private for lease in self._leases)
        assert self.free_blocks >= 0, "more blocks were given than there are"
        held = self.free_blocks + private + len(self._references)
        assert held == self.total_blocks, f"{self.total_blocks - held} blocks are lost"

    def _take(self, lease: Lease, blocks: int) -> None:
        """Move blocks to a lease; the caller has made sure that they are available."""
        while self.free_blocks < blocks:
            block_hash, _ = self._unreferenced.popitem(last=False)
            del self._references[block_hash]
            self.free_blocks += 1
            self.evictions += 1
        self.free_blocks -= blocks
        lease.private += blocks


def root_hash(*names: str) -> int:
    """Return the hash before a first block; other names (model, adapter, salt), other blocks."""
    digest = blake2b("\0".join(names).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def chain_hash(parent: int, tokens: Sequence[int]) -> int:
    """Return the hash of a block from the one before it. The same on every machine."""
    digest = blake2b(parent.to_bytes(8, "little"), digest_size=8)
    digest.update(array("q", tokens).tobytes())
    return int.from_bytes(digest.digest(), "little")


def block_hashes(root: int, tokens: Sequence[int], *, block_size: int) -> list[int]:
    """Return the hashes of all full blocks of a sequence of tokens."""
    hashes: list[int] = []
    for end in range(block_size, len(tokens) + 1, block_size):
        root = chain_hash(root, tokens[end - block_size : end])
        hashes.append(root)
    return hashes
