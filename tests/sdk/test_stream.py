"""Pieces of an answer on their way to threads and event loops, and the async twins."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from stub_model import Held, Stub, a_picture, a_vlm
from watchdog import Aside, watchdog

from tokprune import Answer, Busy, Cancelled, CancelToken, Closed
from tokprune.running.stream import Channel
from tokprune.vlm import VLM

PICTURE, QUESTION = a_picture(1), "what is it?"


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def vlm(stub: Stub) -> Iterator[VLM]:
    with a_vlm(stub, max_waiting=2) as made:
        yield made


def until(true: Callable[[], object]) -> None:
    """Wait for another thread; the watchdog ends it."""
    pause = Event()
    while not true():
        pause.wait(0.001)


async def until_async(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def idle(vlm: VLM) -> None:
    """Wait until nothing is left of any request."""
    until(lambda: (vlm.health().state, vlm.health().waiting) == ("ready", 0))
    assert not vlm._runtime.worker._inside


def test_pieces_come_in_order_and_make_up_the_text(vlm: VLM) -> None:
    stream = vlm.stream(PICTURE, QUESTION)
    assert iter(stream) is stream
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text == vlm.ask(PICTURE, QUESTION).text
    assert len(pieces) > 2
    assert list(stream) == []
    assert stream.result() is stream.answer


def test_an_answer_before_its_end_is_a_mistake(vlm: VLM, stub: Stub) -> None:
    stub.at = held = Held("decode")
    stream = vlm.stream(PICTURE, QUESTION)
    next(stream)
    with pytest.raises(RuntimeError, match="iterate over the stream to its end"):
        _ = stream.answer
    held.go.set()
    assert stream.result().text


def test_an_answer_that_was_not_read_waits_for_its_reader(vlm: VLM) -> None:
    streams = [vlm.stream(PICTURE, QUESTION) for _ in range(3)]
    idle(vlm)
    expected = vlm.ask(PICTURE, QUESTION).text
    assert ["".join(stream) for stream in reversed(streams)] == [expected] * 3


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_leaving_a_stream_early_stops_the_work(vlm: VLM, stub: Stub, how: str) -> None:
    stub.at = held = Held("decode")
    stream: Any = vlm.stream(PICTURE, QUESTION)
    if how == "with":
        with stream:
            next(stream)
            assert held.reached.wait(20)
    else:
        next(stream)
        assert held.reached.wait(20)
    if how == "close":
        stream.close()
        stream.close()
    if how != "drop":
        assert list(stream) == []
        with pytest.raises(RuntimeError, match="not finished"):
            stream.result()
    del stream
    gc.collect()
    idle(vlm)
    assert stub.runs["decode"] == 1
    assert vlm.ask(PICTURE, QUESTION).finish_reason == "stop"


def test_a_stream_that_was_dropped_in_the_queue_never_runs(vlm: VLM, stub: Stub) -> None:
    stub.at = held = Held("vision")
    running = vlm.stream(PICTURE, QUESTION)
    assert held.reached.wait(20)
    for _ in range(10):  # more than have room
        vlm.stream(a_picture(2), QUESTION)
        gc.collect()
    assert vlm.health().waiting == 0
    held.go.set()
    assert running.result().text
    assert stub.runs["vision"] == 1


def test_an_error_is_raised_as_often_as_it_is_asked_for(vlm: VLM, stub: Stub) -> None:
    def broken(graph: str, interrupt: object) -> None:
        if graph == "scorer":
            raise ZeroDivisionError("a fault of a graph")

    stub.at = broken
    stream = vlm.stream(PICTURE, QUESTION)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="a fault of a graph"):
            stream.result()
    assert vlm.stats().errors == {"internal": 1}
    stub.at = None
    assert vlm.ask(PICTURE, QUESTION).text


def test_several_threads_that_read_one_stream_all_see_its_end(vlm: VLM, stub: Stub) -> None:
    stub.at = held = Held("decode")
    stream = vlm.stream(PICTURE, QUESTION)
    readers = [Aside(lambda: list(stream)) for _ in range(4)]
    assert held.reached.wait(20)
    held.go.set()
    read: list[str] = []
    for reader in readers:
        read += reader.result()
    assert sorted("".join(read)) == sorted(stream.answer.text)


def test_closing_while_a_stream_is_read(vlm: VLM, stub: Stub) -> None:
    stub.at = held = Held("decode")
    stream = vlm.stream(PICTURE, QUESTION)
    reader = Aside(lambda: list(stream))
    assert held.reached.wait(20)
    vlm.close()
    assert isinstance(reader.ended().error, Closed)
    assert vlm.health().state == "closed"
    with pytest.raises(Closed):
        vlm.ask(PICTURE, QUESTION)
    vlm.close()


def test_async_answers_equal_those_of_threads(vlm: VLM) -> None:
    expected = [vlm.ask(a_picture(seed), QUESTION).text for seed in range(8)]

    async def ask() -> list[Answer]:
        return list(
            await asyncio.gather(*(vlm.ask_async(a_picture(seed), QUESTION) for seed in range(8)))
        )

    assert [answer.text for answer in asyncio.run(ask())] == expected

    async def stream() -> list[str]:
        pieces = [piece async for piece in await vlm.stream_async(PICTURE, QUESTION)]
        chat, pinned = vlm.chat(), vlm.pin(PICTURE, budget=1.0)
        answers = [await chat.ask_async("a?", PICTURE, 1.0), await pinned.ask_async("a?")]
        streams = [await chat.stream_async("b?"), await pinned.stream_async("a?")]
        texts = [(await each.result_async()).text for each in streams]
        assert answers[0].text == answers[1].text == texts[1]
        return pieces

    assert "".join(asyncio.run(stream())) == vlm.ask(PICTURE, QUESTION).text


def test_a_loop_goes_on_while_a_request_waits_is_prepared_and_runs(stub: Stub) -> None:
    with a_vlm(stub, max_waiting=0) as vlm:

        async def ask() -> int:
            ticks = 0
            for graph in ("prepare", "vision", "decode"):
                vlm._runtime.state.vision_cache.clear()
                stub.at = held = Held(graph)
                tasks = [asyncio.create_task(vlm.ask_async(PICTURE, QUESTION)) for _ in range(2)]
                await until_async(held.reached.is_set)
                ticks += 1
                held.go.set()
                assert all([(await task).finish_reason == "stop" for task in tasks])
            return ticks

        assert asyncio.run(ask()) == 3


@pytest.mark.parametrize("place", ["outside", "no thread", "prepare", "queued", "vision", "decode"])
def test_a_task_that_is_cancelled_leaves_nothing_behind(place: str) -> None:
    stub = Stub()
    with a_vlm(stub, max_waiting=0 if place == "outside" else 2) as vlm:
        expected = vlm.ask(PICTURE, QUESTION).text
        vlm._runtime.state.vision_cache.clear()
        chat = vlm.chat()

        async def cancel() -> None:
            loop = asyncio.get_running_loop()
            loop.set_default_executor(pool := ThreadPoolExecutor(1))
            waits = place in ("outside", "queued")
            stub.at = held = Held("scorer" if waits else place)
            first = Aside(lambda: vlm.ask(PICTURE, QUESTION)) if waits else None
            assert first is None or held.reached.wait(20)
            if place == "no thread":  # the program uses all of its own
                pool.submit(held.go.wait)
            task = asyncio.create_task(chat.ask_async(QUESTION, PICTURE))
            if waits or place == "no thread":
                await until_async(lambda: vlm.health().waiting == 1)
                for _ in range(20):
                    await asyncio.sleep(0.001)
            else:
                await until_async(held.reached.is_set)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if place != "prepare":
                assert chat.turns == ()
                await until_async(lambda: vlm.health().waiting == 0)
            held.go.set()
            if first is not None:
                assert first.result().text == expected

        asyncio.run(cancel())
        idle(vlm)
        stub.at = None
        assert chat.ask(QUESTION, PICTURE).text == expected
        assert vlm.ask(PICTURE, QUESTION).text == expected
        stats = vlm.stats()
        if place == "decode":  # an answer, though nobody had it
            assert (stats.answers["cancelled"], stats.errors) == (1, {})
        else:
            assert (stats.answers.get("cancelled"), stats.errors) == (None, {"cancelled": 1})


def test_waiting_for_a_bounded_time_stops_the_request(vlm: VLM, stub: Stub) -> None:
    stub.at = Held("vision")

    async def ask() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(vlm.ask_async(PICTURE, QUESTION), 0.02)

    asyncio.run(ask())
    idle(vlm)
    assert stub.runs["prefill"] == 0


def test_busy_and_cancelled_reach_a_task_and_it_may_ask_again(stub: Stub) -> None:
    with a_vlm(stub, admission="reject", max_waiting=0) as vlm:

        async def ask() -> None:
            token = CancelToken()
            stub.at = held = Held("vision")
            first = asyncio.create_task(vlm.ask_async(PICTURE, QUESTION, cancel=token))
            await until_async(held.reached.is_set)
            with pytest.raises(Busy):
                await vlm.ask_async(PICTURE, QUESTION)
            token.cancel()
            with pytest.raises(Cancelled):
                await first
            await until_async(lambda: vlm.health().state == "ready")
            stub.at = None
            assert (await vlm.ask_async(PICTURE, QUESTION)).text

        asyncio.run(ask())


def test_a_channel_wakes_a_loop_whenever_something_comes() -> None:
    """At every place between two tasks: the writer goes on whenever the reader pauses."""
    channel = Channel()
    count = 2000

    def write() -> None:
        for number in range(count):
            channel.give(f"{number} ")
        channel.fail(Cancelled("the end"))

    async def read() -> list[str]:
        pieces: list[str] = []
        try:
            while piece := await channel.take_async():
                pieces.append(piece)
        except Cancelled as error:
            pieces.append(str(error))
        return pieces

    writer = Aside(write)
    assert asyncio.run(read()) == [*(f"{number} " for number in range(count)), "the end"]
    writer.result()


def test_an_answer_is_claimed_or_given_up_and_never_both() -> None:
    for _ in range(200):
        channel = Channel()
        sides = [Aside(channel.claim), Aside(channel.abandon)]
        assert sorted(side.result() for side in sides) == [False, True]
