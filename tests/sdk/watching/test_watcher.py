"""A question about a camera, asked again and again: when, and about which frame."""

from threading import Thread
from typing import Any

import numpy as np
import pytest
from scripted_camera import GONE, Script, shown, until
from stub_model import Held, Stub, a_picture

from tokprune import (
    CameraLost,
    ChangeGate,
    DeadlineExceeded,
    RequestInvalid,
    Watcher,
)
from tokprune.camera.camera import Camera
from tokprune.types import Array
from tokprune.vlm import VLM
from tokprune.watching import (
    Answered,
    Asked,
    Observation,
    Piece,
    StateChanged,
    WatchEvent,
)

QUESTION = "what is it?"


def names(events: list[WatchEvent]) -> list[str]:
    """Return what happened, pieces of one answer as one."""
    found: list[str] = []
    for event in events:
        name = type(event).__name__
        if isinstance(event, StateChanged):
            name = event.status.state
        if found[-1:] != [name] or name != "Piece":
            found.append(name)
    return found


def test_each_answer_is_about_the_newest_frame_and_counts_what_was_passed_over(
    vlm: VLM, camera: Camera, script: Script
) -> None:
    with Watcher(vlm, camera, QUESTION) as watcher:
        shown(script, camera, 0)
        first = watcher.next(timeout_s=10.0)
        for seed in (1, 2, 3):
            shown(script, camera, seed)
        second = watcher.next(timeout_s=10.0)
    assert [seen.frame.number for seen in (first, second)] == [0, 3]
    assert [seen.drops for seen in (first, second)] == [0, 2]
    assert [seen.number for seen in (first, second)] == [0, 1]
    assert second.answer.text == vlm.ask(a_picture(3), QUESTION).text
    assert second.answer.frames == (second.frame,)
    assert second.age_s == second.answer.frame_age_s
    assert (second.state, second.question, second.unchanged) == ("LIVE", QUESTION, False)


def test_one_frame_is_asked_about_once(vlm: VLM, camera: Camera, script: Script) -> None:
    with Watcher(vlm, camera, QUESTION) as watcher:
        shown(script, camera, 0)
        watcher.next(timeout_s=10.0)
        with pytest.raises(DeadlineExceeded, match="nothing to ask"):
            watcher.next(timeout_s=0.05)


def test_a_camera_that_has_no_frame_in_time_gives_its_own_error(
    vlm: VLM, camera: Camera, script: Script
) -> None:
    with Watcher(vlm, camera, QUESTION) as watcher:
        with pytest.raises(CameraLost, match="has not shown anything yet"):
            watcher.next(timeout_s=0.02)
        shown(script, camera, 0)
        watcher.next(timeout_s=10.0)
        script.refusals += [GONE] * 1000
        script.give(GONE)
        until(lambda: camera.state == "LOST")
        with pytest.raises(CameraLost, match="it was pulled out"):
            watcher.next(timeout_s=0.02)


def test_iterating_goes_on_through_an_outage(vlm: VLM, camera: Camera, script: Script) -> None:
    events: list[WatchEvent] = []
    with Watcher(vlm, camera, QUESTION, listener=events.append) as watcher:
        shown(script, camera, 0)
        seen = iter(watcher)
        assert next(seen).frame.number == 0
        script.refusals += [GONE] * 30
        script.give(GONE, a_picture(1))
        assert next(seen).frame.number == 1
    happened = names(events)
    assert happened[:4] == ["LIVE", "Asked", "Piece", "Answered"]
    assert happened[-4:] == ["LIVE", "Asked", "Piece", "Answered"]


def test_a_listener_hears_everything_in_order(vlm: VLM, camera: Camera, script: Script) -> None:
    events: list[WatchEvent] = []
    with Watcher(vlm, camera, QUESTION, listener=events.append) as watcher:
        shown(script, camera, 0)
        seen = watcher.next(timeout_s=10.0)
    assert names(events)[-3:] == ["Asked", "Piece", "Answered"]
    asked = next(event for event in events if isinstance(event, Asked))
    assert asked.frame == seen.frame
    assert asked.looked.stamp == seen.frame
    assert (asked.question, asked.unchanged) == (QUESTION, False)
    text = "".join(event.text for event in events if isinstance(event, Piece))
    assert text == seen.answer.text
    assert [event.observation for event in events if isinstance(event, Answered)] == [seen]


def test_what_a_listener_raises_is_logged_and_stops_nothing(
    vlm: VLM, camera: Camera, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: WatchEvent) -> None:
        raise ValueError("of the listener")

    with Watcher(vlm, camera, QUESTION, listener=broken) as watcher:
        shown(script, camera, 0)
        assert watcher.next(timeout_s=10.0).frame.number == 0
    assert "the listener of camera eye failed" in caplog.text


