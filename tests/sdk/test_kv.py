"""KV caches that outlive a request: which rows are used again, and whose."""

import gc
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from stub_model import HIDDEN, Stub, a_model

from tokprune.control import Control
from tokprune.errors import Cancelled
from tokprune.kv import STEP, KvCache, KvOwner, KvPool, Rows, part
from tokprune.llm import Access, Continuation, LanguageModel
from tokprune.manifest import Cache
from tokprune.types import Array
from tokprune_runtimes import Feeds, Interrupt

CACHES: tuple[Cache, ...] = ("in_place", "grows")


class Loop:
    """Counts, and knows how many rows it has."""

    made = 0

    def __init__(self, capacity: int) -> None:
        Loop.made += 1
        self.capacity, self.rewound = capacity, list[int]()

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        raise AssertionError("the pool runs nothing")

    def rewind(self, length: int) -> None:
        self.rewound.append(length)


def pool(slots: int = 2, longest: int = 4096) -> KvPool:
    return KvPool(Loop, slots, longest, grows=False)


def rows(*numbers: float) -> Rows:
    values = np.asarray(numbers, np.float32)
    embeds = np.repeat(values[:, None], HIDDEN, 1)[None]
    positions = np.arange(len(values))[None, None]
    return Rows(embeds, np.ascontiguousarray(positions), np.zeros(len(values), np.float32))


def cache_with(held: Rows, owner: KvOwner | None, *, grows: bool = False) -> KvCache:
    cache = KvCache(Loop, 64, owner, grows=grows)
    cache.begin(held, owner)
    cache.append(held)
    return cache


def test_rows_that_are_equal_need_not_run_again_and_one_always_does() -> None:
    owner = KvOwner()
    for asked, count in [
        (rows(1, 2, 3, 4, 5), 4),
        (rows(1, 2, 3, 4), 3),
        (rows(1, 2), 1),
        (rows(1, 2, 9, 4), 2),
        (rows(9, 2, 3, 4), 0),
    ]:
        cache = cache_with(rows(1, 2, 3, 4), owner)
        assert cache.begin(asked, owner) == count
        assert cache.length == count


@pytest.mark.parametrize("what", ["embeds", "positions", "bias"])
@pytest.mark.parametrize("row", [0, 3])
def test_a_row_is_the_same_only_with_its_embedding_position_and_bias(what: str, row: int) -> None:
    owner, held = KvOwner(), rows(*range(1, 7))
    other = Rows(*(array.copy() for array in held))
    changed = getattr(other, what)
    changed[..., row] = 7 if what != "embeds" else changed[..., row]
    if what == "embeds":
        changed[0, row, HIDDEN - 1] = np.nextafter(changed[0, row, HIDDEN - 1], np.float32(9))
    assert cache_with(held, owner).begin(other, owner) == row
    assert cache_with(held, owner).begin(held, owner) == 5


def test_only_the_owner_profits() -> None:
    owner, other = KvOwner(), KvOwner()
    for first, second in [(owner, other), (owner, None), (None, owner), (None, None)]:
        cache = cache_with(rows(1, 2, 3), first)
        assert cache.begin(rows(1, 2, 3), second) == 0
        assert cache.owner is second


def test_rows_in_many_parts_are_one_prompt() -> None:
    chance = Random(0)
    for _ in range(200):
        owner = KvOwner()
        cache = KvCache(Loop, 64, owner, grows=False)
        held: list[float] = []
        for _ in range(4):
            new = [float(chance.randint(1, 3)) for _ in range(chance.randint(1, 12))]
            keep = chance.randint(0, len(held))
            asked = [*held[:keep], *new]
            same = 0
            while same < min(len(held), len(asked) - 1) and held[same] == asked[same]:
                same += 1
            whole = rows(*asked)
            assert cache.begin(whole, owner) == same
            cache.append(part(whole, same, len(asked)))
            held = asked
            for token in range(chance.randint(0, 4)):
                answer = rows(50.0 + token)
                cache.append(Rows(answer.embeds, answer.positions + len(held), answer.bias))
                held.append(50.0 + token)
        assert cache.length == len(held)


def test_a_growing_cache_is_cut_and_one_in_place_is_told() -> None:
    for grows in (True, False):
        owner = KvOwner()
        cache = cache_with(rows(1, 2, 3, 4), owner, grows=grows)
        loop = cache.loop
        assert isinstance(loop, Loop)
        cache.begin(rows(1, 2, 9), owner)
        assert loop.rewound == ([2] if grows else [])
        cache.begin(rows(9), owner)
        assert loop.rewound == ([2, 0] if grows else [])


def test_an_owner_keeps_its_cache_and_the_others_take_turns() -> None:
    caches, owner = pool(2), KvOwner()
    mine = caches.take(owner, 10)
    mine.begin(rows(1, 2), owner)
    for _ in range(5):
        assert caches.take(None, 10) is not mine
        assert caches.take(owner, 10) is mine
    assert len(caches.capacities()) == 2


