"""KV caches that outlive a request, and the rows that they hold.

What the LLM computes for a row depends on that row and those before it alone: on their embeddings,
positions and size bias. So rows that a cache holds already need not run again, whatever stands
behind them. Only the owner of a cache (a chat, a pinned picture) profits from that: with a cache
of somebody else, answers could depend in their last bits on what was asked before.
"""

import weakref
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64

from tokprune.types import Array
from tokprune_runtimes import Loop

STEP = 256  # capacities are multiples of it, so that few requests need a larger cache


class Rows(NamedTuple):
    """Rows that enter the LLM: a prompt without its dropped vision tokens, or answer tokens."""

    embeds: Float32[Array, "1 t d"]
    positions: Int64[Array, "p 1 t"]
    bias: Float32[Array, " t"]


class KvOwner:
    """Whoever asks again about the same rows. Its cache is free when it is gone."""


class KvCache:
    """A loop of the LLM graph. Used by one request at a time."""

    def __init__(
        self, make: Callable[[int], Loop], capacity: int, owner: KvOwner | None, *, grows: bool
    ) -> None:
        """Allocate.

        Args:
            make: starts a loop for so many rows.
            capacity: rows that the loop has room for.
            owner: whose rows it will hold.
            grows: the loop's cache is as long as its rows, and is cut to be used again.
        """
        self.loop = make(capacity)
        self.capacity = capacity
        self._grows = grows
        self._owner = None if owner is None else weakref.ref(owner)
        self._held: list[Rows] = []
        self.length = 0  # rows in the loop

    @property
    def owner(self) -> KvOwner | None:
        """Whose rows are held; None: nobody's who will ask again."""
        return None if self._owner is None else self._owner()

    def begin(self, rows: Rows, owner: KvOwner | None) -> int:
        """Make ready for a prompt, and return how many of its first rows need not run.

        At least one is left, as its logits are wanted.
        """
        same = owner is not None and self.owner is owner
        count = min(self._common(rows), rows.embeds.shape[1] - 1) if same else 0
        self._owner = None if owner is None else weakref.ref(owner)
        self.cut(count)
        return count

    def cut(self, length: int) -> None:
        """Forget all rows after `length`."""
        if self._grows and length < self.length:
            self.loop.rewind(length)
        self.length = length
        kept, left = list[Rows](), length
        for rows in self._held:
            size = min(left, rows.embeds.shape[1])
            if size:
                kept.append(part(rows, 0, size))
            left -= size
        self._held = kept

    def append(self, rows: Rows) -> None:
        """Remember rows that a step has just added. Without an owner their number is enough."""
        self.length += rows.embeds.shape[1]
        if self._owner is not None:
            self._held.append(Rows(*map(_alone, rows)))

    def _common(self, rows: Rows) -> int:
        """Return how many rows from the first on are those held."""
        start = 0
        for held in self._held:
            size = min(held.embeds.shape[1], rows.embeds.shape[1] - start)
            alike = _alike(part(held, 0, size), part(rows, start, start + size))
            if not alike.all():
                return start + int(alike.argmin())
            start += size
            if size < held.embeds.shape[1]:
                break
        return start


class KvPool:
    """A bounded number of caches, kept for those who ask again."""

    def __init__(
        self, make: Callable[[int], Loop], slots: int, longest: int, *, grows: bool
    ) -> None:
        """Start empty; caches are allocated when they are needed.

        Args:
            make: starts a loop for so many rows.
            slots: caches at most.
            longest: rows of the longest request.
            grows: see `KvCache`.
        """
        self._make = make
        self._slots = slots
        self._longest = longest
        self._grows = grows
        self._caches: list[KvCache] = []  # least recently used first
        self._lock = Lock()

    def take(self, owner: KvOwner | None, rows: int) -> KvCache:
        """Return a cache for so many rows: the owner's, or one that nobody will ask again."""
        with self._lock:
            cache = self._found(owner)
            mine = cache is not None and cache.owner is owner
            room = rows if owner is None else 2 * rows  # a chat grows
            room = max(rows, min(-(-room // STEP) * STEP, self._longest))
            if cache is not None:
                self._caches.remove(cache)
                if cache.capacity < (rows if mine else room):
                    cache = None  # freed before a larger one is allocated
            if cache is None:
                cache = KvCache(self._make, room, owner, grows=self._grows)
            self._caches.append(cache)
            return cache

    def capacities(self) -> tuple[int, ...]:
        """Return the rows that each allocated cache has room for."""
        with self._lock:
            return tuple(cache.capacity for cache in self._caches)

    def clear(self) -> None:
        """Free all."""
        with self._lock:
            self._caches.clear()

    def _found(self, owner: KvOwner | None) -> KvCache | None:
        mine = [cache for cache in self._caches if cache.owner is owner]
        if mine:
            return mine[-1]
        if len(self._caches) < self._slots:
            return None
        nobodys = [cache for cache in self._caches if cache.owner is None]
        return (nobodys or self._caches)[0]


def _alike(first: Rows, second: Rows) -> Bool[Array, " t"]:
    embeds = (first.embeds[0] == second.embeds[0]).all(axis=1)
    positions = (first.positions == second.positions).all(axis=(0, 1))
    return embeds & positions & (first.bias == second.bias)


def _alone(array: Array) -> Array:
    """Return an array that does not keep a much larger one in memory."""
    whole: Array | None = array.base
    return np.array(array) if whole is not None and whole.nbytes > 2 * array.nbytes else array


def part(rows: Rows, start: int, end: int) -> Rows:
    """Return some of the rows, not copied."""
    return Rows(rows.embeds[:, start:end], rows.positions[:, :, start:end], rows.bias[start:end])
