"""Cameras in the place of pictures: which frame a request is answered from."""

import time
from collections.abc import Iterator
from threading import Event, Thread

import numpy as np
import pytest
from scripted_camera import GONE, Script, camera_of, shown
from stub_model import Held, Stub, a_picture, a_vlm
from watchdog import watchdog

from tokprune import CameraLost, Clip, ContextOverflow, Frame, FrameStamp, RequestInvalid

QUESTION = "what is it?"


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


def test_a_frame_is_a_picture_and_the_answer_says_which() -> None:
    stamp = FrameStamp("eye", 7, time.monotonic() - 0.5, time.time())
    with a_vlm(Stub()) as vlm:
        plain = vlm.ask(a_picture(1), QUESTION)
        answer = vlm.ask(Frame(a_picture(1), stamp), QUESTION)
    assert answer.text == plain.text
    assert answer.frames == (stamp,)
    assert answer.frame_age_s is not None
    assert 0.5 <= answer.frame_age_s < 5
    assert (plain.frames, plain.frame_age_s) == ((), None)


def test_the_oldest_frame_gives_the_age_and_other_pictures_have_none() -> None:
    now = time.monotonic()
    old, new = (FrameStamp("eye", n, now - age, 0.0) for n, age in ((1, 3.0), (2, 1.0)))
    pictures = [Frame(a_picture(1), new), a_picture(2), Frame(a_picture(3), old)]
    with a_vlm(Stub()) as vlm:
        answer = vlm.ask(pictures, QUESTION)
    assert answer.frames == (new, old)
    assert answer.frame_age_s is not None
    assert 3.0 <= answer.frame_age_s < 5


def test_a_camera_is_looked_at_when_the_turn_has_come_not_when_the_request_was_made() -> None:
    stub, script = Stub(), Script()
    held = Held("prefill")
    stub.at = held
    with a_vlm(stub) as vlm, camera_of(script) as camera:
        shown(script, camera, 1)
        first = vlm.stream(a_picture(9), QUESTION)
        assert held.reached.wait(10)
        second = vlm.stream(camera, QUESTION)  # waits for its turn
        for seed in (2, 3, 4):
            shown(script, camera, seed)
        held.go.set()
        first.result()
        answer = second.result()
        assert [stamp.number for stamp in answer.frames] == [3]
        assert answer.text == vlm.ask(a_picture(4), QUESTION).text


def test_what_a_camera_cannot_show_is_its_own_error_and_the_vlm_goes_on() -> None:
    script = Script()
    with a_vlm(Stub()) as vlm, camera_of(script, retries_s=(0.5,)) as camera:
        with pytest.raises(CameraLost, match="has not shown anything yet"):
            vlm.ask(camera, QUESTION)
        shown(script, camera, 1)
        vlm.ask(camera, QUESTION)
        script.give(GONE)
        while camera.state != "LOST":
            Event().wait(0.001)
        with pytest.raises(CameraLost, match="it was pulled out"):
            vlm.ask(camera, QUESTION)
        assert vlm.stats().errors["camera_lost"] == 2
        vlm.ask(a_picture(1), QUESTION)


def test_late_requests_are_checked_like_others() -> None:
    script = Script()
    with a_vlm(Stub()) as vlm, camera_of(script) as camera:
        shown(script, camera, 1)
        with pytest.raises(ContextOverflow):
            vlm.ask(camera, "x" * 1000)
        with pytest.raises(RequestInvalid, match="Unknown selector"):
            vlm.ask(camera, QUESTION, selector="relevanse")
        with pytest.raises(RequestInvalid):
            vlm.ask(camera, QUESTION, budget=-1)
        assert vlm.ask(camera, QUESTION, deadline_s=30.0).timings_ms["preprocess"] > 0


def test_chats_and_pinned_pictures_know_their_frames() -> None:
    script = Script()
    with a_vlm(Stub()) as vlm, camera_of(script) as camera:
        shown(script, camera, 1)
        chat = vlm.chat()
        assert [s.number for s in chat.ask(QUESTION, camera).frames] == [0]
        shown(script, camera, 2)
        assert [s.number for s in chat.ask("and now?").frames] == [0], "not looked at again"
        assert [s.number for s in chat.ask(["here:", camera, "?"]).frames] == [0, 1]
        chat.undo()
        assert [s.number for s in chat.ask("which?").frames] == [0]
        pinned = vlm.pin(camera)
        shown(script, camera, 3)
        assert [s.number for s in pinned.ask(QUESTION).frames] == [1]


def test_a_window_of_a_camera_encodes_only_what_is_new() -> None:
    frames = np.stack([a_picture(seed) for seed in range(6)])
    stamp = FrameStamp("eye", 5, time.monotonic(), 0.0)
    with a_vlm(Stub()) as vlm:
        first = vlm.ask(Clip(frames[:4], 2.0, stamp), QUESTION)
        assert (first.encoder_runs, first.encoder_hits) == (4, 0)
        moved = vlm.ask(Clip(frames[1:5], 2.0, stamp), QUESTION)
        assert (moved.encoder_runs, moved.encoder_hits) == (1, 3)
        whole = vlm.ask(Clip(frames[1:5], 2.0), QUESTION)
        assert whole.text == moved.text
        assert moved.frames == (stamp,)


def test_many_callers_of_one_camera_each_get_the_newest_at_their_turn() -> None:
    script = Script()
    ages: list[float] = []
    done = Event()
    with a_vlm(Stub(), max_waiting=50) as vlm, camera_of(script) as camera:
        shown(script, camera, 0)

        def show() -> None:
            seed = 0
            while not done.wait(0.002):
                seed += 1
                script.give(a_picture(seed))

        def ask() -> None:
            for _ in range(5):
                answer = vlm.ask(camera, QUESTION)
                assert answer.frame_age_s is not None
                ran_ms = sum(ms for stage, ms in answer.timings_ms.items() if stage != "wait")
                ages.append(answer.frame_age_s - ran_ms / 1000)

        threads = [Thread(target=ask) for _ in range(8)]
        shower = Thread(target=show)
        for thread in (shower, *threads):
            thread.start()
        for thread in threads:
            thread.join(30)
        done.set()
        shower.join(10)
    assert len(ages) == 40
    assert max(ages) < 0.5, "not the wait for forty others"