def test_the_least_recently_used_owner_loses_its_cache() -> None:
    caches, owners = pool(2), [KvOwner() for _ in range(3)]
    first, second = (caches.take(owner, 10) for owner in owners[:2])
    assert caches.take(owners[0], 10) is first
    third = caches.take(owners[2], 10)
    assert third is second
    third.begin(rows(1), owners[2])
    again = caches.take(owners[0], 10)
    assert again is first


def test_a_cache_is_free_when_its_owner_is_gone() -> None:
    caches, owner = pool(2), KvOwner()
    other = KvOwner()
    mine, kept = caches.take(owner, 10), caches.take(other, 10)
    caches.take(owner, 10)
    del owner
    gc.collect()
    assert mine.owner is None
    assert caches.take(None, 10) is mine
    assert caches.take(other, 10) is kept


def test_capacities_are_few_and_large_enough() -> None:
    caches = pool(1)
    Loop.made = 0
    cache = caches.take(None, 1)
    for count in range(1, 600, 7):
        cache = caches.take(None, count)
        assert cache.capacity >= count
        assert cache.capacity % STEP == 0
    assert Loop.made == 3
    assert caches.capacities() == (768,)
    assert caches.take(None, 10) is cache, "a large one serves short requests"


def test_a_chat_gets_room_to_grow_within_the_longest_request() -> None:
    assert pool().take(KvOwner(), 300).capacity == 3 * STEP
    assert pool(longest=700).take(KvOwner(), 500).capacity == 700
    assert pool(longest=300).take(None, 300).capacity == 300


def test_a_cache_that_became_too_small_is_replaced_and_begins_anew() -> None:
    caches, owner = pool(), KvOwner()
    cache = caches.take(owner, 100)
    cache.begin(rows(1, 2, 3), owner)
    cache.append(rows(1, 2, 3))
    assert caches.take(owner, 256).begin(rows(1, 2, 3, 4), owner) == 3
    larger = caches.take(owner, 257)
    assert larger is not cache
    assert larger.begin(rows(1, 2, 3, 4), owner) == 0
    assert len(caches.capacities()) == 1


def test_a_failed_allocation_leaves_the_pool_usable() -> None:
    def make(capacity: int) -> Loop:
        if capacity > STEP:
            raise MemoryError("no room")
        return Loop(capacity)

    caches = KvPool(make, 1, 4096, grows=False)
    caches.take(None, 10)
    with pytest.raises(MemoryError):
        caches.take(None, 1000)
    assert caches.take(None, 10).capacity == STEP
    caches.clear()
    assert caches.capacities() == ()


def test_what_is_held_is_no_larger_than_the_rows_are() -> None:
    """Rows of later turns are parts of their prompts: these must not be kept whole."""
    owner, cache = KvOwner(), KvCache(Loop, 4096, KvOwner(), grows=False)
    said = list(range(400))
    for turn in range(40):
        whole = rows(*said)
        start = cache.begin(whole, owner)
        cache.append(part(whole, start, len(said)))
        said += [1000 + turn, 2000 + turn]
    bases = {id(base): base.nbytes for held in cache._held for base in map(base_of, held)}
    assert sum(bases.values()) < 2.5 * sum(array.nbytes for array in rows(*said))


def base_of(array: Array) -> Array:
    return array if array.base is None else array.base


def test_nothing_is_remembered_for_nobody() -> None:
    cache = cache_with(rows(1, 2, 3), None)
    assert (cache.length, cache._held) == (3, [])


def continuation(
    llm: LanguageModel, caches: KvPool, asked: Rows, owner: KvOwner | None, control: Control
) -> Continuation:
    cache = caches.take(owner, asked.embeds.shape[1] + 8)
    return Continuation(llm, cache, asked, 100, Access(control, caches, owner))


def prompts(chance: Random) -> Sequence[Rows]:
    """A prompt, and then others that begin like it for a while."""
    said = [chance.random() for _ in range(30)]
    made = []
    for _ in range(8):
        said = [*said[: chance.randint(0, 30)], *(chance.random() for _ in range(12))]
        made.append(rows(*said))
    return made


@pytest.mark.parametrize("kind", CACHES)
def test_logits_are_those_of_a_cache_that_is_new(kind: Cache) -> None:
    """Also after tokens that were added and taken back, and after runs that were stopped."""
    stub, chance = Stub(), Random(3)
    llm = a_model(stub, cache=kind).llm
    caches, owner = llm.pool(1), KvOwner()
    for asked in prompts(chance):
        if chance.random() < 0.5:
            stopped = Control()
            stub.at = lambda graph, interrupt, stopped=stopped: stopped.cancel()
            with pytest.raises(Cancelled):
                continuation(llm, caches, asked, owner, stopped)
            stub.at = None
        ours = continuation(llm, caches, asked, owner, Control())
        fresh = continuation(llm, llm.pool(1), asked, None, Control())
        np.testing.assert_array_equal(ours.logits, fresh.logits)
        for written in (ours, fresh):
            written.extend([5, 6])
            written.rewind(1)
            written.extend([7])
        np.testing.assert_array_equal(ours.logits, fresh.logits)
        if chance.random() < 0.5:
            ours.rewind(0)
            with pytest.raises(ValueError, match="extend first"):
                _ = ours.logits
    assert min(stub.rows) < 30, "something was used again"
