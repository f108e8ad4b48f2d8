"""Conversations on the stub, against the same prompts asked from nothing."""

from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
from stub_model import LIMITS, Held, Stub, a_model, a_picture, a_vlm
from timed_machine import calibration
from watchdog import Aside, watchdog

from tokprune import Busy, Cancelled, CancelToken, Clip, ContextOverflow, RequestInvalid
from tokprune.chat import Chat
from tokprune.manifest import Cache
from tokprune.timing.latency import Latency
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


def recalled(vlm: VLM, chat: Chat, turns: int, pictures: list[Any], **options: Any) -> Chat:
    """A chat that has the same turns, and has computed nothing."""
    made = vlm.chat(**options)
    for turn, shown in zip(chat.turns[:turns], pictures, strict=False):
        words = turn.content[-1]
        assert isinstance(words, str)
        made.recall(words, turn.answer or "", shown)
    return made


@pytest.mark.parametrize("kind", ["in_place", "grows"])
@pytest.mark.parametrize("pin", [False, True])
def test_a_long_chat_answers_as_one_that_computes_everything_anew(
    kind: Cache, *, pin: bool
) -> None:
    stub, chance = Stub(), Random(f"{kind} {pin}")
    options: dict[str, Any] = {"pin": pin, "system": "be kind", "budget": 0.5}
    with VLM(a_model(stub, cache=kind), kv_slots=1) as vlm, a_vlm(Stub(), kv_slots=1) as other:
        chat = vlm.chat(**options)
        pictures: list[Any] = []
        reused: list[int] = []
        for number in range(7):
            shown = [a_picture(number)] if chance.random() < 0.4 or not number else []
            fresh = recalled(other, chat, number, pictures, **options)
            question = f"what is {number}?"
            stub.rows.clear()
            answer, expected = (each.ask(question, shown) for each in (chat, fresh))
            assert (answer.text, answer.token_ids) == (expected.text, expected.token_ids)
            assert answer.kept == expected.kept
            assert expected.reused == 0
            assert stub.rows[0] == answer.prompt_tokens - answer.reused
            assert answer.encoder_runs == len(shown)
            reused.append(answer.reused)
            pictures.append(shown)
            if chance.random() < 0.3:
                assert vlm.ask(a_picture(99), "between?").text, "takes the only cache"
                reused[-1] = -1
        assert len(chat.turns) == 7
        assert max(reused) > (60 if pin else 10)


def test_every_question_chooses_again(vlm: VLM) -> None:
    chat = vlm.chat(budget=0.5)
    picture = a_picture(4, 64, 64)
    kept = [
        chat.ask(question, picture if not number else ()).selection.keep.tolist()
        for number, question in enumerate(("red?", "how many?", "where is the blue one?"))
    ]
    assert all(len(each) == 32 for each in kept)
    assert len({tuple(each) for each in kept}) > 1
    assert chat.ask("all?", budget=1.0).kept == 64
    assert chat.ask("few?", budget=3, selector="uniform").kept == 3


def test_pictures_come_at_any_turn_and_between_words(vlm: VLM, stub: Stub) -> None:
    chat = vlm.chat(budget=1.0)
    first = chat.ask("hello")
    assert (first.total, first.kept, first.encoder_runs, first.selection.reason) == (0, 0, 0, "all")
    second = chat.ask(["before", a_picture(1), "between", a_picture(2)])
    assert (second.total, second.encoder_runs) == (48, 2)
    third = chat.ask("and this?", [a_picture(3, 8, 8), a_picture(1)])
    assert (third.total, third.encoder_runs, third.encoder_hits) == (73, 1, 3)
    assert chat.ask("so?").encoder_hits == 0, "the vision tokens are still there"
    assert [len(turn.content) for turn in chat.turns] == [1, 4, 3, 1]
    assert stub.runs["vision"] == 3


