"""The pool of KV blocks: sharing, copies, prefixes, eviction, a full pool."""

import numpy as np
import pytest

from specpipe.core.contracts import ROOT
from specpipe.core.engines import PoolFull
from specpipe.engine.openvino import prefixes
from tests.helpers.block_pool import Bench, text

# --- one sequence -------------------------------------------------------------------------------


def test_a_cache_keeps_the_rows_of_a_chunk() -> None:
    bench = Bench(4)
    cache = bench.pool.open()
    bench.extend(cache, text(40))
    bench.extend(cache, text(3, 40))
    bench.check(cache, text(43))
    assert bench.pool.used == len(cache.blocks) == 2


def test_keeping_the_first_rows_moves_none() -> None:
    bench = Bench(4)
    cache = bench.holding(text(5))
    bench.write(cache, [5, 6, 99])
    cache.keep(np.array([0, 1]))
    bench.check(cache, text(7))
    assert bench.storage.moved == 0


def test_keeping_a_path_of_a_tree_moves_its_rows_together() -> None:
    bench = Bench(4)
    cache = bench.holding(text(30))
    #  30 -> 70 -> 72 -> 74    the path 30, 71, 73, 75 crosses the end of the first block
    #     -> 71 -> 73 -> 75
    bench.write(cache, [30, 70, 71, 72, 73, 74, 75], [ROOT, 0, 0, 1, 2, 3, 4])
    cache.keep(np.array([0, 2, 4, 6]))
    bench.check(cache, [*text(31), 71, 73, 75])
    assert bench.storage.moved == 3


def test_rows_of_a_step_can_be_kept_once() -> None:
    bench = Bench(4)
    cache = bench.holding(text(5))
    bench.write(cache, [5, 6])
    cache.keep(np.array([0]))
    with pytest.raises(IndexError):
        cache.keep(np.array([1]))
    bench.check(cache, text(6))


def test_keeping_nothing_forgets_the_step() -> None:
    bench = Bench(4)
    cache = bench.holding(text(5))
    bench.write(cache, text(60, 5))
    assert bench.pool.used == 3
    cache.keep(np.zeros(0, np.int64))
    bench.check(cache, text(5))
    assert bench.pool.used == 1


def test_rejected_rows_give_their_blocks_back() -> None:
    bench = Bench(4)
    cache = bench.holding(text(30))
    bench.write(cache, text(60, 30))
    assert bench.pool.used == 3
    cache.keep(np.array([0]))
    assert bench.pool.used == 1


def test_the_next_step_gives_back_what_a_forgotten_step_took() -> None:
    bench = Bench(4)
    cache = bench.holding(text(30))
    bench.write(cache, text(90, 30))
    bench.extend(cache, [30])
    bench.check(cache, text(31))
    assert bench.pool.used == 1


def test_truncating_forgets_rows_and_blocks() -> None:
    bench = Bench(4)
    cache = bench.holding(text(70))
    cache.truncate(33)
    bench.check(cache, text(33))
    assert bench.pool.used == 2
    bench.extend(cache, text(40, 500))
    bench.check(cache, text(33) + text(40, 500))


def test_truncating_to_more_than_is_kept_changes_no_row() -> None:
    bench = Bench(4)
    cache = bench.holding(text(33))
    cache.truncate(100)
    bench.check(cache, text(33))


def test_a_released_cache_is_empty_and_can_be_released_again() -> None:
    bench = Bench(4)
    cache, other = bench.holding(text(70)), bench.holding(text(5, 900))
    cache.release()
    cache.release()
    bench.check(cache, [])
    bench.check(other, text(5, 900))
    assert bench.pool.used == 1


def test_a_table_has_the_blocks_of_the_kept_rows_and_of_the_steps() -> None:
    bench = Bench(4)
    cache = bench.holding(text(31))
    bench.pool.reserve(cache, 34)
    assert [len(cache.table(rows)) for rows in (0, 1, 2, 33, 34)] == [1, 1, 2, 2, 3]


# --- several users of a block -------------------------------------------------------------------


@pytest.mark.parametrize("twin_first", [False, True])
def test_twins_that_diverge_keep_their_own_rows(twin_first: bool) -> None:
    bench = Bench(6)
    cache = bench.holding(text(40))
    twin = cache.fork()
    assert twin.blocks == cache.blocks and bench.pool.used == 2
    writers = [(cache, 100), (twin, 200)]
    for writer, token in reversed(writers) if twin_first else writers:
        bench.extend(writer, [token])
    bench.check(cache, [*text(40), 100])
    bench.check(twin, [*text(40), 200])
    assert bench.pool.used == 3
    assert bench.storage.copied == 1  # the second writer is the only user


def test_a_fork_may_keep_fewer_rows() -> None:
    bench = Bench(6)
    cache = bench.holding(text(70))
    twin = cache.fork(34)
    bench.check(twin, text(34))
    bench.extend(twin, [7])
    bench.check(cache, text(70))
    bench.check(twin, [*text(34), 7])


