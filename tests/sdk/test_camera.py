"""Cameras: the newest frame, waiting, losing and finding again, on a source that tests script."""

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_camera import END, GONE, Script, camera_of, grabbed, plain
from watchdog import watchdog

import tokprune
from tokprune import CameraFrozen, CameraLost, Closed, FrameTooOld, PictureInvalid, PushedFrames
from tokprune.camera.reading.reader import Grabbed, SourceGone


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def until(true: Callable[[], object]) -> None:
    while not true():
        time.sleep(0.001)


def camera_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("tokprune-camera")]


def test_only_the_newest_frame_is_held() -> None:
    script = Script()
    with camera_of(script) as camera:
        script.give(*range(20))
        until(lambda: camera.status().frames == 20)
        frame = camera.look()
        assert frame.stamp.number == 19
        assert (frame.image == plain(19)).all()
        assert camera.look() is frame, "it became RGB once"
        assert (camera.newest, camera.state) == (frame, "LIVE")
        assert camera.status().size_wh == (12, 8)


def test_wait_gives_each_frame_once_and_only_newer_ones() -> None:
    script = Script()
    with camera_of(script) as camera:
        script.give(1)
        first = camera.wait(timeout_s=10.0)
        with pytest.raises(FrameTooOld, match="the newest frame is"):
            camera.wait(timeout_s=0.02)
        assert camera.wait(after=-1, timeout_s=0.0) is first, "unless older ones are asked for"
        script.give(2, 3)
        until(lambda: camera.status().frames == 3)
        assert camera.wait(timeout_s=10.0).stamp.number == 2


def test_a_frame_says_when_it_came_by_two_clocks() -> None:
    script = Script()
    with camera_of(script) as camera:
        before, wall = time.monotonic(), time.time()
        script.give(1)
        stamp = camera.wait(timeout_s=10.0).stamp
        assert before <= stamp.captured_s <= time.monotonic()
        assert wall - 0.001 <= stamp.wall_s <= time.time() + 0.001
        assert stamp.source == "eye"
        assert stamp.age_s(stamp.captured_s + 1.5) == 1.5
        assert stamp.age_s(stamp.captured_s - 86_400) == 0.0, "never negative"


def test_a_wall_clock_that_jumps_by_days_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()
    days = iter([0.0, 1.7e9, 1.7e9 + 86_400, 1.7e9 - 86_400, -5.0])
    monkeypatch.setattr("tokprune.camera.capture.time", lambda: next(days))
    from tokprune.camera.camera import Camera
    from tokprune.camera.capture import Capture, Plan

    plan = Plan(opener=script.open, name="eye", shown="script", live=True)
    with Camera(Capture(plan, wall=lambda: next(days))) as camera:
        for value in range(5):
            script.give(value)
            frame = camera.wait(timeout_s=10.0)
            assert 0 <= frame.stamp.age_s() < 1
            assert camera.state == "LIVE"


def test_before_the_first_frame_a_camera_connects_and_cannot_be_looked_at() -> None:
    with camera_of(Script()) as camera:
        assert camera.state == "CONNECTING"
        assert camera.newest is None
        with pytest.raises(CameraLost, match="has not shown anything yet"):
            camera.look()
        with pytest.raises(CameraLost, match=r"'eye' \(script\) has not shown"):
            camera.wait(timeout_s=0.01)


def test_an_old_frame_is_not_given_for_questions_but_can_be_shown() -> None:
    script, clock = Script(), Clock()
    with camera_of(script, clock) as camera:
        script.give(1)
        until(lambda: camera.status().frames == 1)
        clock.now += 0.9
        assert camera.look().stamp.number == 0
        clock.now += 0.2
        with pytest.raises(FrameTooOld, match=r"1\.10 s old, the limit max_frame_age_s is 1\.00 s"):
            camera.look()
        assert camera.state == "STALE"
        assert camera.newest is not None


def test_a_frozen_camera_is_refused_though_its_frames_are_new() -> None:
    script, clock = Script(), Clock()
    with camera_of(script, clock, frozen_after_s=2.0) as camera:
        for number in range(30):
            script.give(7)
            until(lambda number=number: camera.status().frames == number + 1)
            clock.now += 0.1
        assert camera.status().frames == 30
        with pytest.raises(CameraFrozen, match="repeats one picture"):
            camera.look()
        with pytest.raises(CameraFrozen):
            camera.wait(timeout_s=0.0)
        script.give(8)
        until(lambda: camera.status().frames == 31)
        assert camera.look().stamp.number == 30


def test_a_lost_camera_says_why_and_comes_back_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = Script()
    with camera_of(script, retries_s=(0.001,)) as camera:
        script.give(1)
        camera.wait(timeout_s=10.0)
        script.refusals += [SourceGone("no such device")] * 3
        script.give(GONE)
        until(lambda: script.opened == 2)
        assert camera.state == "LOST"
        with pytest.raises(CameraLost, match=r"is lost: no such device\. It is tried again"):
            camera.look()
        script.give(2)
        frame = camera.wait(timeout_s=10.0)
        assert frame.stamp.number == 1, "counting goes on"
        status = camera.status()
        assert (status.reconnects, status.error, status.state) == (1, None, "LIVE")
    assert script.closed == script.opened == 2
    lost = [record for record in caplog.records if "is lost" in record.getMessage()]
    assert len(lost) == 1, "said once, not at every attempt"


