"""Promises about cameras: age of frames, freezing, blocked reads, a network that comes and goes.

Real clocks. What is promised of a moment is compared with the stamps of frames and states, not with
how soon this test's own threads ran. test_long_watch.py tries more of it, for longer.
"""

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

import pytest
from counts import CHUNKS, share
from stub_model import Stub, a_vlm
from watchdog import watchdog

import tokprune
from tokprune import CameraFrozen, CameraUnusable, FrameTooOld, Observation, Watcher
from tokprune.camera.camera import Camera
from tokprune.camera.capture import DEVICE_RETRIES_S, NETWORK_RETRIES_S, Capture, Plan
from tokprune.camera.reading.fake import fake_opener, fake_settings
from tokprune.camera.reading.reader import Opener
from tokprune.types import Frame, FrameStamp
from tokprune.vlm import VLM
from tokprune.watching import Asked, WatchEvent
from tokprune_runtimes import Interrupt

QUESTION = "what is it?"
FOUND_S, BACK_S, FLAGGED_S = 1.0, 2.0, 2.0  # what is promised
INFERENCE_S, AGE_S, FPS = 0.6, 60.0, 30
CYCLES, CYCLE_S, UNPLUGGED_S, PLUGGED_S = 100, 1.5, 0.5, 0.9


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(300):
        yield


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread and no descriptor."""
    before = threading.active_count(), descriptors()
    yield
    gc.collect()
    due_s = time.monotonic() + 5
    while (threading.active_count(), descriptors()) != before and time.monotonic() < due_s:
        time.sleep(0.01)
    assert (threading.active_count(), descriptors()) == before


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def slowed(seconds: float) -> Stub:
    """A model whose prefill takes so long."""
    pause = threading.Event()

    def at(graph: str, interrupt: Interrupt | None) -> None:
        if graph == "prefill":
            pause.wait(seconds)

    return Stub(at=at)


def a_camera(opener: Opener, retries_s: tuple[float, ...] = DEVICE_RETRIES_S) -> Camera:
    plan = Plan(opener, "eye", "fake", live=True, retries_s=retries_s, frozen_after_s=2.0)
    return Camera(Capture(plan))


@dataclass
class Log:
    """Everything that happened, with monotonic times."""

    camera: Camera
    came: dict[int, FrameStamp] = field(default_factory=dict[int, FrameStamp])
    states: list[tuple[str, float]] = field(default_factory=list[tuple[str, float]])
    asked: list[tuple[FrameStamp, float]] = field(default_factory=list[tuple[FrameStamp, float]])
    seen: list[Observation] = field(default_factory=list[Observation])

    def arrived(self) -> None:
        """Note a frame; on the capture thread."""
        shot = self.camera.held()
        if shot is not None:
            self.came[shot.stamp.number] = shot.stamp
        self.note_state()

    def note_state(self) -> None:
        status = self.camera.status()
        if not self.states or self.states[-1][0] != status.state:
            self.states.append((status.state, status.since_s))

    def hear(self, event: WatchEvent) -> None:
        if isinstance(event, Asked):
            self.asked.append((event.frame, event.at_s))


def watch(vlm: VLM, camera: Camera, seconds: float) -> Log:
    """Watch for so long, while another thread looks at the camera's state all the time."""
    log = Log(camera)
    over = threading.Event()
    watcher = Watcher(vlm, camera, QUESTION, listener=log.hear)

    def look() -> None:
        while not over.wait(0.002):
            log.note_state()
        watcher.close()

    end = camera.listen(log.arrived)
    looking = Thread(target=look)
    timer = threading.Timer(seconds, over.set)
    looking.start()
    timer.start()
    try:
        log.seen += watcher
    finally:
        over.set()
        timer.cancel()
        timer.join()
        looking.join()
        end()
    return log


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_frame_at_the_answer_is_no_older_than_one_inference_and_one_frame(chunk: int) -> None:
    """A queue of two frames would fail it, and so would a frame taken when the request was made."""
    del chunk
    with (
        a_vlm(slowed(INFERENCE_S)) as vlm,
        tokprune.open_camera(f"fake://scenes?fps={FPS}&size=112x112") as camera,
    ):
        camera.wait(timeout_s=10.0)
        log = watch(vlm, camera, AGE_S / 20)
    assert len(log.seen) >= AGE_S / 20 / INFERENCE_S / 2
    looked = {stamp.number: at_s for stamp, at_s in log.asked}
    for seen in log.seen:
        number = seen.frame.number
        newer = log.came.get(number + 1)
        assert newer is not None
        assert looked[number] <= newer.captured_s, "there was a newer frame when it looked"
        frame_s = max(1 / FPS, newer.captured_s - seen.frame.captured_s)
        ran_s = sum(ms for stage, ms in seen.answer.timings_ms.items() if stage != "wait") / 1000
        # From looking to the end of the answer: stages, and what is between them.
        ended_s = seen.frame.captured_s + seen.age_s
        inference_s = max(ran_s, ended_s - looked[number])
        assert seen.age_s <= inference_s + frame_s


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_network_camera_is_back_within_one_step_of_its_waits(chunk: int) -> None:
    del chunk
    pytest.importorskip("av", reason="av (PyAV) is not installed")
    from mjpeg_server import streaming
    from stream_pictures import jpeg, numbered_picture

    from tokprune.camera.naming.sources import parse_source
    from tokprune.camera.reading.opening import opener_of

    began_s = time.monotonic()

    def parts() -> Iterator[bytes]:
        """Pictures while it is plugged in; it hangs up when it is not."""
        number = 0
        while not UNPLUGGED_S <= (time.monotonic() - began_s) % CYCLE_S < PLUGGED_S:
            data = jpeg(numbered_picture(number))
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            yield head.encode() + data + b"\r\n"
            number += 1
            time.sleep(1 / 60)

    with ExitStack() as stack:
        server = stack.enter_context(streaming(parts, "multipart/x-mixed-replace; boundary=frame"))
        opener = opener_of(parse_source(server.url()))
        vlm = stack.enter_context(a_vlm(slowed(0.05)))
        camera = stack.enter_context(a_camera(opener, NETWORK_RETRIES_S))
        log = watch(vlm, camera, share(CYCLES) * CYCLE_S)
    check_outages(log, began_s, share(CYCLES))


