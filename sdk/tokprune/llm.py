"""The pruned LLM: prefill with the kept vision tokens, then one token a step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64

from tokprune.control import Control
from tokprune.errors import ContextOverflow, RequestInvalid
from tokprune.guarding import guarded
from tokprune.kv import KvCache, KvOwner, KvPool, Rows, part
from tokprune.llm_calls import Call, cache_length, check_bias, feeds_of
from tokprune.manifest import Limits, LlmForm, LlmShape
from tokprune.text.choices import Choice, ChoiceTree, choose
from tokprune.text.sampling import GREEDY, Sampling
from tokprune.types import Array, FinishReason, Prompt, Selection, VisionTokens
from tokprune_runtimes import Carry, Graph, Loop


@dataclass(frozen=True)
class Generation:
    """How long and how freely to answer."""

    max_new_tokens: int = 128
    sampling: Sampling = GREEDY

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise RequestInvalid(f"max_new_tokens must be 1 or more, got {self.max_new_tokens}")


class Token(NamedTuple):
    """One answer token. `id` is None at the end, when `finish_reason` says why.

    Where neither is given, the prefill is done and no token is known yet.
    """

    id: int | None
    finish_reason: FinishReason | None = None
    choice: Choice | None = None


def _ignore(count: int) -> None:
    del count


@dataclass(frozen=True)
class Access:
    """How one request uses the LLM."""

    control: Control = field(default_factory=Control)
    pool: KvPool | None = None  # None: a cache for this request alone
    owner: KvOwner | None = None  # who will ask again about the same rows
    reused: Callable[[int], None] = _ignore  # told how many rows of the prompt need not run


@dataclass(frozen=True)
class LanguageModel:
    """One form of the LLM graph, its embedding table and its limits."""

    graph: Graph
    form: LlmForm
    shape: LlmShape
    embed_tokens: Float[Array, "v d"]  # memory-mapped
    eos: frozenset[int]
    limits: Limits

    def prompt_embeds(self, prompt: Prompt, vision: VisionTokens) -> Float32[Array, "s d"]:
        """Return all rows of the unpruned prompt, vision tokens in their slots."""
        embeds = self.embed(prompt.ids)
        if len(prompt.slots):
            embeds[prompt.slots] = vision.embeds
        return embeds

    def embed(self, ids: Int64[Array, " m"]) -> Float32[Array, "m d"]:
        """Return the LLM's inputs of token ids."""
        return np.asarray(self.embed_tokens[ids], np.float32)

    def rows(self, prompt: Prompt, vision: VisionTokens, selection: Selection) -> Rows:
        """Return the rows that enter the LLM.

        Kept tokens carry their original positions, or those of the tokens that `at` names.
        """
        embeds = self.prompt_embeds(prompt, vision)
        kept = prompt.slots[selection.keep]
        if selection.embeds is not None:
            embeds[kept] = selection.embeds
        bias = np.zeros(len(prompt.ids), np.float32)
        if selection.bias is not None:
            bias[kept] = selection.bias
        positions = np.array(prompt.positions)
        if selection.at is not None:
            positions[:, kept] = prompt.positions[:, prompt.slots[selection.at]]
        stays = np.ones(len(prompt.ids), np.bool_)
        stays[prompt.slots] = False
        stays[kept] = True
        return Rows(embeds[None, stays], positions[:, None, stays], bias[stays])

    def start(
        self,
        prompt: Prompt,
        vision: VisionTokens,
        selection: Selection,
        max_new_tokens: int,
        access: Access,
    ) -> "Continuation":
        """Run the prefill, and return what comes next.

        Raises:
            ContextOverflow: prompt and answer are too long; nothing has run.
            RequestInvalid: this form takes no size bias.
        """
        rows = self.rows(prompt, vision, selection)
        length = rows.embeds.shape[1]
        check_length(length, max_new_tokens, self.limits)
        check_bias(self.form, rows.bias)
        with guarded(access.control):
            cache = (access.pool or self.pool(1)).take(access.owner, length + max_new_tokens)
        return Continuation(self, cache, rows, prompt.next_position, access)

    def generate(
        self,
        prompt: Prompt,
        vision: VisionTokens,
        selection: Selection,
        generation: Generation,
        access: Access | None = None,
    ) -> Iterator[Token]:
        """Yield the answer token by token; the last item says why it ended."""
        most = generation.max_new_tokens
        written = self.start(prompt, vision, selection, most, access or Access())
        draw = generation.sampling.start()
        for step in range(most):
            token = draw(written.logits)
            if token in self.eos:
                yield Token(None, "stop")
                return
            yield Token(token)
            if step + 1 < most:
                written.extend([token])
        yield Token(None, "length")

    def choose(
        self,
        prompt: Prompt,
        vision: VisionTokens,
        selection: Selection,
        tree: ChoiceTree,
        access: Access,
    ) -> Iterator[Token]:
        """Yield the tokens of the likeliest choice; the last item has all probabilities."""
        written = self.start(prompt, vision, selection, max(tree.rows, 1), access)
        yield Token(None)
        choice = choose(written, tree, self.eos)
        for token in choice.token_ids:
            yield Token(token)
        yield Token(None, "stop", choice)

    def pool(self, slots: int) -> KvPool:
        """Return a pool of KV caches for this LLM."""
        grows = self.form.cache == "grows"
        return KvPool(self._loop, slots, self.limits.max_kv_len, grows=grows)

    def _loop(self, capacity: int) -> Loop:
        return self.graph.loop(self._carries(capacity))

    def _carries(self, capacity: int) -> list[Carry]:
        in_place = self.form.cache == "in_place"
        length = cache_length(self.form, capacity) if in_place else 0
        shape = (1, self.shape.kv_heads, length, self.shape.head_dim)
        dtypes = {tensor.name: tensor.dtype for tensor in self.form.graph.inputs}
        return [
            Carry(f"present.{half}", name, shape, 2, in_place, dtypes.get(name, "float32"))
            for layer in range(self.shape.layers)
            for half in (f"{layer}.key", f"{layer}.value")
            for name in (f"past_key_values.{half}",)
        ]