@pytest.mark.parametrize("budget", [0.5, 7, "mass:0.9", "ttft:60s", "auto:60s"])
@pytest.mark.parametrize("pin", [False, True])
def test_a_chat_may_begin_and_go_on_without_pictures(budget: Any, *, pin: bool) -> None:
    if pin and isinstance(budget, str):
        return
    with a_vlm(latency=Latency(calibration())) as vlm:
        chat = vlm.chat(budget=budget, pin=pin)
        for question in ("hello", "how are you?"):
            answer = chat.ask(question)
            assert (answer.total, answer.kept, answer.reused > 0) == (0, 0, len(chat.turns) > 1)
        assert chat.ask("and this?", a_picture()).kept > 0


def test_a_turn_that_failed_leaves_no_trace(vlm: VLM, stub: Stub) -> None:
    chat, twin = vlm.chat(), vlm.chat()
    for each in (chat, twin):
        each.ask("a?", a_picture(1))
    before = chat.turns
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        chat.ask("b?", a_picture(2), cancel=token)
    with pytest.raises(RequestInvalid):
        chat.ask("b?", a_picture(2), budget="half")
    with pytest.raises(RequestInvalid):
        chat.ask("b?", a_picture(2), selector="divprun")
    with pytest.raises(TypeError, match="Did you mean 'max_new_tokens'"):
        chat.ask("b?", max_new_token=3)  # type: ignore[call-arg]
    with pytest.raises(RequestInvalid, match="lone surrogate"):
        chat.ask("\udc00", a_picture(2))
    with pytest.raises(ContextOverflow):
        chat.ask("b?", a_picture(2), max_new_tokens=100_000)
    for graph in ("prepare", "vision", "scorer", "prefill"):

        def broken(name: str, interrupt: object, graph: str = graph) -> None:
            if name == graph:
                raise ZeroDivisionError(graph)

        stub.at = broken
        with pytest.raises(ZeroDivisionError, match=graph):
            chat.ask("b?", a_picture(3), 0.9)
    stub.at = None
    assert chat.turns == before
    assert chat.ask("c?").text == twin.ask("c?").text


def test_an_answer_that_nobody_took_leaves_no_trace_and_a_partial_one_does(
    vlm: VLM, stub: Stub
) -> None:
    chat, token = vlm.chat(), CancelToken()
    chat.ask("a?", a_picture(1))
    stub.at = held = Held("decode")
    with chat.stream("b?") as stream:
        next(stream)
        assert held.reached.wait(20)
    stub.at = None
    assert len(chat.turns) == 1
    assert chat.ask("c?").finish_reason == "stop", "at once, without waiting for the worker"
    stub.at = held = Held("decode")
    partial = chat.stream("d?", cancel=token)
    assert held.reached.wait(20)
    token.cancel()
    answer = partial.result()
    stub.at = None
    assert answer.finish_reason == "cancelled"
    assert [turn.answer for turn in chat.turns][2:] == [answer.text]


def test_one_question_at_a_time(vlm: VLM, stub: Stub) -> None:
    chat = vlm.chat()
    stub.at = held = Held("vision")
    asked = Aside(lambda: chat.ask("a?", a_picture(1)))
    assert held.reached.wait(20)
    for refused in (
        lambda: chat.ask("b?"),
        lambda: chat.undo(),
        lambda: chat.recall("b?", "c"),
    ):
        with pytest.raises(Busy, match="This chat is still answering"):
            refused()
    other = vlm.chat().stream("another chat waits its turn")
    held.go.set()
    assert asked.result().text
    assert other.result().text
    assert len(chat.turns) == 1


def test_undo_takes_turns_back_with_their_pictures(vlm: VLM) -> None:
    chat, twin = vlm.chat(), vlm.chat()
    for each in (chat, twin):
        each.ask("a?", a_picture(1))
    expected = twin.ask("d?").text
    chat.ask("b?", a_picture(2))
    chat.ask("c?", [a_picture(3)])
    chat.undo()
    chat.undo()
    answer = chat.ask("d?")
    assert (answer.text, answer.total) == (expected, 24)
    chat.undo()
    chat.undo()
    assert chat.turns == ()
    with pytest.raises(RequestInvalid, match="no turn to take back"):
        chat.undo()


