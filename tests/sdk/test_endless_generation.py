"""The promise "endless generation: no EOS, n-gram loops: 0 overruns of 10,000" (robots.md)."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from counts import CHUNKS, share
from grids import prompt_for, vision_tokens

from tokprune.llm import Generation, LanguageModel
from tokprune.manifest import GraphSpec, Limits, LlmForm, LlmShape
from tokprune.text.repetition import LONGEST_PERIOD, RepetitionGuard, repetitions_of
from tokprune.types import Selection
from tokprune_runtimes import Array, Carry, Feeds, Interrupt

VOCAB, HIDDEN, EOS = 40, 4, 39
VISION = vision_tokens((2, 3))
PROMPT = prompt_for(VISION)
KEPT = Selection(np.asarray([1, 4]), 6, None, None, "count")
EMBED = np.zeros((VOCAB, HIDDEN), np.float32)


class Script(NamedTuple):
    """What a model says that never ends: something, then one n-gram for ever."""

    before: list[int]
    gram: list[int]
    max_new_tokens: int

    def token(self, number: int) -> int:
        if number < len(self.before):
            return self.before[number]
        return self.gram[(number - len(self.before)) % len(self.gram)]

    @property
    def bound(self) -> int:
        """Most tokens that the answer may have."""
        period = len(self.gram)
        if period > LONGEST_PERIOD:
            return self.max_new_tokens
        return min(self.max_new_tokens, len(self.before) + period * repetitions_of(period))


class EndlessGraph:
    """Says what the script says, and never EOS."""

    def __init__(self, script: Script) -> None:
        self.script, self.steps = script, 0

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        raise AssertionError("generation steps through a loop")

    def loop(self, carries: Sequence[Carry]) -> "EndlessGraph":
        return self

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        logits = np.zeros((1, 1, VOCAB), np.float32)
        logits[0, 0, EOS] = 4  # likely, never the likeliest
        logits[0, 0, self.script.token(self.steps)] = 5
        self.steps += 1
        return {"logits": logits}

    def rewind(self, length: int) -> None:
        raise AssertionError("nothing to rewind")


def script(chance: Random) -> Script:
    letters = chance.choice((1, 3, VOCAB - 1))
    period = chance.choice((1, 2, chance.randint(1, 16), chance.randint(1, 80), 500))
    return Script(
        before=[chance.randrange(letters) for _ in range(chance.choice((0, 5, 40)))],
        gram=[chance.randrange(letters) for _ in range(period)],
        max_new_tokens=chance.choice((1, 2, 64, 128, 128, chance.randint(1, 400))),
    )


def answered(graph: EndlessGraph, *, guarded: bool = True) -> tuple[list[int], str]:
    """Decode as an answer is decoded, until the length or the guard ends it."""
    llm = LanguageModel(
        graph=graph,
        form=LlmForm("ort", "in_place", ["onnxruntime-cpu"], GraphSpec("llm.onnx", 18, [], [])),
        shape=LlmShape(1, 4, 2, 8, HIDDEN, VOCAB),
        embed_tokens=EMBED,
        eos=frozenset({EOS}),
        limits=Limits(max_input_len=64, max_kv_len=512),
    )
    guard, ids = RepetitionGuard(), list[int]()
    generation = Generation(graph.script.max_new_tokens)
    for token in llm.generate(PROMPT, VISION, KEPT, generation):
        if token.id is None:
            return ids, str(token.finish_reason)
        ids.append(token.id)
        if guarded and guard.push(token.id):
            return ids, "repetition"
    raise AssertionError("an answer ends with a reason")


@pytest.mark.parametrize("chunk", CHUNKS)
def test_no_answer_overruns_its_length_or_goes_on_in_a_loop(chunk: int) -> None:
    reasons = {"length": 0, "repetition": 0}
    for case in range(share(10_000)):
        chance = Random(f"endless {chunk} {case}")
        graph = EndlessGraph(script(chance))
        ids, reason = answered(graph)
        assert len(ids) <= graph.script.bound, graph.script
        assert graph.steps == len(ids), "no step is run beyond the last token"
        assert ids == [graph.script.token(number) for number in range(len(ids))]
        assert reason == "repetition" or len(ids) == graph.script.max_new_tokens
        reasons[reason] += 1
    assert min(reasons.values()) > share(10_000) / 10, "both bounds were met"


def test_without_the_guard_a_loop_goes_on_to_the_length() -> None:
    looping = Script([], [7], 200)
    assert len(answered(EndlessGraph(looping), guarded=False)[0]) == 200
    assert answered(EndlessGraph(looping)) == ([7] * 64, "repetition")
