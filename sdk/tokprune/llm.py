"""The pruned LLM: prefill with the kept vision tokens, then one token a step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.errors import ContextOverflow, RequestInvalid
from tokprune.manifest import Limits, LlmForm, LlmShape
from tokprune.sampling import GREEDY, Sampling
from tokprune.types import Array, FinishReason, Prompt, Selection, VisionTokens
from tokprune_runtimes import Carry, Graph


@dataclass(frozen=True)
class Generation:
    """How long and how freely to answer."""

    max_new_tokens: int = 128
    sampling: Sampling = GREEDY

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RequestInvalid(f"max_new_tokens must be 1 or more, got {self.max_new_tokens}")


class Rows(NamedTuple):
    """What enters the LLM at prefill: the prompt without its dropped vision tokens."""

    embeds: Float32[Array, "1 t d"]
    positions: Int64[Array, "p 1 t"]
    bias: Float32[Array, " t"]


class Token(NamedTuple):
    """One answer token. `id` is None at the end, when `finish_reason` says why."""

    id: int | None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class LanguageModel:
    """One form of the LLM graph, its embedding table and its limits."""

    graph: Graph
    form: LlmForm
    shape: LlmShape
    embed_tokens: Float32[Array, "v d"]  # memory-mapped
    eos: frozenset[int]
    limits: Limits

    def prompt_embeds(self, prompt: Prompt, vision: VisionTokens) -> Float32[Array, "s d"]:
        """Return all rows of the unpruned prompt, vision tokens in their slots."""
        embeds = np.asarray(self.embed_tokens[prompt.ids], np.float32)
        embeds[prompt.slots] = vision.embeds
        return embeds

    def rows(self, prompt: Prompt, vision: VisionTokens, selection: Selection) -> Rows:
        """Return the rows that enter the LLM. Kept tokens carry their original positions."""
        embeds = self.prompt_embeds(prompt, vision)
        kept = prompt.slots[selection.keep]
        if selection.embeds is not None:
            embeds[kept] = selection.embeds
        bias = np.zeros(len(prompt.ids), np.float32)
        if selection.bias is not None:
            bias[kept] = selection.bias
        stays = np.ones(len(prompt.ids), np.bool_)
        stays[prompt.slots] = False
        stays[kept] = True
        return Rows(embeds[None, stays], prompt.positions[:, None, stays], bias[stays])

    def generate(
        self, prompt: Prompt, vision: VisionTokens, selection: Selection, generation: Generation
    ) -> Iterator[Token]:
        """Yield the answer token by token; the last item says why it ended."""
        rows = self.rows(prompt, vision, selection)
        length = rows.embeds.shape[1]
        check_length(length, generation.max_new_tokens, self.limits)
        capacity = length + generation.max_new_tokens
        bias = np.zeros((1, capacity), np.float32)
        bias[0, :length] = rows.bias
        loop = self.graph.loop(self._carries(capacity))
        draw = generation.sampling.start()
        feeds = self._feeds(rows.embeds, rows.positions, bias[:, :length], length)
        for step in range(generation.max_new_tokens):
            token = draw(loop.step(feeds)["logits"][0, -1])
            if token in self.eos:
                yield Token(None, "stop")
                return
            yield Token(token)
            if step + 1 < generation.max_new_tokens:
                total = length + step + 1
                position = np.full((len(prompt.positions), 1, 1), prompt.next_position + step)
                embeds = np.asarray(self.embed_tokens[[token]], np.float32)[None]
                feeds = self._feeds(embeds, position.astype(np.int64), bias[:, :total], total)
        yield Token(None, "length")

    def _feeds(self, embeds: Array, positions: Array, bias: Array, total: int) -> dict[str, Array]:
        feeds = {"inputs_embeds": embeds, "position_ids": positions, "attention_bias": bias}
        if self.form.cache == "in_place":
            feeds["seqlens_k"] = np.asarray([total - 1], np.int32)
            feeds["total_sequence_length"] = np.asarray(total, np.int32)
        return feeds

    def _carries(self, capacity: int) -> list[Carry]:
        in_place = self.form.cache == "in_place"
        length = capacity if in_place else 0
        shape = (1, self.shape.kv_heads, length, self.shape.head_dim)
        return [
            Carry(f"present.{layer}.{part}", f"past_key_values.{layer}.{part}", shape, 2, in_place)
            for layer in range(self.shape.layers)
            for part in ("key", "value")
        ]


def check_length(rows: int, max_new_tokens: int, limits: Limits) -> None:
    """Refuse what the bundle does not take, before prefill.

    Raises:
        ContextOverflow: with the numbers.
    """
    if rows > limits.max_input_len:
        raise ContextOverflow(
            f"The prompt has {rows} tokens after pruning, the bundle takes {limits.max_input_len}. "
            "Lower the budget, use fewer or smaller pictures, or export with a larger "
            "--max-input-len"
        )
    if rows + max_new_tokens > limits.max_kv_len:
        raise ContextOverflow(
            f"{rows} prompt tokens and max_new_tokens={max_new_tokens} exceed the bundle's "
            f"{limits.max_kv_len}. Lower max_new_tokens to {max(limits.max_kv_len - rows, 0)} or "
            "the budget, or export with a larger --max-kv-len"
        )
