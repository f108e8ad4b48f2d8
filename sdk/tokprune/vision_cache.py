"""Vision encoder outputs by the content of the pixels."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from tokprune.types import Array, Feeds, Prepared
from tokprune_runtimes import Carry, Graph, Interrupt, Loop

VISION_CACHE_BYTES = 256 * 2**20


class VisionCache:
    """Keeps the outputs of the latest encoder calls, within a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._lock = Lock()
        self._entries: OrderedDict[bytes, dict[str, Array]] = OrderedDict()
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes that are held now."""
        return self._bytes

    def get(self, key: bytes) -> dict[str, Array] | None:
        """Return what was put, and make it the newest."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: bytes, outputs: dict[str, Array]) -> None:
        """Keep outputs; the oldest go. What is larger than all room is not kept."""
        size = _size(outputs)
        if size > self.max_bytes:
            return
        for array in outputs.values():
            array.flags.writeable = False  # shared from now on
        with self._lock:
            replaced = self._entries.pop(key, None)
            if replaced is not None:
                self._bytes -= _size(replaced)
            self._entries[key] = outputs
            self._bytes += size
            while self._bytes > self.max_bytes:
                _, oldest = self._entries.popitem(last=False)
                self._bytes -= _size(oldest)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0


@dataclass
class CachedEncoder:
    """A vision encoder that runs for pixels it has not seen. Of one request: it counts.

    Two pictures that differ in one value are two pictures; the key is a hash of what the encoder
    would be fed (BLAKE2b of 128 bits, about a millisecond a megabyte).
    """

    graph: Graph
    cache: VisionCache
    hits: int = field(default=0, init=False)
    runs: int = field(default=0, init=False)
    parts: frozenset[int] = field(default=frozenset(), init=False)  # identities of such feeds
    # Numbers in `pixel_values` of what ran: of whole pictures, and of parts
    ran: list[int] = field(default_factory=list[int], init=False)
    ran_parts: list[int] = field(default_factory=list[int], init=False)
    _keys: dict[int, tuple[Feeds, bytes]] = field(
        default_factory=dict[int, tuple[Feeds, bytes]], init=False
    )
    # By the identity of feeds that are kept: looks of one request share calls.
    _made: dict[int, tuple[Feeds, dict[str, Array]]] = field(
        default_factory=dict[int, tuple[Feeds, dict[str, Array]]], init=False
    )

    def has(self, feeds: Feeds) -> bool:
        """Tell whether these pixels need not be encoded."""
        return bool(self.cache.max_bytes) and self.cache.get(self._key(feeds)) is not None

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        """Return the outputs for these pixels."""
        made = self._made.get(id(feeds))
        if made is not None:  # by this very request: neither a run nor a hit
            return made[1]
        key = self._key(feeds) if self.cache.max_bytes else b""
        outputs = self.cache.get(key) if key else None
        if outputs is not None:
            self.hits += 1
        else:
            outputs = self.graph.run(feeds, interrupt)
            self.runs += 1
            (self.ran_parts if id(feeds) in self.parts else self.ran).append(
                feeds["pixel_values"].size
            )
            if key:
                self.cache.put(key, outputs)
        self._made[id(feeds)] = (feeds, outputs)
        return outputs

    def expect(self, media: Sequence[Prepared]) -> None:
        """Take note of which calls of the next look are for parts of pictures."""
        self.parts = frozenset(id(call) for shown in media if shown.part for call in shown.calls)

    def forget(self) -> None:
        """Let go of what looks have shared: there will be no other."""
        self._made.clear()
        self._keys.clear()

    def _key(self, feeds: Feeds) -> bytes:
        """Hash once. The feeds are kept, so that no others get their identity."""
        known = self._keys.get(id(feeds))
        if known is None:
            known = self._keys[id(feeds)] = (feeds, key_of(feeds))
        return known[1]

    def loop(self, carries: Sequence[Carry]) -> Loop:
        """Start a loop, which no vision encoder has."""
        return self.graph.loop(carries)


def key_of(feeds: Feeds) -> bytes:
    """Return a hash of names, dtypes, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(feeds):
        array: Array = np.ascontiguousarray(feeds[name])
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.data)
    return digest.digest()


def _size(outputs: dict[str, Array]) -> int:
    return sum(array.nbytes for array in outputs.values())
