"""What a watcher is told, how it ends, and what ends it; files, event loops, many at once."""

import asyncio
import gc
import logging
import time
import weakref
from threading import Event, Thread
from typing import Any

import pytest
from scripted_camera import END, Script, camera_of, grabbed, shown, until
from stub_model import Held, Stub, a_picture

from tokprune import (
    CameraLost,
    Cancelled,
    Closed,
    ContextOverflow,
    DeadlineExceeded,
    FrameTooOld,
    Watcher,
)
from tokprune.camera.camera import Camera
from tokprune.vlm import VLM
from tokprune.watching import (
    Asked,
    Failed,
    Observation,
    Piece,
    StateChanged,
    WatchEvent,
)

QUESTION = "what is it?"


def test_on_demand_asks_when_told_to(vlm: VLM, camera: Camera, script: Script) -> None:
    with Watcher(vlm, camera, QUESTION, mode="on_demand") as watcher:
        shown(script, camera, 0)
        with pytest.raises(DeadlineExceeded):
            watcher.next(timeout_s=0.05)
        watcher.ask("now?")
        watcher.ask("now?")  # still one question
        assert watcher.next(timeout_s=10.0).question == "now?"
        with pytest.raises(DeadlineExceeded):
            watcher.next(timeout_s=0.05)


def test_a_paused_watcher_asks_only_when_told_to(vlm: VLM, camera: Camera, script: Script) -> None:
    with Watcher(vlm, camera, QUESTION) as watcher:
        watcher.pause()
        shown(script, camera, 0)
        with pytest.raises(DeadlineExceeded):
            watcher.next(timeout_s=0.05)
        assert watcher.paused
        watcher.ask()
        assert watcher.next(timeout_s=10.0).frame.number == 0
        shown(script, camera, 1)
        watcher.resume()
        assert watcher.next(timeout_s=10.0).frame.number == 1


def test_questions_keep_their_distance(vlm: VLM, camera: Camera, script: Script) -> None:
    began: list[float] = []

    def hear(event: WatchEvent) -> None:
        if isinstance(event, Asked):
            began.append(event.at_s)

    with Watcher(vlm, camera, QUESTION, every_s=0.2, listener=hear) as watcher:
        for seed in range(3):
            shown(script, camera, seed)
            watcher.next(timeout_s=10.0)
    assert began[1] - began[0] >= 0.2
    assert began[2] - began[1] >= 0.2


def test_cancel_ends_the_running_answer_and_the_watch_goes_on(
    vlm: VLM, stub: Stub, camera: Camera, script: Script
) -> None:
    held = Held("prefill")
    stub.at = held
    events: list[WatchEvent] = []
    found: list[Observation] = []
    with Watcher(vlm, camera, QUESTION, listener=events.append) as watcher:
        thread = Thread(target=lambda: found.append(next(iter(watcher))))
        thread.start()
        shown(script, camera, 0)
        assert held.reached.wait(10)
        watcher.cancel()
        until(lambda: any(isinstance(event, Failed) for event in events))
        shown(script, camera, 1)
        thread.join(10)
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert isinstance(failed.error, Cancelled)
    assert failed.frame is not None
    assert failed.frame.number == 0
    assert [seen.frame.number for seen in found] == [1]


def test_an_answer_cancelled_after_its_first_token_is_an_answer(
    vlm: VLM, stub: Stub, camera: Camera, script: Script
) -> None:
    stub.end_after = 0
    stub.at = Held("decode")  # until it is interrupted
    watcher = Watcher(vlm, camera, QUESTION, listener=lambda event: hear(event), max_new_tokens=60)

    def hear(event: WatchEvent) -> None:
        if isinstance(event, Piece):
            watcher.cancel()

    with watcher:
        shown(script, camera, 0)
        seen = watcher.next(timeout_s=10.0)
    assert seen.answer.finish_reason == "cancelled"


def test_close_ends_an_iteration_that_waits_and_one_that_answers(
    vlm: VLM, stub: Stub, camera: Camera, script: Script
) -> None:
    def count(watcher: Watcher, into: list[int]) -> None:
        into.append(sum(1 for _ in watcher))

    for answering in (False, True):
        held = Held("prefill")
        stub.at = held
        watcher = Watcher(vlm, camera, QUESTION)
        ended: list[int] = []
        thread = Thread(target=count, args=(watcher, ended))
        thread.start()
        if answering:
            shown(script, camera, 7)
            assert held.reached.wait(10)
        watcher.close()
        thread.join(10)
        assert ended == [0]
        with pytest.raises(Closed):
            watcher.next()


def test_an_error_that_stands_ends_an_iteration_nobody_listens_to(
    vlm: VLM, camera: Camera, script: Script
) -> None:
    with Watcher(vlm, camera, "x" * 1000) as watcher:
        shown(script, camera, 0)
        with pytest.raises(ContextOverflow):
            next(iter(watcher))


