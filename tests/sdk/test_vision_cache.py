"""Vision encoder outputs by the content of the pixels."""

import sys
from dataclasses import replace
from random import Random
from threading import Thread

import numpy as np
import pytest
from stub_model import Stub, StubGraph, a_model, a_picture, a_vlm

from tokprune.types import Array, Feeds, Prepared
from tokprune.vision_cache import CachedEncoder, VisionCache, key_of


def feeds(seed: int, size: int = 8) -> Feeds:
    values = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    return {"pixel_values": values, "positions": np.arange(size)}


def encoder(cache: VisionCache, stub: Stub | None = None) -> CachedEncoder:
    graph = StubGraph("vision", stub or Stub(), lambda fed: {"out": fed["pixel_values"] * 2})
    return CachedEncoder(graph, cache)


def test_equal_pixels_are_encoded_once() -> None:
    cache, stub = VisionCache(10_000), Stub()
    encoding = encoder(cache, stub)
    for _ in range(3):
        encoding = encoder(cache, stub)
        first, second = (encoding.run(feeds(1)) for _ in range(2))
        np.testing.assert_array_equal(first["out"], feeds(1)["pixel_values"] * 2)
        assert first["out"] is second["out"]
    assert stub.runs["vision"] == 1
    assert (encoding.hits, encoding.runs) == (2, 0)
    assert encoding.has(feeds(1))
    assert not encoding.has(feeds(2))


@pytest.mark.parametrize(
    "other",
    [
        {"pixel_values": np.zeros(8, np.float32)},
        {"pixel_values": np.zeros((2, 4), np.float32)},
        {"pixel_values": np.zeros(8, np.int32)},
        {"pixel_values": np.zeros(8, np.float32), "positions": np.zeros(1)},
        {"positions": np.zeros(8, np.float32)},
        {"pixel_values": np.asarray([0, 0, 0, 0, 0, 0, 0, 1e-40], np.float32)},
        {"pixel_values": np.asarray([0, 0, 0, 0, 0, 0, 0, -0.0], np.float32)},
    ],
)
def test_a_key_tells_values_shapes_dtypes_and_names_apart(other: Feeds) -> None:
    one = {"pixel_values": np.zeros(8, np.float32)}
    same = {name: np.array(value) for name, value in other.items()}
    assert key_of(other) == key_of(same)
    assert (key_of(one) == key_of(other)) == (list(one) == list(other) and all_alike(one, other))


def all_alike(one: Feeds, other: Feeds) -> bool:
    return all(
        (one[name].dtype, one[name].shape, one[name].tobytes())
        == (other[name].dtype, other[name].shape, other[name].tobytes())
        for name in one
    )


def test_a_key_does_not_depend_on_how_an_array_lies_in_memory() -> None:
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert key_of({"x": whole.T}) == key_of({"x": np.ascontiguousarray(whole.T)})
    assert key_of({"x": whole[:, ::2]}) == key_of({"x": whole[:, ::2].copy()})


def test_the_least_recently_used_goes_first() -> None:
    cache = VisionCache(3 * 32)
    for seed in (1, 2, 3):
        encoder(cache).run(feeds(seed))
    encoder(cache).run(feeds(1))
    encoder(cache).run(feeds(4))
    there = [encoder(cache).has(feeds(seed)) for seed in (1, 2, 3, 4)]
    assert there == [True, False, True, True]
    assert cache.held_bytes == 96


def test_what_is_larger_than_all_room_is_not_kept_and_costs_nobody_its_place() -> None:
    cache = VisionCache(64)
    encoder(cache).run(feeds(1))
    big = encoder(cache).run(feeds(2, size=17))["out"]
    assert big.flags.writeable
    assert cache.held_bytes == 32
    assert encoder(cache).has(feeds(1))


def test_no_bytes_switch_it_off() -> None:
    cache, stub = VisionCache(0), Stub()
    for _ in range(2):
        encoding = encoder(cache, stub)
        encoding.run(feeds(1))
        assert not encoding.has(feeds(1))
        assert (encoding.hits, encoding.runs) == (0, 1)
    assert stub.runs["vision"] == 2


def test_what_is_shared_cannot_be_written() -> None:
    out = encoder(VisionCache(1000)).run(feeds(1))["out"]
    with pytest.raises(ValueError, match="read-only"):
        out[0] = 1


def test_its_bytes_are_bounded_and_counted_whatever_comes() -> None:
    chance, cache = Random(0), VisionCache(1000)
    for _ in range(2000):
        encoder(cache).run(feeds(chance.randrange(60), chance.randint(1, 120)))
        held = [array for entry in cache._entries.values() for array in entry.values()]
        assert cache.held_bytes == sum(array.nbytes for array in held) <= 1000
    cache.clear()
    assert (cache.held_bytes, len(cache._entries)) == (0, 0)


def test_threads_may_use_it_at_once() -> None:
    cache = VisionCache(500)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def use(seed: int) -> None:
        chance = Random(seed)
        for _ in range(200):
            key = bytes([chance.randrange(30)])
            if cache.get(key) is None:
                cache.put(key, {"out": np.zeros(chance.randint(1, 60), np.float32)})

    try:
        threads = [Thread(target=use, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    held: list[Array] = [array for entry in cache._entries.values() for array in entry.values()]
    assert cache.held_bytes == sum(array.nbytes for array in held) <= 500


def test_an_answer_tells_which_calls_ran() -> None:
    stub = Stub()
    with a_vlm(stub) as vlm:
        pictures = [a_picture(1), a_picture(2), a_picture(1)]
        first = vlm.ask(pictures, "a?")
        assert (first.encoder_runs, first.encoder_hits) == (2, 1)
        second = vlm.ask(pictures[:2], "b?")
        assert (second.encoder_runs, second.encoder_hits) == (0, 2)
        changed = a_picture(1)
        changed[:8, :8] ^= 1
        third = vlm.ask(changed, "b?")
        assert (third.encoder_runs, third.encoder_hits) == (1, 0)
        assert stub.runs["vision"] == 3


def test_what_ran_for_parts_is_told_from_what_ran_for_whole_pictures() -> None:
    encoding = encoder(VisionCache(0))
    whole, part = (shown(feeds(seed, size), part=size < 8) for seed, size in ((1, 8), (2, 4)))
    for look in ([whole], [whole, part], [part]):
        encoding.expect(look)
        for each in look:
            encoding.run(each.calls[0])
    assert (encoding.ran, encoding.ran_parts) == ([8], [4])


def shown(call: Feeds, *, part: bool) -> Prepared:
    (picture,) = a_model(Stub()).processor.prepare([a_picture()])
    return replace(picture, calls=(call,), part=part)