def test_a_chat_keeps_what_it_cut_and_encoded_once(vlm: VLM) -> None:
    """Not once for every turn that could be taken back."""
    chat = vlm.chat(budget=0.5)
    for number in range(8):
        chat.ask("a?", a_picture(number, 16, 16))
    histories = [*chat._before, chat._history]
    held = {id(each.seen) for each in histories if each.seen is not None}
    cut = {id(each.prepared) for each in histories if each.prepared}
    assert (len(held), len(cut)) == (1, 1)


def test_arrays_that_their_owner_writes_over_do_not_change_what_was_shown(vlm: VLM) -> None:
    picture, frames = a_picture(1), np.stack([a_picture(2), a_picture(3)])
    chat, twin = vlm.chat(budget=1.0), vlm.chat(budget=1.0)
    twin.ask("a?", [picture.copy(), Clip(frames.copy(), 2.0)])
    chat.ask("a?", [picture, Clip(frames, 2.0)])
    picture[:] = 0
    frames[:] = 0
    shown = a_picture(4)
    answers = [each.ask("b?", shown).text for each in (chat, twin)]  # all are cut again
    assert answers[0] == answers[1]


def test_a_stream_reads_an_array_before_it_is_returned(vlm: VLM, stub: Stub) -> None:
    expected = vlm.ask(a_picture(1), "a?").text
    stub.at = held = Held("scorer")
    running = vlm.stream(a_picture(2), "b?")
    assert held.reached.wait(20)
    frame = a_picture(1)
    stream = vlm.stream(frame, "a?")
    frame[:] = 0  # the camera's next
    held.go.set()
    assert running.result().text
    assert stream.result().text == expected


def test_a_chat_that_became_too_long_is_refused_before_prefill(vlm: VLM, stub: Stub) -> None:
    chat = vlm.chat(budget=1.0)
    turns = 0

    def talk() -> None:
        nonlocal turns
        for turns in range(100):  # noqa: B007 - it counts
            stub.runs.clear()
            chat.ask("w" * 50, max_new_tokens=4)

    with pytest.raises(ContextOverflow, match="bundle") as caught:
        talk()
    assert 2 < turns < 9
    assert stub.runs["prefill"] == stub.runs["decode"] == 0
    assert str(LIMITS["max_input_len"]) in str(caught.value)
    assert len(chat.turns) == turns
    chat.undo()
    chat.undo()
    assert chat.ask("short?", max_new_tokens=4).text


@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("over", [-2, -1, 0, 1, 2])
def test_lengths_around_each_limit(over: int, *, pin: bool) -> None:
    stub = Stub(end_after=0)
    with a_vlm(stub) as vlm:

        def ask(words: int, most: int) -> Any:
            chat = vlm.chat(pin=pin, budget=1.0)
            return chat.ask("w" * words, a_picture(), max_new_tokens=most, repetition_guard=False)

        rows = ask(10, 1).prompt_tokens
        longest, whole = LIMITS["max_input_len"], LIMITS["max_kv_len"]
        for words, most in [
            (10 + longest - rows + over, 3),
            (10, whole - rows + over),
            (110, whole - rows - 100 + over),
        ]:
            stub.runs.clear()
            if over > 0:
                with pytest.raises(ContextOverflow) as caught:
                    ask(words, most)
                assert str(rows + words - 10) in str(caught.value)
                assert not stub.runs["prefill"]
            else:
                answer = ask(words, most)
                assert answer.prompt_tokens == rows + words - 10, "nothing is cut off"
                assert (len(answer.token_ids), answer.finish_reason) == (most, "length")


def test_recalled_turns_count_as_those_that_were_asked(vlm: VLM) -> None:
    chat = vlm.chat()
    first = chat.ask("a?", a_picture(1))
    expected = chat.ask("b?").text
    again = vlm.chat()
    again.recall("a?", first.text, a_picture(1))
    assert again.ask("b?").text == expected
