from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aibrix_ray.engine_model import BlockCache, Lease, block_hashes, chain_hash, root_hash


def allocate(cache: BlockCache, hits: list[int], fresh: int) -> Lease:
    lease = cache.allocate(hits, fresh)
    assert lease is not None
    cache.check_integrity()
    return lease


def cache_sequence(cache: BlockCache, hashes: list[int]) -> None:
    """Have the blocks of a sequence computed and let go of."""
    lease = allocate(cache, [], len(hashes))
    for value in hashes:
        cache.publish(lease, value)
    cache.free(lease)
    cache.check_integrity()


def test_a_freed_sequence_is_found_by_its_hashes() -> None:
    cache = BlockCache(10)
    cache_sequence(cache, [1, 2, 3])
    assert cache.match([1, 2, 3, 4], 10) == 3
    assert cache.match([1, 2, 3], 2) == 2
    assert cache.match([2, 3], 10) == 2
    assert cache.match([9, 1], 10) == 0
    assert cache.available == 10


def test_private_blocks_are_free_after_their_lease() -> None:
    cache = BlockCache(4)
    lease = allocate(cache, [], 3)
    assert cache.free_blocks == 1
    cache.free(lease)
    assert cache.free_blocks == 4
    assert cache.cached == 0


def test_a_full_cache_evicts_what_was_let_go_of_longest_ago() -> None:
    cache = BlockCache(4)
    cache_sequence(cache, [1, 2])
    cache_sequence(cache, [3, 4])
    allocate(cache, [], 2)
    assert cache.match([1], 1) == 0
    assert cache.match([3, 4], 2) == 2


def test_a_touched_sequence_outlives_an_untouched_one() -> None:
    cache = BlockCache(4)
    cache_sequence(cache, [1, 2])
    cache_sequence(cache, [3, 4])
    cache.free(allocate(cache, [1, 2], 0))
    allocate(cache, [], 2)
    assert cache.match([1, 2], 2) == 2
    assert cache.match([3], 1) == 0


def test_the_end_of_a_sequence_is_evicted_before_its_beginning() -> None:
    cache = BlockCache(3)
    cache_sequence(cache, [1, 2, 3])
    allocate(cache, [], 1)
    assert cache.match([1, 2, 3], 3) == 2


def test_referenced_blocks_are_never_evicted() -> None:
    cache = BlockCache(3)
    cache_sequence(cache, [1, 2])
    allocate(cache, [1, 2], 0)
    assert cache.allocate([], 2) is None
    assert cache.match([1, 2], 2) == 2
    cache.check_integrity()


def test_hits_do_not_count_as_room_for_the_same_lease() -> None:
    cache = BlockCache(3)
    cache_sequence(cache, [1, 2])
    # One block is free and two are evictable, but those two are the hits themselves.
    assert cache.allocate([1, 2], 2) is None
    assert cache.available == 3
    allocate(cache, [1, 2], 1)


def test_a_refused_lease_changes_nothing() -> None:
    cache = BlockCache(2)
    cache_sequence(cache, [1])
    assert cache.allocate([1], 2) is None
    assert (cache.free_blocks, cache.cached, cache.evictions) == (1, 1, 0)
    cache.check_integrity()


def test_an_equal_block_stays_private() -> None:
    cache = BlockCache(4)
    first, second = allocate(cache, [], 1), allocate(cache, [], 1)
    cache.publish(first, 7)
    cache.publish(second, 7)
    assert (first.private, second.private) == (0, 1)
    cache.check_integrity()


def test_two_leases_share_a_block_until_both_are_freed() -> None:
    cache = BlockCache(2)
    cache_sequence(cache, [1])
    one, two = allocate(cache, [1], 0), allocate(cache, [1], 0)
    cache.free(one)
    assert cache.available == 1
    cache.free(two)
    assert cache.available == 2


def test_a_block_that_is_not_held_cannot_be_published() -> None:
    cache = BlockCache(2)
    with pytest.raises(AssertionError, match="does not hold"):
        cache.publish(allocate(cache, [], 0), 1)


def test_releases_grow_when_blocks_become_available() -> None:
    cache = BlockCache(2)
    lease = allocate(cache, [], 1)
    before = cache.releases
    assert cache.append(lease)
    assert cache.releases == before
    cache.free(lease)
    assert cache.releases > before


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 7), st.integers(0, 5)), max_size=80))
@settings(max_examples=200, deadline=None)
def test_no_block_is_ever_lost(operations: list[tuple[int, int, int]]) -> None:
    cache = BlockCache(8)
    leases: list[Lease] = []
    for kind, which, amount in operations:
        if kind == 0:
            hashes = list(range(which, which + amount))
            found = cache.allocate(hashes[: cache.match(hashes, amount)], amount)
            leases += [found] if found is not None else []
        elif leases:
            lease = leases[which % len(leases)]
            if kind == 1:
                cache.append(lease)
            elif kind == 2 and lease.private:
                cache.publish(lease, amount)
            elif kind == 3:
                leases.remove(lease)
                cache.free(lease)
            elif kind == 4 and amount not in lease.shared and cache.match([amount], 1):
                cache.touch(lease, amount)
        cache.check_integrity()
    for lease in leases:
        cache.free(lease)
    cache.check_integrity()
    assert cache.available == 8
    assert cache.usage == 0.0


def test_block_hashes_depend_on_all_tokens_before_them() -> None:
    root = root_hash("model")
    one = block_hashes(root, [1, 2, 3, 4, 5, 6], block_size=2)
    other = block_hashes(root, [1, 2, 9, 4, 5, 6], block_size=2)
    assert one[0] == other[0]
    assert one[1] != other[1]
    assert one[2] != other[2]


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 0), (15, 0), (16, 1), (33, 2)])
def test_only_full_blocks_have_hashes(tokens: int, blocks: int) -> None:
    assert len(block_hashes(0, list(range(tokens)), block_size=16)) == blocks


def test_the_chain_goes_on_where_a_prompt_ended() -> None:
    root, tokens = root_hash("m"), list(range(48))
    whole = block_hashes(root, tokens, block_size=16)
    assert chain_hash(whole[1], tokens[32:]) == whole[2]


@pytest.mark.parametrize("other", [("m2",), ("m", "adapter"), ("", "m")])
def test_other_names_have_other_blocks(other: tuple[str, ...]) -> None:
    assert root_hash("m") != root_hash(*other)


def test_hashes_are_the_same_in_every_process() -> None:
    code = (
        "from aibrix_ray.engine_model import chain_hash, root_hash;"
        "print(chain_hash(root_hash('m'), [1, 2, 3]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(found.stdout) == chain_hash(root_hash("m"), [1, 2, 3])