def check_outages(log: Log, began_s: float, cycles: int) -> None:
    lost = [at_s for state, at_s in log.states if state == "LOST"]
    times = sorted(stamp.captured_s for stamp in log.came.values())
    found: list[float] = []
    for cycle in range(cycles):
        out_s, in_s = began_s + cycle * CYCLE_S + UNPLUGGED_S, began_s + cycle * CYCLE_S + PLUGGED_S
        found += [at_s - out_s for at_s in lost if out_s <= at_s < out_s + FOUND_S][:1]
        if cycle + 1 < cycles:  # the last may be cut off
            back = [at_s - in_s for at_s in times if at_s >= in_s]
            assert back
            assert back[0] <= BACK_S
    assert len(found) >= cycles - 1
    assert max(found) <= FOUND_S
    for stamp, at_s in log.asked:
        assert at_s - stamp.captured_s <= 1.0, "an old frame was asked about"
        gone = [s for s in lost if stamp.captured_s < s < at_s]
        assert not gone, "the frame was from before the camera was lost"
    assert len(log.seen) >= cycles


@dataclass(frozen=True)
class Switch:
    """A failure of `fake://`, the state it must lead to, how soon, and what looking then says."""

    query: str
    state: str
    within_s: float
    error: type[CameraUnusable]
    seconds: float


@pytest.mark.parametrize(
    "switch",
    [
        Switch("freeze=0.5:3", "FROZEN", FLAGGED_S, CameraFrozen, 4.2),
        Switch("stall=0.5:2", "STALE", FLAGGED_S, FrameTooOld, 3.2),
        Switch("drop=0.5:1", "LOST", FOUND_S, tokprune.CameraLost, 2.6),
    ],
    ids=lambda switch: switch.state,
)
def test_every_failure_is_flagged_in_time_and_nothing_is_answered_meanwhile(switch: Switch) -> None:
    errors: list[BaseException] = []
    began_s = time.monotonic()
    address = f"fake://scenes?fps=30&size=112x112&{switch.query}"
    with a_vlm(slowed(0.05)) as vlm, a_camera(fake_opener(fake_settings(address))) as camera:
        stop = threading.Event()

        def look() -> None:
            while not stop.wait(0.005):
                began = time.monotonic()
                try:
                    camera.look()
                except CameraUnusable as error:
                    errors.append(error)
                assert time.monotonic() - began < 1.0, "looking never waits"

        thread = Thread(target=look)
        thread.start()
        log = watch(vlm, camera, switch.seconds)
        stop.set()
        thread.join()
    names = [state for state, _ in log.states]
    assert names[-3:] == ["LIVE", switch.state, "LIVE"]
    at_s = dict(log.states)[switch.state]
    assert at_s - (began_s + 0.5) <= switch.within_s
    back_s = log.states[-1][1]
    assert any(isinstance(error, switch.error) for error in errors)
    assert not [s for _, s in log.asked if at_s < s < back_s], "asked while it was not live"
    assert [s for _, s in log.asked if s > back_s], "and goes on afterwards"


def test_pictures_of_another_size_are_answered_like_any_other() -> None:
    address = "fake://scenes?fps=30&size=112x112&resize=0.4:0.6:224x168"
    shapes: set[tuple[int, ...]] = set()
    with a_vlm() as vlm, tokprune.open_camera(address) as camera:

        def hear(event: WatchEvent) -> None:
            if isinstance(event, Asked) and isinstance(event.looked, Frame):
                shapes.add(event.looked.image.shape)

        with Watcher(vlm, camera, QUESTION, listener=hear) as watcher:
            due_s = time.monotonic() + 1.6
            for _ in watcher:
                if time.monotonic() > due_s:
                    break
    assert shapes == {(112, 112, 3), (168, 224, 3)}