def test_what_is_asked_changes_from_the_next_frame_on_never_within_an_answer(
    vlm: VLM, stub: Stub, camera: Camera, script: Script
) -> None:
    held = Held("prefill")
    stub.at = held
    found: list[Observation] = []
    with Watcher(vlm, camera, QUESTION, budget=0.5) as watcher:
        shown(script, camera, 0)
        thread = Thread(target=lambda: found.append(watcher.next(timeout_s=10.0)))
        thread.start()
        assert held.reached.wait(10)
        watcher.update(question="and this?", budget=4, selector="uniform", max_new_tokens=2)
        held.go.set()
        thread.join(10)
        shown(script, camera, 1)
        found.append(watcher.next(timeout_s=10.0))
        assert watcher.settings.question == "and this?"
    before, after = found
    assert (before.question, before.answer.kept) == (QUESTION, 12)
    assert (after.question, after.answer.kept, after.answer.selector) == ("and this?", 4, "uniform")
    assert len(after.answer.token_ids) <= 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 2.0}, "."),
        ({"selector": "relevanse"}, "Unknown selector"),
        ({"mode": "sometimes"}, "Unknown mode 'sometimes'"),
        ({"every_s": -1.0}, "every_s must be 0 seconds or more"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"question": "new", "stop": [""]}, "stop"),
        ({"choices": ["a", "a"]}, "twice|choice"),
    ],
)
def test_a_change_that_makes_no_sense_is_refused_at_once_and_changes_nothing(
    vlm: VLM, camera: Camera, changes: dict[str, Any], message: str
) -> None:
    with Watcher(vlm, camera, QUESTION) as watcher:
        before = watcher.settings
        with pytest.raises(RequestInvalid, match=message):
            watcher.update(**changes)
        assert watcher.settings is before
        with pytest.raises(TypeError, match="Did you mean 'max_new_tokens'"):
            watcher.update(max_new_token=3)  # pyright: ignore[reportCallIssue]


def test_a_token_of_the_callers_own_is_refused(vlm: VLM, camera: Camera) -> None:
    from tokprune import CancelToken

    with pytest.raises(RequestInvalid, match=r"Watcher\.cancel"):
        Watcher(vlm, camera, QUESTION, cancel=CancelToken())


def test_on_change_asks_about_what_has_changed_and_not_about_noise(
    vlm: VLM, camera: Camera, script: Script
) -> None:
    rng = np.random.default_rng(0)

    def noisy(picture: Array) -> Array:
        return np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)

    grey = np.full((32, 48, 3), 120, np.uint8)
    changed = grey.copy()
    changed[8:16, 8:16] = 200
    with Watcher(vlm, camera, QUESTION, mode="on_change") as watcher:
        shown(script, camera, noisy(grey))
        assert watcher.next(timeout_s=10.0).frame.number == 0
        for _ in range(3):
            shown(script, camera, noisy(grey))
            with pytest.raises(DeadlineExceeded):
                watcher.next(timeout_s=0.02)
        shown(script, camera, noisy(changed))
        assert watcher.next(timeout_s=10.0).frame.number == 4
        shown(script, camera, noisy(changed))
        watcher.update(question="another")
        seen = watcher.next(timeout_s=10.0)
        assert (seen.question, seen.unchanged) == ("another", True)


def test_an_unchanged_frame_is_not_encoded_again_and_keeps_its_own_stamp(
    vlm: VLM, camera: Camera, script: Script
) -> None:
    picture = np.full((32, 48, 3), 120, np.uint8)
    with Watcher(vlm, camera, QUESTION) as watcher:
        shown(script, camera, picture)
        first = watcher.next(timeout_s=10.0)
        shown(script, camera, picture + np.uint8(1))
        second = watcher.next(timeout_s=10.0)
    assert (first.unchanged, first.answer.encoder_runs) == (False, 1)
    assert (second.unchanged, second.answer.encoder_runs, second.answer.encoder_hits) == (
        True,
        0,
        1,
    )
    assert second.frame.number == 1
    assert second.answer.text == first.answer.text


def test_without_a_gate_every_frame_is_encoded(vlm: VLM, camera: Camera, script: Script) -> None:
    picture = np.full((32, 48, 3), 120, np.uint8)
    with Watcher(vlm, camera, QUESTION, gate=None) as watcher:
        for step in range(2):
            shown(script, camera, picture + np.uint8(step))
            seen = watcher.next(timeout_s=10.0)
            assert (seen.unchanged, seen.answer.encoder_runs) == (False, 1)


def test_a_gate_of_ones_own_counts(vlm: VLM, camera: Camera, script: Script) -> None:
    gate = ChangeGate(threshold=0.0)
    with Watcher(vlm, camera, QUESTION, gate=gate) as watcher:
        for step in range(3):
            shown(script, camera, np.full((32, 48, 3), 120 + step, np.uint8))
            assert not watcher.next(timeout_s=10.0).unchanged
    assert (gate.frames, gate.unchanged) == (3, 0)


def test_on_change_sees_that_a_window_without_a_gate_has_not_changed(
    vlm: VLM, camera: Camera, script: Script
) -> None:
    with Watcher(vlm, camera, QUESTION, mode="on_change", window=2, gate=None) as watcher:
        shown(script, camera, 1)
        assert watcher.next(timeout_s=10.0).frame.number == 0
        shown(script, camera, 1)
        with pytest.raises(DeadlineExceeded):
            watcher.next(timeout_s=0.05)
        shown(script, camera, 2)
        assert watcher.next(timeout_s=10.0).frame.number == 2