def test_a_fork_at_the_end_of_a_block_needs_no_copy() -> None:
    bench = Bench(6)
    cache = bench.holding(text(70))
    bench.extend(cache.fork(64), [7])
    bench.check(cache, text(70))
    assert bench.storage.copied == 0


def test_a_fork_outlives_the_original() -> None:
    bench = Bench(3, prefix_cache=False)
    cache = bench.holding(text(40))
    twin = cache.fork()
    cache.release()
    bench.holding(text(20, 500))
    bench.check(twin, text(40))
    with pytest.raises(PoolFull):
        bench.holding(text(1, 800))


def test_a_fork_between_a_step_and_its_keep_leaves_the_steps_rows_to_the_original() -> None:
    bench = Bench(6)
    cache = bench.holding(text(40))
    bench.write(cache, [100, 101, 102])
    twin = cache.fork()
    bench.extend(twin, [200, 201, 202, 203])
    cache.keep(np.array([0, 1, 2]))
    bench.check(cache, [*text(40), 100, 101, 102])
    bench.check(twin, [*text(40), 200, 201, 202, 203])


# --- prefixes -----------------------------------------------------------------------------------


def test_a_later_sequence_finds_whole_blocks_of_its_prefix() -> None:
    bench = Bench(8)
    bench.holding(text(70)).release()
    cache = bench.pool.open([*text(66), 500])
    bench.check(cache, text(64))
    assert (bench.pool.queries, bench.pool.hits) == (71 + 67, 64)


def test_a_sequence_shares_the_prefix_of_one_in_flight() -> None:
    bench = Bench(8)
    first = bench.holding(text(70))
    second = bench.pool.open(text(70))
    assert second.blocks == first.blocks[:2]
    bench.extend(second, text(30, 500))
    bench.check(first, text(70))
    bench.check(second, text(64) + text(30, 500))


@pytest.mark.parametrize("length, found", [(31, 0), (32, 0), (33, 32), (64, 32), (65, 64)])
def test_the_last_token_is_never_part_of_the_prefix(length: int, found: int) -> None:
    bench = Bench(8)
    bench.holding(text(70)).release()
    bench.check(bench.pool.open(text(length)), text(found))


def test_a_block_after_other_tokens_is_not_found() -> None:
    bench = Bench(8)
    bench.holding(text(64)).release()
    bench.holding(text(32, 500)).release()
    assert bench.pool.open([*text(32, 500), *text(32, 32), 0]).length == 32
    assert bench.pool.open([*text(32, 32), 0]).length == 0


def test_caches_of_different_salts_share_no_block() -> None:
    bench = Bench(8)
    for salt in ("", "a", "b"):
        cache = bench.pool.open(text(70), salt)
        assert cache.length == 0
        cache.release()
        cache = bench.pool.open((), salt)
        bench.write(cache, text(70))
        cache.keep(np.arange(70))
        cache.release()
        assert bench.pool.open([*text(70), 0], salt).length == 64


def test_a_block_with_rejected_rows_is_not_found() -> None:
    bench = Bench(8)
    cache = bench.holding(text(30))
    bench.write(cache, text(10, 30))
    cache.keep(np.array([0]))
    assert bench.pool.open(text(40)).length == 0


def test_a_block_that_steps_filled_one_by_one_is_found() -> None:
    bench = Bench(8)
    cache = bench.pool.open()
    for token in text(33):
        bench.extend(cache, [token])
    bench.check(bench.pool.open(text(34)), text(32))


def test_without_a_prefix_cache_nothing_is_found() -> None:
    bench = Bench(8, prefix_cache=False)
    bench.holding(text(70)).release()
    assert bench.pool.open(text(70)).length == bench.pool.hits == 0


def test_two_models_have_different_keys() -> None:
    first, second = (prefixes.PrefixIndex(seed).key(None, b"tokens") for seed in (b"a", b"b"))
    assert first != second


def test_caches_that_compute_the_same_block_share_it_in_the_end() -> None:
    bench = Bench(8)
    first, second = bench.pool.open(), bench.pool.open()
    bench.write(first, text(70))
    bench.write(second, text(70))
    for cache in (first, second):
        cache.keep(np.arange(70))
        bench.check(cache, text(70))
    assert first.blocks[:2] == second.blocks[:2]
    assert bench.pool.used == 4


def test_writing_into_a_found_block_of_another_user_copies_it() -> None:
    bench = Bench(8)
    first = bench.holding(text(64))
    second = bench.pool.open(text(65))
    second.truncate(40)
    bench.extend(second, [500])
    bench.check(first, text(64))
    bench.check(second, [*text(40), 500])
    assert bench.storage.copied == 1


def test_the_only_user_of_a_found_block_rewrites_it_and_it_is_no_longer_found() -> None:
    bench = Bench(2)
    cache = bench.holding(text(64))
    cache.truncate(40)
    bench.extend(cache, text(24, 500))  # although no block is free
    cache.release()
    bench.check(bench.pool.open(text(65)), text(32))
    bench.check(bench.pool.open([*text(40), *text(24, 500), 0]), [*text(40), *text(24, 500)])
    assert bench.storage.copied == 0


