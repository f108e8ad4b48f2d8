"""The host side of generation, on a graph that is a function."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from grids import prompt_for, vision_tokens

from tokprune import ContextOverflow, RequestInvalid
from tokprune.llm import Generation, LanguageModel, check_length, check_text
from tokprune.llm_calls import Call, feeds_of
from tokprune.manifest import Cache, GraphSpec, Limits, LlmForm, LlmShape, Tensor
from tokprune.text.sampling import Sampling
from tokprune.types import Selection
from tokprune_runtimes import Array, Carry, Feeds, Interrupt

VOCAB, HIDDEN, EOS = 40, 4, 39
VISION = vision_tokens((2, 3))
PROMPT = prompt_for(VISION)  # ids 0..13, vision tokens in 3..8
EMBED = np.arange(VOCAB * HIDDEN, dtype=np.float32).reshape(VOCAB, HIDDEN)


class ScriptedGraph:
    """Answers with a list of tokens, and remembers what it was fed."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens, self.seen, self.carries = tokens, list[dict[str, Array]](), list[Carry]()

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        raise AssertionError("generation steps through a loop")

    def loop(self, carries: Sequence[Carry]) -> "ScriptedGraph":
        self.carries = list(carries)
        return self

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        logits = np.zeros((1, 1, VOCAB), np.float32)
        logits[0, 0, self.tokens[len(self.seen)]] = 5
        self.seen.append({name: np.array(value) for name, value in feeds.items()})
        return {"logits": logits}

    def rewind(self, length: int) -> None:
        raise AssertionError("nothing to rewind")


def language_model(graph: ScriptedGraph, cache: Cache = "in_place") -> LanguageModel:
    bias = Tensor("attention_bias", "float32", [1, "P+T"])
    return LanguageModel(
        graph=graph,
        form=LlmForm("ort", cache, ["onnxruntime-cpu"], GraphSpec("llm.onnx", 18, [bias], [])),
        shape=LlmShape(2, 4, 2, 8, HIDDEN, VOCAB),
        embed_tokens=EMBED,
        eos=frozenset({EOS}),
        limits=Limits(max_input_len=64, max_kv_len=256),
    )


def selection(*keep: int, bias: list[float] | None = None) -> Selection:
    values = None if bias is None else np.asarray(bias, np.float32)
    return Selection(np.asarray(keep), 6, None, None, "count", bias=values)


def test_kept_tokens_enter_with_their_original_positions() -> None:
    graph = ScriptedGraph([EOS])
    llm = language_model(graph)
    list(llm.generate(PROMPT, VISION, selection(1, 4), Generation()))
    (fed,) = graph.seen
    assert fed["position_ids"][0, 0].tolist() == [0, 1, 2, 4, 7, 9, 10, 11, 12, 13]
    np.testing.assert_array_equal(fed["inputs_embeds"][0, 3:5], VISION.embeds[[1, 4]])
    np.testing.assert_array_equal(fed["inputs_embeds"][0, :3], EMBED[:3])


def test_decoding_goes_on_from_the_unpruned_next_position() -> None:
    graph = ScriptedGraph([7, 8, EOS])
    tokens = list(language_model(graph).generate(PROMPT, VISION, selection(0), Generation()))
    assert [token.id for token in tokens] == [7, 8, None]
    assert tokens[-1].finish_reason == "stop"
    assert [int(fed["position_ids"][0, 0, 0]) for fed in graph.seen[1:]] == [14, 15]
    assert [int(fed["total_sequence_length"]) for fed in graph.seen] == [9, 10, 11]
    assert [fed["seqlens_k"].tolist() for fed in graph.seen] == [[8], [9], [10]]
    np.testing.assert_array_equal(graph.seen[1]["inputs_embeds"][0], EMBED[[7]])


def test_size_bias_stays_on_its_columns_in_decode() -> None:
    graph = ScriptedGraph([7, EOS])
    chosen = selection(1, 4, bias=[0.5, 0.25])
    list(language_model(graph).generate(PROMPT, VISION, chosen, Generation()))
    expected = [0, 0, 0, 0.5, 0.25, 0, 0, 0, 0, 0]
    assert graph.seen[0]["attention_bias"].tolist() == [expected]
    assert graph.seen[1]["attention_bias"].tolist() == [[*expected, 0]]


def test_the_length_ends_an_answer_without_a_wasted_step() -> None:
    graph = ScriptedGraph([7, 8, 9])
    generation = Generation(max_new_tokens=2)
    tokens = list(language_model(graph).generate(PROMPT, VISION, selection(0), generation))
    assert [token.finish_reason for token in tokens] == [None, None, "length"]
    assert len(graph.seen) == 2


def test_a_growing_cache_starts_empty_and_an_in_place_one_at_capacity() -> None:
    lengths: dict[Cache, int] = {"grows": 0, "in_place": 256}
    for cache, length in lengths.items():
        graph = ScriptedGraph([EOS])
        generation = Generation(max_new_tokens=5)
        list(language_model(graph, cache).generate(PROMPT, VISION, selection(0), generation))
        assert {carry.shape for carry in graph.carries} == {(1, 2, length, 8)}
        assert len(graph.carries) == 4
        assert ("seqlens_k" in graph.seen[0]) == (cache == "in_place")