def test_an_error_that_stands_is_told_once_and_waits_for_a_change(
    vlm: VLM, stub: Stub, camera: Camera, script: Script
) -> None:
    events: list[WatchEvent] = []
    found: list[Observation] = []
    with Watcher(vlm, camera, "x" * 1000, listener=events.append) as watcher:
        thread = Thread(target=lambda: found.append(next(iter(watcher))))
        thread.start()
        for seed in range(5):
            shown(script, camera, seed)
        time.sleep(0.2)
        assert len([event for event in events if isinstance(event, Failed)]) == 1
        watcher.update(question=QUESTION)
        shown(script, camera, 6)
        thread.join(10)
    assert len(found) == 1


def test_a_file_is_asked_about_frame_by_frame_to_its_end(vlm: VLM, script: Script) -> None:
    script.give(*(a_picture(seed) for seed in range(5)), END)
    with camera_of(script, live=False) as camera, Watcher(vlm, camera, QUESTION) as watcher:
        seen = list(watcher)
        with pytest.raises(CameraLost, match="has ended"):
            watcher.next()
    assert [each.frame.number for each in seen] == [0, 1, 2, 3, 4]
    assert [each.drops for each in seen] == [0] * 5


def test_every_s_of_a_file_is_in_its_own_time(vlm: VLM, script: Script) -> None:
    steps = [grabbed(a_picture(n), media_s=0.1 * n) for n in range(20)]
    script.give(*steps, END)
    with camera_of(script, live=False) as camera:
        watcher = Watcher(vlm, camera, QUESTION, every_s=0.5)
        times = [seen.frame.media_s for seen in watcher]
    assert times == pytest.approx([0.0, 0.5, 1.0, 1.5])


def test_a_deadline_counts_from_each_question(
    vlm: VLM, stub: Stub, camera: Camera, script: Script
) -> None:
    with Watcher(vlm, camera, QUESTION, deadline_s=0.3) as watcher:
        for seed in range(3):
            time.sleep(0.15)
            shown(script, camera, seed)
            assert watcher.next(timeout_s=10.0).answer.finish_reason in ("stop", "length")
        held = Held("prefill")
        stub.at = held
        shown(script, camera, 9)
        with pytest.raises(DeadlineExceeded, match="No first token"):
            watcher.next(timeout_s=10.0)


def test_an_event_loop_watches_too(vlm: VLM, camera: Camera, script: Script) -> None:
    async def main() -> tuple[list[int], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        found: list[int] = []
        watcher = Watcher(vlm, camera, QUESTION)
        with pytest.raises(CameraLost):
            await watcher.next_async(timeout_s=0.05)
        script.give(a_picture(0))
        async for seen in watcher:
            found.append(seen.frame.number)
            if len(found) == 3:
                break
            script.give(a_picture(len(found)))
        waiting = asyncio.create_task(watcher.next_async())
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        watcher.close()
        assert [seen async for seen in watcher] == []
        ticking.cancel()
        return found, ticks

    found, ticks = asyncio.run(main())
    assert found == [0, 1, 2]
    assert ticks > 20


def test_two_watchers_of_one_model_take_turns_and_each_frame_is_new_at_its_turn(
    vlm: VLM, script: Script, camera: Camera
) -> None:
    ages: list[float] = []
    done = Event()

    def show() -> None:
        seed = 0
        while not done.wait(0.003):
            seed += 1
            script.give(a_picture(seed))

    def watch() -> None:
        with Watcher(vlm, camera, QUESTION) as watcher:
            for _ in range(10):
                seen = watcher.next(timeout_s=10.0)
                ran = seen.answer.timings_ms
                ages.append(seen.age_s - sum(ran[s] for s in ran if s != "wait") / 1000)

    threads = [Thread(target=watch) for _ in range(3)]
    shower = Thread(target=show)
    for thread in (shower, *threads):
        thread.start()
    for thread in threads:
        thread.join(30)
    done.set()
    shower.join(10)
    assert len(ages) == 30
    assert max(ages) < 0.5


def test_old_frames_are_not_held(vlm: VLM, camera: Camera, script: Script) -> None:
    looked: list[weakref.ref[Any]] = []

    def hear(event: WatchEvent) -> None:
        if isinstance(event, Asked):
            looked.append(weakref.ref(event.looked))

    with Watcher(vlm, camera, QUESTION, listener=hear) as watcher:
        for seed in range(5):
            shown(script, camera, seed)
            watcher.next(timeout_s=10.0)
        gc.collect()
        assert sum(ref() is not None for ref in looked) <= 1, "the newest, which the camera holds"


def test_a_stale_camera_is_not_asked_about(vlm: VLM, script: Script) -> None:
    with camera_of(script, max_frame_age_s=0.05) as camera, Watcher(vlm, camera, QUESTION) as w:
        shown(script, camera, 0)
        time.sleep(0.1)
        with pytest.raises(FrameTooOld):
            w.next(timeout_s=0.02)


def test_states_are_logged_nowhere_but_told(
    vlm: VLM, camera: Camera, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[WatchEvent] = []
    with (
        caplog.at_level(logging.INFO, "tokprune"),
        Watcher(vlm, camera, QUESTION, listener=events.append) as watcher,
    ):
        with pytest.raises(CameraLost):
            watcher.next(timeout_s=0.01)
        shown(script, camera, 0)
        watcher.next(timeout_s=10.0)
    assert [e.status.state for e in events if isinstance(e, StateChanged)] == ["CONNECTING", "LIVE"]
    assert not caplog.records
