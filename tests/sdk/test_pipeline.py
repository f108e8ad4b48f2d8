from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from grids import first_layer, prompt_for, vision_tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tokprune import Answer, KeepCount, RequestInvalid, overlay
from tokprune.llm import Token
from tokprune.looking import Asked, Look
from tokprune.pipeline import Pipeline
from tokprune.running.request import Options
from tokprune.running.writing import Written, write
from tokprune.selection import select, unless_all
from tokprune.selectors.baselines import attention
from tokprune.stopwatch import Stopwatch
from tokprune.types import (
    First,
    FirstLayer,
    Prepared,
    Prompt,
    Ranking,
    Selection,
    VisionTokens,
)

VISION = vision_tokens((2, 3))
SCORES = np.asarray([0, 5, 0, 0, 4, 0], np.float32)


def pipeline(calls: list[str], *, text: bytes = b"ok") -> Pipeline:
    def vision_graph(pictures: Sequence[Prepared]) -> VisionTokens:
        return VISION

    def first_layer_graph(prompt: Prompt, vision: VisionTokens) -> First:
        def run() -> FirstLayer:
            calls.append("first layer")
            return first_layer(vision, SCORES)

        return run

    def llm(prompt: Prompt, vision: VisionTokens, selection: Selection) -> Iterator[Token]:
        calls.append(f"llm {selection.keep.tolist()}")
        for byte in text:
            yield Token(int(byte))
        yield Token(None, "stop")

    def rank(look: Look, vision: VisionTokens, first: First) -> Ranking:
        return attention(look.prompt, vision, first)

    return Pipeline(vision_graph, first_layer_graph, rank, llm)


def byte_tokenizer() -> Tokenizer:
    """A token for every byte, its id the byte itself."""
    letters = {}
    for byte in range(256):
        kept = 33 <= byte < 127 or 161 <= byte < 173 or byte >= 174
        letters[byte] = chr(byte) if kept else None
    spare = iter(range(256, 512))
    vocab = {letter or chr(next(spare)): byte for byte, letter in letters.items()}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def said(
    text: bytes, pieces: list[str] | None = None, watch: Stopwatch | None = None, **options: Any
) -> Written:
    flow = pipeline([], text=text).answer(Asked(prompt_for(VISION), (), KeepCount(2)))
    given = [] if pieces is None else pieces
    return write(flow, byte_tokenizer(), watch or Stopwatch(), Options(**options), given.append)


def test_the_llm_sees_only_the_tokens_that_the_question_attends_to() -> None:
    calls: list[str] = []
    flow = pipeline(calls).answer(Asked(prompt_for(VISION), (), KeepCount(2)))
    assert next(flow.tokens).id == ord("o")
    assert calls == ["first layer", "llm [1, 4]"]
    assert flow.selection.scores is not None


def test_a_budget_that_keeps_all_never_runs_the_first_layer() -> None:
    def forbidden(prompt: Prompt, vision: VisionTokens, first: First) -> None:
        raise AssertionError("the selector must not run")

    chosen = unless_all(forbidden, KeepCount(6))  # pyright: ignore[reportArgumentType]
    ranking = chosen(prompt_for(VISION), VISION, lambda: first_layer(VISION, SCORES))
    assert select(ranking, VISION, KeepCount(6)).keep.tolist() == list(range(6))


def test_pieces_join_to_the_text_and_never_split_a_character() -> None:
    text, pieces = "naïve 🙂 end", list[str]()
    written = said(text.encode(), pieces)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert (written.text, written.finish_reason) == (text, "stop")


def test_an_unfinished_character_at_the_end_is_not_lost() -> None:
    pieces: list[str] = []
    written = said("ab🙂".encode()[:-1], pieces)
    assert "".join(pieces) == written.text
    assert written.text.startswith("ab")
    assert len(written.token_ids) == 5


def test_a_stop_string_ends_the_text_before_it_and_the_work_with_it() -> None:
    pieces: list[str] = []
    written = said(b"yes. And more", pieces, stop=[". A"])
    assert (written.text, written.finish_reason) == ("yes", "stop")
    assert "".join(pieces) == "yes"
    assert len(written.token_ids) == len("yes. A")


def test_a_loop_is_ended_unless_that_is_switched_off() -> None:
    written = said(b"no " * 100)
    assert written.finish_reason == "repetition"
    assert len(written.token_ids) < 100
    assert said(b"no " * 100, repetition_guard=False).finish_reason == "stop"


def test_prefill_and_decode_are_timed_apart() -> None:
    watch = Stopwatch()
    written = said(b"yes", watch=watch)
    assert set(watch.timings_ms) == {"prefill", "decode"}
    assert 0 < written.ttft_ms <= watch.elapsed_ms()


def test_a_stage_within_a_stage_counts_for_itself_alone() -> None:
    watch = Stopwatch()
    with watch.stage("outer"), watch.stage("inner"):
        total = sum(range(200_000))
    assert total
    assert watch.timings_ms["inner"] > watch.timings_ms["outer"]
    assert watch.elapsed_ms() >= watch.timings_ms["inner"] + watch.timings_ms["outer"]


def finished() -> Answer:
    flow = pipeline([]).answer(Asked(prompt_for(VISION), (), KeepCount(2)))
    return Answer(
        text="ok",
        finish_reason="stop",
        selection=flow.selection,
        regions=VISION.regions,
        where=VISION.where,
        selector="attention",
        timings_ms={},
        ttft_ms=1.0,
        token_ids=(),
    )


def test_an_overlay_dims_what_was_dropped() -> None:
    image = np.full((56, 84, 3), 200, np.uint8)
    drawn = overlay(image, finished())
    assert drawn.shape == image.shape
    assert drawn[10, 10].max() < 80  # token 0, dropped
    assert drawn[14, 42].max() > 180  # token 1, kept
    assert drawn[42, 42].max() > 180  # token 4, kept


def test_an_overlay_of_a_picture_that_was_not_asked_about_is_refused() -> None:
    with pytest.raises(RequestInvalid, match=r"0\.\.0"):
        overlay(np.zeros((28, 28, 3), np.uint8), finished(), picture=1)