@pytest.mark.parametrize(
    ("rows", "new", "message"),
    [
        (65, 1, "65 tokens after pruning, the bundle takes 64"),
        (60, 40, "Lower max_new_tokens to 36"),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers(rows: int, new: int, message: str) -> None:
    with pytest.raises(ContextOverflow, match=message):
        check_length(rows, new, Limits(64, 96))


@pytest.mark.parametrize(("rows", "new"), [(64, 32), (1, 95)])
def test_what_just_fits_passes(rows: int, new: int) -> None:
    check_length(rows, new, Limits(64, 96))


def test_an_answer_needs_room_for_one_token() -> None:
    with pytest.raises(RequestInvalid, match="1 or more"):
        Generation(max_new_tokens=0)


def test_greedy_takes_the_first_of_equal_logits() -> None:
    assert Sampling().start()(np.asarray([1, 3, 3], np.float32)) == 1


def test_equal_seeds_draw_equal_tokens_and_others_do_not() -> None:
    logits = np.zeros(1000, np.float32)

    def draw(seed: int) -> list[int]:
        sampler = Sampling(temperature=1.0, seed=seed).start()
        return [sampler(logits) for _ in range(8)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_top_p_keeps_the_token_that_crosses_it() -> None:
    logits = np.log(np.asarray([0.5, 0.3, 0.2], np.float32))
    sampler = Sampling(temperature=1.0, top_p=0.6).start()
    assert {sampler(logits) for _ in range(200)} == {0, 1}
    only = Sampling(temperature=1.0, top_p=0.5).start()
    assert {only(logits) for _ in range(50)} == {0}


def test_a_low_temperature_is_nearly_greedy() -> None:
    logits = np.asarray([1.0, 1.2, 0.8], np.float32)
    sampler = Sampling(temperature=0.01).start()
    assert {sampler(logits) for _ in range(100)} == {1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_senseless_sampling_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        Sampling(**options)


def masked(graph: ScriptedGraph) -> LanguageModel:
    """The form for TensorRT, with a cache of 300 rows in float16."""
    cache = [
        Tensor(f"past_key_values.{half}", "float16", [1, 2, 300, 8])
        for half in ("0.key", "0.value", "1.key", "1.value")
    ]
    spec = GraphSpec("llm.onnx", 24, cache, [])
    llm = language_model(graph)
    return replace(llm, form=LlmForm("trt", "in_place", ["tensorrt"], spec))


def test_tensorrts_form_is_told_by_a_mask_and_where_to_write() -> None:
    graph = ScriptedGraph([7, 8, EOS])
    list(masked(graph).generate(PROMPT, VISION, selection(0), Generation()))
    names = {"inputs_embeds", "position_ids", "attention_mask", "write_indices"}
    assert all(set(fed) == names for fed in graph.seen)
    prefill, *decode = (fed["attention_mask"][0, 0] for fed in graph.seen)
    np.testing.assert_array_equal(prefill, np.tri(9, 256, dtype=np.bool_))
    assert [mask.sum() for mask in decode] == [10, 11]
    assert all(mask[:, : mask.sum()].all() for mask in decode)
    assert [fed["write_indices"].tolist() for fed in graph.seen] == [[0], [9], [10]]
    assert {(carry.shape, carry.dtype, carry.in_place) for carry in graph.carries} == {
        ((1, 2, 300, 8), "float16", True)
    }


@pytest.mark.parametrize(("total", "seen"), [(1, 256), (256, 256), (257, 300), (300, 300)])
def test_a_mask_is_a_multiple_of_256_wide_or_as_wide_as_the_cache(total: int, seen: int) -> None:
    form = masked(ScriptedGraph([])).form
    call = Call(
        np.zeros((1, 1, HIDDEN), np.float32), np.zeros((1, 1, 1), np.int64), BIAS[:, :total]
    )
    assert feeds_of(form, call)["attention_mask"].shape == (1, 1, 1, seen)


BIAS = np.zeros((1, 300), np.float32)


def test_tensorrts_form_refuses_a_size_bias_before_it_runs() -> None:
    graph = ScriptedGraph([EOS])
    match = r"takes no size bias in its form 'trt'.*llm_form='portable'"
    with pytest.raises(RequestInvalid, match=match):
        list(masked(graph).generate(PROMPT, VISION, selection(1, bias=[0.5]), Generation()))
    assert not graph.seen


def test_a_form_without_a_bias_is_fed_none_and_refuses_one() -> None:
    graph = ScriptedGraph([7, EOS])
    llm = language_model(graph)
    spec = GraphSpec("llm.onnx", 18, [], [])
    llm = replace(llm, form=LlmForm("ort", "in_place", ["onnxruntime-cuda"], spec))
    list(llm.generate(PROMPT, VISION, selection(1), Generation()))
    assert all("attention_bias" not in fed for fed in graph.seen)
    with pytest.raises(RequestInvalid, match="takes no size bias in its form 'ort'"):
        list(llm.generate(PROMPT, VISION, selection(1, bias=[0.5]), Generation()))


def test_a_table_of_float16_is_fed_as_float32() -> None:
    graph = ScriptedGraph([7, EOS])
    llm = replace(language_model(graph), embed_tokens=EMBED.astype(np.float16))
    list(llm.generate(PROMPT, VISION, selection(0), Generation()))
    assert {fed["inputs_embeds"].dtype for fed in graph.seen} == {np.dtype(np.float32)}


def test_text_that_no_budget_makes_fit_is_refused_before_any_graph_runs() -> None:
    words = len(PROMPT.ids) - len(PROMPT.slots)
    check_text(PROMPT, Limits(words, 96))
    with pytest.raises(ContextOverflow, match=f"The text alone has {words} tokens"):
        check_text(PROMPT, Limits(words - 1, 96))


def test_a_seed_below_zero_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="seed must be 0 or more, got -1"):
        Sampling(seed=-1)
