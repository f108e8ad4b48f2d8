"""The promise "many callers: 64 threads + asyncio: no deadlock, no cross-talk" (robots.md)."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from random import Random
from threading import Barrier
from time import perf_counter, sleep
from typing import Any

import pytest
from counts import CHUNKS, share
from stub_model import Held, Stub, a_picture, a_vlm
from watchdog import Aside, watchdog

from tokprune import Answer, Busy, Cancelled, CancelToken, DeadlineExceeded, load
from tokprune.scenes import suite
from tokprune.vlm import VLM

PROMISED, THREADS = 2000, 64
KINDS = ("ask", "stream", "choices", "chat", "pin")


@pytest.fixture(scope="module")
def demo(demo_bundles: Callable[..., Path]) -> Iterator[VLM]:
    with load(demo_bundles("qwen2_vl"), backend="cpu", threads=1, max_waiting=8) as vlm:
        yield vlm


def summary(answer: Answer) -> Any:
    """Everything that must not depend on who else asks, to the bit."""
    chances = None if answer.probabilities is None else tuple(answer.probabilities.values())
    keep = tuple(answer.selection.keep.tolist())
    return answer.text, answer.token_ids, answer.finish_reason, keep, chances


def options(kind: str, number: int) -> dict[str, Any]:
    budget = (0.25, 0.5, 20, 1.0)[number % 4]
    given: dict[str, Any] = {"budget": budget, "max_new_tokens": 8}
    if kind == "choices":
        given["choices"] = ["yes", "no", "red", "top left"]
    return given


def asked(vlm: VLM, kind: str, sample: Any, number: int) -> Any:
    pictures, given = list(sample.pictures), options(kind, number)
    if kind == "chat":
        chat = vlm.chat(budget=given["budget"])
        first = chat.ask(sample.question, pictures, max_new_tokens=4)
        return summary(first), summary(chat.ask("is it red?", max_new_tokens=4))
    if kind == "pin":
        pinned = vlm.pin(pictures, budget=given["budget"])
        return summary(pinned.ask(sample.question)), summary(pinned.ask("is it red?"))
    if kind == "stream":
        stream = vlm.stream(pictures, sample.question, **given)
        text = "".join(stream)
        assert text == stream.answer.text
        return summary(stream.answer)
    return summary(vlm.ask(pictures, sample.question, **given))


async def asked_async(vlm: VLM, kind: str, sample: Any, number: int) -> Any:
    pictures, given = list(sample.pictures), options(kind, number)
    if kind == "chat":
        chat = vlm.chat(budget=given["budget"])
        first = await chat.ask_async(sample.question, pictures, max_new_tokens=4)
        return summary(first), summary(await chat.ask_async("is it red?", max_new_tokens=4))
    if kind == "pin":
        pinned = vlm.pin(pictures, budget=given["budget"])
        first = await pinned.ask_async(sample.question)
        return summary(first), summary(await pinned.ask_async("is it red?"))
    if kind == "stream":
        stream = await vlm.stream_async(pictures, sample.question, **given)
        text = "".join([piece async for piece in stream])
        assert text == stream.answer.text
        return summary(stream.answer)
    return summary(await vlm.ask_async(pictures, sample.question, **given))


@pytest.mark.demo
@pytest.mark.parametrize("chunk", CHUNKS)
def test_answers_of_many_callers_at_once_equal_the_serial_ones(demo: VLM, chunk: int) -> None:
    chance = Random(f"callers {chunk}")
    samples = list(suite("dev", 8, tokens=64))
    cases = [(chance.choice(KINDS), chance.randrange(8)) for _ in range(share(PROMISED))]
    serial = {case: asked(demo, case[0], samples[case[1]], case[1]) for case in set(cases)}
    demo._runtime.state.vision_cache.clear()
    work: SimpleQueue[tuple[str, int] | None] = SimpleQueue()
    in_loop, in_threads = cases[::3], [case for at, case in enumerate(cases) if at % 3]
    for case in (*in_threads, *[None] * THREADS):
        work.put(case)
    together = Barrier(THREADS + 1)

    def caller() -> int:
        together.wait(60)
        done = 0
        while (case := work.get()) is not None:
            assert asked(demo, case[0], samples[case[1]], case[1]) == serial[case]
            done += 1
        return done

    async def loop() -> None:
        results = await asyncio.gather(
            *(asked_async(demo, kind, samples[number], number) for kind, number in in_loop)
        )
        assert results == [serial[case] for case in in_loop]

    with watchdog(300):
        threads = [Aside(caller) for _ in range(THREADS)]
        together.wait(60)
        asyncio.run(loop())
        for thread in threads:
            thread.ended(200)
        assert sum(thread.result() for thread in threads) == len(in_threads)
        until_ready(demo)
    assert demo.health().waiting == 0


def until_ready(vlm: VLM) -> None:
    """Wait until the worker is back from its last answer, which the caller may have before."""
    while vlm.health().state != "ready":
        sleep(0.001)


@pytest.mark.parametrize("admission", ["wait", "reject", "latest"])
def test_whatever_the_admission_every_request_ends(admission: Any) -> None:
    """Answered, refused or stopped: with threads that come, cancel, drop and close at random."""
    stub = Stub()
    with watchdog(120), a_vlm(stub, admission=admission, max_waiting=3) as vlm:
        expected = {seed: vlm.ask(a_picture(seed), "a?").text for seed in range(8)}
        token, codes = CancelToken(), set[str]()

        def caller(seed: int) -> int:
            chance, ends = Random(seed), 0
            for _ in range(8):
                picture, how = chance.randrange(8), chance.random()
                try:
                    if how < 0.5:
                        answer = vlm.ask(a_picture(picture), "a?")
                        assert answer.text == expected[picture]
                    elif how < 0.7:
                        vlm.ask(a_picture(picture), "a?", deadline_s=chance.random() / 100)
                    elif how < 0.8:
                        vlm.ask(a_picture(picture), "a?", cancel=token)
                    elif how < 0.9:
                        next(vlm.stream(a_picture(picture), "a?"))
                    else:
                        token.cancel()
                except (Busy, Cancelled, DeadlineExceeded) as error:
                    codes.add(error.code)
                ends += 1
            return ends

        threads = [Aside(lambda seed=seed: caller(seed)) for seed in range(32)]
        assert sum(thread.ended(100).result() for thread in threads) == 32 * 8
        assert ("busy" in codes) == (admission != "wait")
        with pytest.raises(Cancelled):
            vlm.ask(a_picture(1), "a?", cancel=token)
        assert vlm.ask(a_picture(1), "a?").text == expected[1]
        assert not token._watchers
        worker = vlm._runtime.worker
        until_ready(vlm)
        assert (len(worker._inside), len(worker._outside), worker._alarms._due) == (0, 0, [])


def test_busy_is_said_before_anything_is_read() -> None:
    stub = Stub()
    with watchdog(60), a_vlm(stub, admission="reject", max_waiting=0) as vlm:
        stub.at = held = Held("vision")
        running = vlm.stream(a_picture(), "a?")
        assert held.reached.wait(20)
        runs = stub.runs.copy()

        async def ask() -> None:
            with pytest.raises(Busy):
                await vlm.ask_async(a_picture(), "a?")

        for _ in range(100):
            with pytest.raises(Busy):
                vlm.ask(a_picture(), "a?")
            asyncio.run(ask())
        assert stub.runs == runs, "no picture was cut and no engine ran"
        held.go.set()
        assert running.result().text
        assert vlm.stats().busy_refusals == 200


@pytest.mark.soak
def test_busy_comes_within_5_ms() -> None:
    stub = Stub()
    with watchdog(60), a_vlm(stub, admission="reject", max_waiting=0) as vlm:
        stub.at = held = Held("vision")
        running = vlm.stream(a_picture(), "a?")
        assert held.reached.wait(20)
        took: list[float] = []
        for _ in range(PROMISED):
            began = perf_counter()
            with pytest.raises(Busy):
                vlm.ask(a_picture(), "a?")
            took.append(perf_counter() - began)
        held.go.set()
        assert running.result().text
    assert sorted(took)[int(0.99 * PROMISED)] < 0.005