def test_blocks_after_a_rewritten_block_are_found_once_they_are_computed_again() -> None:
    bench = Bench(8)
    cache = bench.holding(text(96))
    cache.truncate(40)
    bench.extend(cache, text(24, 40))  # the same tokens as before, in a new entry
    bench.check(bench.pool.open(text(97)), text(64))
    bench.extend(cache, text(32, 64))
    bench.check(bench.pool.open(text(97)), text(96))


# --- collisions ---------------------------------------------------------------------------------


@pytest.fixture
def colliding(monkeypatch) -> None:
    """Give all blocks the same key."""
    monkeypatch.setattr(prefixes, "digest", lambda parent, tokens: b"the same")


def test_a_block_whose_hash_collides_is_not_reused(colliding) -> None:
    bench = Bench(8)
    bench.holding(text(32)).release()
    assert bench.pool.open([*text(32, 500), 0]).length == 0
    bench.check(bench.holding(text(40, 500)), text(40, 500))


def test_a_block_is_not_its_own_successor_when_hashes_collide(colliding) -> None:
    bench = Bench(8)
    bench.holding([7] * 32).release()
    bench.check(bench.pool.open([7] * 65), [7] * 32)


def test_colliding_sequences_in_flight_keep_their_own_rows(colliding) -> None:
    bench = Bench(8)
    caches = [bench.holding(text(70, 1000 * n)) for n in range(2)]
    for n, cache in enumerate(caches):
        bench.check(cache, text(70, 1000 * n))
    bench.check(bench.pool.open([*text(70), 0]), text(32))
    assert bench.pool.open([*text(70, 1000), 0]).length == 0


# --- a full pool --------------------------------------------------------------------------------


def test_blank_blocks_are_taken_before_a_prefix_is_forgotten() -> None:
    bench = Bench(4)
    bench.holding(text(64)).release()
    bench.holding(text(50, 500))
    assert bench.pool.open(text(65)).length == 64
    assert bench.pool.evictions == 0


def test_the_prefix_that_was_used_last_is_forgotten_last() -> None:
    bench = Bench(3)
    for start in (0, 100, 200):
        bench.holding(text(32, start)).release()
    bench.pool.open([*text(32), 0]).release()
    bench.holding(text(10, 900))
    assert [bench.pool.open([*text(32, s), 0]).length for s in (0, 100, 200)] == [32, 0, 32]
    assert bench.pool.evictions == 1


def test_the_end_of_a_prefix_is_forgotten_before_its_beginning() -> None:
    bench = Bench(3)
    bench.holding(text(96)).release()
    other = bench.holding(text(10, 500))
    bench.check(bench.pool.open(text(97)), text(64))
    bench.check(other, text(10, 500))


def test_a_full_pool_refuses_and_changes_nothing() -> None:
    bench = Bench(3)
    cache, twin = bench.holding(text(40)), bench.pool.open()
    bench.extend(twin, text(10, 500))
    bench.write(cache, [40, 41])
    before = (list(cache.blocks), bench.pool.free, bench.storage.rows.copy())
    message = "a step needs 1 more blocks of 32 rows, and 0 of the pool's 3 are free"
    with pytest.raises(PoolFull, match=message):
        bench.pool.reserve(cache, 25)
    assert (cache.blocks, bench.pool.free) == before[:2]
    np.testing.assert_array_equal(bench.storage.rows, before[2])
    cache.keep(np.array([0, 1]))
    bench.check(cache, text(42))


def test_a_full_pool_refuses_to_copy() -> None:
    bench = Bench(2)
    cache = bench.holding(text(40))
    twin = cache.fork()
    assert not bench.pool.fits([(twin, 1)])
    with pytest.raises(PoolFull):
        bench.pool.reserve(twin, 1)
    assert twin.blocks == cache.blocks
    cache.release()
    assert bench.pool.fits([(twin, 1)])


def test_twins_that_both_write_need_one_copy() -> None:
    bench = Bench(3)
    cache = bench.holding(text(40))
    twin = cache.fork()
    assert bench.pool.fits([(cache, 1), (twin, 24)])
    assert not bench.pool.fits([(cache, 1), (twin, 25)])


def test_prefixes_without_users_count_as_free() -> None:
    bench = Bench(4)
    bench.holding(text(128)).release()
    assert (bench.pool.free, bench.pool.used) == (4, 0)
    assert bench.pool.fits([(bench.pool.open(), 128)])


def test_a_found_prefix_is_not_free() -> None:
    bench = Bench(4)
    bench.holding(text(128)).release()
    cache = bench.pool.open(text(128))
    assert cache.length == 96
    assert bench.pool.fits([(cache, 32)]) and not bench.pool.fits([(cache, 33)])