def test_network_cameras_are_tried_at_longer_and_longer_intervals_with_jitter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rests: list[float] = []
    plain_wait = threading.Event.wait

    def wait(self: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread().name.startswith("tokprune-camera") and timeout:
            rests.append(timeout)
            timeout = 0.0001
        return plain_wait(self, timeout)

    monkeypatch.setattr(threading.Event, "wait", wait)
    from tokprune.camera.capture import NETWORK_RETRIES_S

    script = Script()
    script.refusals += [SourceGone("connection refused")] * 40
    with camera_of(script, retries_s=NETWORK_RETRIES_S) as camera:
        script.give(1)
        camera.wait(timeout_s=10.0)
        found, rests[:] = list(rests), []
        script.give(GONE, 2)
        camera.wait(timeout_s=10.0)
        again = list(rests)
    assert len(found) == 40
    for rest, usual in zip(found, (0.5, 1, 2, 4, *[5] * 36), strict=True):
        assert 0.8 * usual <= rest <= 1.2 * usual
    assert len(set(found[4:])) > 30, "no two robots in step"
    assert again, "after a picture, waits begin anew"
    assert again[0] <= 0.6


def test_local_cameras_are_tried_every_half_second(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokprune.camera.capture import DEVICE_RETRIES_S

    assert DEVICE_RETRIES_S == (0.5,)


def test_a_driver_that_hangs_is_given_up_and_another_thread_tries() -> None:
    script, clock = Script(), Clock()
    camera = camera_of(script, clock, give_up_s=20.0)
    script.give(1)
    camera.wait(timeout_s=10.0)
    script.hang.set()
    until(lambda: script.hanging == 1)
    clock.now += 5
    assert camera.state == "STALE"
    clock.now += 16
    script.hang.clear()
    assert camera.state == "LOST"
    until(lambda: script.opened == 2)
    script.give(2)
    assert camera.wait(timeout_s=10.0).stamp.number == 1
    assert len(camera_threads()) == 2, "one hangs"
    script.released.set()
    until(lambda: len(camera_threads()) == 1)
    camera.close()
    until(lambda: not camera_threads())
    assert script.closed == script.opened


def test_no_more_than_two_threads_are_left_hanging() -> None:
    script, clock = Script(), Clock()
    script.hang.set()
    camera = camera_of(script, clock, give_up_s=20.0)
    for number in range(10):
        until(lambda number=number: script.hanging == min(number + 1, 3))
        clock.now += 21
        assert camera.state == "LOST"
    assert len(camera_threads()) == 3
    script.released.set()
    camera.close()
    until(lambda: not camera_threads())


def test_close_ends_the_thread_and_whoever_waits() -> None:
    script = Script()
    camera = camera_of(script)
    script.give(1)
    camera.wait(timeout_s=10.0)
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            camera.wait()
        except Closed as error:
            caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.02)
    camera.close()
    waiter.join(10)
    assert caught
    assert not camera_threads()
    assert camera.state == "CLOSED"
    for call in (camera.look, camera.wait):
        with pytest.raises(Closed, match="is closed: open it again"):
            call()
    assert list(camera) == []
    camera.close()


def test_a_camera_that_is_let_go_of_ends_its_thread() -> None:
    script = Script()
    camera = camera_of(script)
    script.give(1)
    camera.wait(timeout_s=10.0)
    del camera
    gc.collect()
    until(lambda: not camera_threads())
    assert script.closed == 1


def test_every_frame_of_a_file_is_given_in_order_to_its_end() -> None:
    script = Script()
    script.give(*range(50), END)
    with camera_of(script, live=False) as camera:
        numbers = [int(frame.image[0, 0, 0]) for frame in camera]
        assert numbers == list(range(50))
        assert camera.state == "ENDED"
        assert camera.look().stamp.number == 49, "the last one can still be asked about"
        with pytest.raises(CameraLost, match="has ended"):
            camera.wait()


def test_a_file_is_read_no_further_than_one_frame_ahead() -> None:
    script = Script()
    script.give(*range(50), END)
    with camera_of(script, live=False) as camera:
        for _ in range(3):
            camera.wait(timeout_s=10.0)
        time.sleep(0.05)
        assert script.steps.qsize() >= 50 - 5 + 1


def test_a_looped_file_begins_again_and_goes_on_counting() -> None:
    script = Script()
    script.give(1, 2, END, 1, 2, END, 1)
    with camera_of(script, live=False, loop=True) as camera:
        seen = [camera.wait(timeout_s=10.0) for _ in range(5)]
    assert [frame.stamp.number for frame in seen] == [0, 1, 2, 3, 4]
    assert [int(frame.image[0, 0, 0]) for frame in seen] == [1, 2, 1, 2, 1]


def test_a_file_played_live_keeps_its_own_time() -> None:
    script = Script()
    frames = [plain(value) for value in range(5)]
    steps = [grabbed(frame, media_s=0.04 * number) for number, frame in enumerate(frames)]
    with camera_of(script, paced=True) as camera:
        script.give(*steps, END)
        seen = list(camera)
        assert camera.state == "ENDED"
    stamps = [frame.stamp for frame in seen]
    first = stamps[0]
    for stamp in stamps:
        assert stamp.media_s is not None
        assert first.media_s is not None
        due_s = first.captured_s + stamp.media_s - first.media_s
        assert stamp.captured_s >= due_s - 0.001


def test_a_stream_that_ends_is_lost_and_tried_again() -> None:
    script = Script()
    with camera_of(script) as camera:
        script.give(1, END)
        until(lambda: script.opened == 2)
        assert camera.status().error == "the stream has ended"
        script.give(2)
        assert camera.wait(after=0, timeout_s=10.0).stamp.number == 1


def test_whatever_goes_wrong_in_reading_loses_the_camera_and_shows_no_foreign_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    script = Script()
    with camera_of(script) as camera, caplog.at_level(logging.DEBUG, "tokprune"):
        script.give(1)
        camera.wait(timeout_s=10.0)
        script.refusals += [SourceGone("no such device")] * 5
        script.give(ValueError("rtsp://me:hunter2@host/stream"))
        until(lambda: script.opened == 2)
        script.give(2)
        camera.wait(timeout_s=10.0)
    assert "hunter2" not in caplog.text
    assert "ValueError while reading" in caplog.text


def test_a_picture_that_cannot_be_decoded_is_an_error_of_its_own() -> None:
    def broken() -> Any:
        raise SourceGone("its pixel format is not known")

    script = Script()
    with camera_of(script) as camera:
        script.give(Grabbed(broken, plain(1)))
        until(lambda: camera.status().frames == 1)
        with pytest.raises(PictureInvalid, match="Frame 0 of eye: its pixel format is not known"):
            camera.look()
        script.give(2)
        assert camera.wait(after=0, timeout_s=10.0).stamp.number == 1


async def anext_of(camera: tokprune.Camera) -> tokprune.Frame:
    return await camera.__anext__()


def test_an_event_loop_goes_on_while_frames_are_awaited() -> None:
    script = Script()

    async def main() -> tuple[list[int], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        task = asyncio.create_task(tick())
        with camera_of(script) as camera:
            with pytest.raises(CameraLost):
                await camera.wait_async(timeout_s=0.02)
            numbers: list[int] = []
            for value in range(4):
                script.give(value)
                numbers.append((await camera.wait_async(timeout_s=10.0)).stamp.number)
            waiting = asyncio.create_task(camera.wait_async())
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            closing = asyncio.create_task(anext_of(camera))
            await asyncio.sleep(0.01)
            camera.close()
            with pytest.raises(StopAsyncIteration):
                await closing
        task.cancel()
        return numbers, ticks

    numbers, ticks = asyncio.run(main())
    assert numbers == [0, 1, 2, 3]
    assert ticks > 10


def test_pushed_pictures_are_a_camera_too() -> None:
    pushed = PushedFrames()
    with tokprune.open_camera(pushed, name="front") as camera:
        assert camera.state == "CONNECTING"
        mine = plain(1)
        pushed.push(mine)
        frame = camera.wait(timeout_s=10.0)
        mine[:] = 99
        assert (frame.image == plain(1)).all(), "a copy"
        assert frame.stamp.source == "front"
        pushed.push(plain(5), captured_s=frame.stamp.captured_s - 0.25)
        late = camera.wait(timeout_s=10.0).stamp
        assert late.captured_s == frame.stamp.captured_s - 0.25, "its own time, if it has one"
        assert late.wall_s == pytest.approx(frame.stamp.wall_s - 0.25, abs=0.05)
        pushed.end()
        until(lambda: camera.state == "LOST")
        with pytest.raises(CameraLost, match="nothing is pushed any more"):
            camera.look()
        pushed.push(plain(2))
        assert camera.wait(timeout_s=10.0).stamp.number == 2
        with pytest.raises(PictureInvalid, match="The array"):
            pushed.push(np.zeros((4, 4), np.float32))
    assert not camera_threads()


def test_a_pushed_camera_can_be_closed_while_nothing_comes() -> None:
    camera = tokprune.open_camera(PushedFrames())
    camera.close()
    assert not camera_threads()


def test_opening_and_closing_leaks_neither_threads_nor_descriptors() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors(), threading.active_count()
    for _ in range(30):
        with tokprune.open_camera("fake://scenes?fps=120") as camera:
            camera.wait(timeout_s=10.0)
    assert (descriptors(), threading.active_count()) == before
