"""Two ways to decode: the KV cache in the engine's hands, or fed as arrays at every step."""

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

import numpy as np
import real_size

from tokprune.budgets import KeepRatio
from tokprune.llm import Access, Continuation, LanguageModel
from tokprune.llm_calls import Call, feeds_of
from tokprune.selection import keep_all, select
from tokprune.types import Array, Prompt, Selection, VisionTokens
from tokprune_runtimes.ort import OrtGraph, OrtLoop

Holder: TypeAlias = Literal["engine", "arrays"]
HOLDERS: tuple[Holder, ...] = ("engine", "arrays")


class Decoder(Protocol):
    """An LLM with a cache. Rows are added, and taken back."""

    @property
    def logits(self) -> Array: ...
    def extend(self, ids: Sequence[int]) -> None: ...
    def rewind(self, count: int) -> None: ...
    def addresses(self) -> list[int]: ...


class Engine:
    """The product's own way: `Continuation` on a loop of the graph."""

    def __init__(self, llm: LanguageModel, ids: Sequence[int], room: int) -> None:
        """Run the first chunk as a prompt; the pool then has a cache for all that follows."""
        self._written = Continuation(
            llm,
            llm.pool(1).take(None, room),
            llm.rows(*_prompt(ids)),
            len(ids),
            Access(),
        )

    @property
    def logits(self) -> Array:
        """Of the last row."""
        return self._written.logits

    def extend(self, ids: Sequence[int]) -> None:
        """Append rows."""
        self._written.extend(ids)

    def rewind(self, count: int) -> None:
        """Keep `count` rows after the prompt."""
        self._written.rewind(count)

    def addresses(self) -> list[int]:
        """Where the cache's tensors lie."""
        loop = self._written._cache.loop
        assert isinstance(loop, OrtLoop)
        return [value.data_ptr() for value in loop._held.values()]


class Arrays:
    """What one writes without the loop: the outputs of a run are inputs of the next, in numpy."""

    def __init__(self, llm: LanguageModel, ids: Sequence[int], room: int) -> None:
        """Run the first chunk."""
        del room
        assert isinstance(llm.graph, OrtGraph)
        self._llm, self._graph = llm, llm.graph
        shape = (1, llm.shape.kv_heads, 0, llm.shape.head_dim)
        halves = [f"{layer}.{half}" for layer in range(llm.shape.layers)
                  for half in ("key", "value")]  # fmt: skip
        self._past: dict[str, Array] = {half: np.zeros(shape, np.float32) for half in halves}
        self._length = 0
        self.extend(ids)
        self._prompt = self._length

    @property
    def logits(self) -> Array:
        """Of the last row."""
        return self._logits

    def extend(self, ids: Sequence[int]) -> None:
        """Append rows."""
        embeds = np.asarray(self._llm.embed_tokens[list(ids)], np.float32)[None]
        end = self._length + len(ids)
        positions = np.broadcast_to(np.arange(self._length, end), (3, 1, len(ids)))
        call = Call(embeds, np.ascontiguousarray(positions), np.zeros((1, end), np.float32))
        feeds = feeds_of(self._llm.form, call)
        feeds |= {f"past_key_values.{half}": value for half, value in self._past.items()}
        outputs = self._graph.run(feeds)
        self._past = {half: outputs[f"present.{half}"] for half in self._past}
        self._length = end
        self._logits: Array = outputs["logits"][0, -1]

    def rewind(self, count: int) -> None:
        """Keep `count` rows after the prompt."""
        self._length = self._prompt + count
        self._past = {
            half: np.ascontiguousarray(value[:, :, : self._length])
            for half, value in self._past.items()
        }

    def addresses(self) -> list[int]:
        """Where the cache's tensors lie."""
        return [value.ctypes.data for value in self._past.values()]


DECODERS: dict[Holder, type[Engine] | type[Arrays]] = {"engine": Engine, "arrays": Arrays}


def _prompt(ids: Sequence[int]) -> tuple[Prompt, VisionTokens, Selection]:
    """Return a prompt of words alone."""
    nothing = VisionTokens(
        np.empty((0, real_size.HIDDEN), np.float32), np.empty((0, 7), np.int32), ()
    )
    prompt = Prompt(
        ids=np.asarray(ids),
        slots=np.empty(0, np.int64),
        words=np.ones(len(ids), np.bool_),
        positions=np.tile(np.arange(len(ids)), (3, 1)),
        next_position=len(ids),
    )
    return prompt, nothing, select(keep_all(0), nothing, KeepRatio(1.0))