class Continuation:
    """The LLM after a prompt: logits of what comes next; answer tokens are added and taken back."""

    def __init__(
        self, llm: LanguageModel, cache: KvCache, rows: Rows, next_position: int, access: Access
    ) -> None:
        """Run the prefill: of those rows that the cache does not hold."""
        self._llm = llm
        self._cache = cache
        self._access = access
        self._axes = len(rows.positions)
        self._prompt = rows.embeds.shape[1]
        self._next_position = next_position
        self._bias = np.zeros((1, cache.capacity), np.float32)
        self._bias[0, : self._prompt] = rows.bias
        with guarded(access.control):
            reused = cache.begin(rows, access.owner)
        access.reused(reused)
        self._run(part(rows, reused, self._prompt))

    @property
    def logits(self) -> Float32[Array, " v"]:
        """Of the next token."""
        if self._logits is None:
            raise ValueError("There are no logits after `rewind`: extend first")
        return self._logits

    def extend(self, ids: Sequence[int]) -> None:
        """Append answer tokens, in one run; `logits` are then those after the last."""
        embeds = np.asarray(self._llm.embed_tokens[list(ids)], np.float32)[None]
        start = self._next_position + self._cache.length - self._prompt
        positions: Int64[Array, "p 1 t"] = np.empty((self._axes, 1, len(ids)), np.int64)
        positions[:] = range(start, start + len(ids))
        self._run(Rows(embeds, positions, np.zeros(len(ids), np.float32)))

    def rewind(self, count: int) -> None:
        """Keep `count` answer tokens; there are no logits until `extend`."""
        self._cache.cut(self._prompt + count)
        self._logits = None

    def _run(self, rows: Rows) -> None:
        total = self._cache.length + rows.embeds.shape[1]
        call = Call(rows.embeds, rows.positions, self._bias[:, :total])
        with guarded(self._access.control) as interrupt:
            outputs = self._cache.loop.step(feeds_of(self._llm.form, call), interrupt)
        self._cache.append(rows)
        self._logits: Float32[Array, " v"] | None = outputs["logits"][0, -1]


def check_text(prompt: Prompt, limits: Limits) -> None:
    """Refuse what no budget makes short enough, before any graph runs over it.

    Raises:
        ContextOverflow: with the numbers.
    """
    rows = len(prompt.ids) - len(prompt.slots)
    if rows > limits.max_input_len:
        raise ContextOverflow(
            f"The text alone has {rows} tokens, the bundle takes {limits.max_input_len}. Say less, "
            "or export with a larger --max-input-len"
        )


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
