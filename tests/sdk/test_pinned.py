"""Pictures that many questions are asked about."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from stub_model import Held, Stub, a_picture, a_vlm
from watchdog import watchdog

from tokprune import Cancelled, CancelToken, RequestInvalid
from tokprune.vlm import VLM


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def vlm(stub: Stub) -> Iterator[VLM]:
    with a_vlm(stub) as made:
        yield made


def test_later_questions_run_their_own_words_alone(vlm: VLM, stub: Stub) -> None:
    pictures = [a_picture(1), a_picture(2)]
    pinned = vlm.pin(pictures, budget=0.5, system="be kind")
    first = pinned.ask("what is this?")
    assert (first.encoder_runs, first.reused, first.kept, first.selector) == (2, 0, 24, "spread")
    head = first.prompt_tokens - len("what is this?") - len("<.bot.")
    for question in ("how many?", "what colour?", "what is this?"):
        stub.rows.clear()
        answer = pinned.ask(question)
        assert (answer.encoder_runs, answer.encoder_hits) == (0, 0)
        assert answer.reused >= head - 2
        assert stub.rows[0] == answer.prompt_tokens - answer.reused <= len(question) + 8
        assert answer.selection.keep.tolist() == first.selection.keep.tolist()
    assert stub.runs["first_layer"] == stub.runs["scorer"] == 0


def test_questions_do_not_know_of_each_other(vlm: VLM) -> None:
    expected = [vlm.pin(a_picture(1)).ask(question).text for question in ("a?", "bb?", "a?")]
    pinned, other = vlm.pin(a_picture(1)), vlm.pin(a_picture(2))
    for _ in range(3):
        for question, text in zip(("a?", "bb?", "a?"), expected, strict=True):
            assert pinned.ask(question).text == text
            other.ask(question)
            vlm.ask(a_picture(3), "between?")


def test_every_picture_keeps_its_own_share_whatever_is_beside_it(vlm: VLM) -> None:
    alone = vlm.pin(a_picture(1), budget=5).ask("a?").selection.keep.tolist()
    beside = vlm.pin([a_picture(1), a_picture(2, 64, 64)], budget=5).ask("a?").selection
    assert beside.keep[:5].tolist() == alone
    assert (beside.kept, beside.cap) == (10, 10)


def test_many_questions_at_once(vlm: VLM, stub: Stub) -> None:
    pinned = vlm.pin(a_picture(1))
    stub.at = held = Held("vision")
    streams = [pinned.stream(question) for question in ("a?", "b?", "a?")]
    assert held.reached.wait(20)
    held.go.set()
    texts = [stream.result().text for stream in streams]
    assert texts == [pinned.ask(question).text for question in ("a?", "b?", "a?")]
    assert stub.runs["vision"] == 1


@pytest.mark.parametrize("graph", ["vision", "prefill", "decode"])
def test_a_question_that_was_stopped_costs_the_next_nothing(
    vlm: VLM, stub: Stub, graph: str
) -> None:
    expected = vlm.pin(a_picture(1)).ask("a?").text
    vlm._runtime.state.vision_cache.clear()
    pinned, token = vlm.pin(a_picture(1)), CancelToken()
    stub.at = held = Held(graph)
    stream = pinned.stream("bb?", cancel=token)
    assert held.reached.wait(20)
    token.cancel()
    if graph == "decode":
        assert stream.result().finish_reason == "cancelled"
    else:
        with pytest.raises(Cancelled):
            stream.result()
    stub.at = None
    assert pinned.ask("a?").text == expected


def test_its_cache_is_free_when_it_is_gone(stub: Stub) -> None:
    with a_vlm(stub, kv_slots=2) as vlm:
        for seed in range(5):
            pinned: Any = vlm.pin(a_picture(seed))
            assert pinned.ask("a?").reused == 0
            assert pinned.ask("b?").reused > 0
            del pinned
            gc.collect()
        assert len(vlm._runtime.state.kv.capacities()) <= 2


def test_an_array_is_read_when_it_is_pinned(vlm: VLM) -> None:
    expected = vlm.pin(a_picture(1)).ask("a?").text
    frame = a_picture(1)
    pinned = vlm.pin(frame)
    frame[:] = 0
    assert pinned.ask("a?").text == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": []}, "nothing to pin"),
        ({"selector": "relevance"}, "reads the question: choose one of"),
        ({"budget": "mass:0.9"}, "give a share or a count"),
        ({"budget": "ttft:300ms"}, "give a share or a count"),
    ],
)
def test_what_depends_on_the_question_is_refused(
    vlm: VLM, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestInvalid, match=message):
        vlm.pin(**{"image": a_picture(), **options})
    if "image" not in options:
        chat = vlm.chat(pin=True)
        with pytest.raises(RequestInvalid, match=message):
            chat.ask("a?", a_picture(), **options)
        assert chat.ask("a?", a_picture()).text, "it is not busy for ever"


def test_a_pinned_chat_reuses_its_pictures_at_every_turn(vlm: VLM) -> None:
    chat = vlm.chat(pin=True, budget=0.5)
    first = chat.ask("a?", [a_picture(1), a_picture(2)])
    second = chat.ask("b?")
    third = chat.ask("c?", a_picture(3))
    assert second.reused >= first.prompt_tokens
    assert third.reused >= second.prompt_tokens
    assert second.selection.keep.tolist() == first.selection.keep.tolist()
