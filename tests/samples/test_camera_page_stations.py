"""Stations of the camera page: what is told of a camera, its questions and its answers."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from camera_listeners import Ears
from camera_page.event_log import EventLog
from camera_page.events import Answered, Asked, Writing
from camera_page.messages import Set
from camera_page.station import Beginning, Station
from stub_model import Held, Stub, a_picture, a_vlm
from watchdog import watchdog

import tokprune

BEGINNING: dict[str, Any] = {
    "question": "what is it?",
    "mode": "on_demand",
    "budget": "1.0",
    "max_new_tokens": 3,
}


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


@contextmanager
def a_station(stub: Stub, log: Any = None, **changes: Any) -> Iterator[tuple[Any, Ears, Any]]:
    """A station on pushed pictures and the stub model; its threads must end with it."""
    before = threading.active_count()
    ears, pushed = Ears(), tokprune.PushedFrames()
    with a_vlm(stub) as vlm:
        camera = tokprune.open_camera(pushed, name="eye", max_frame_age_s=30.0, frozen_after_s=None)
        beginning = Beginning(**{**BEGINNING, **changes})
        station = Station(4, "eye", camera, vlm, beginning, ears, log)
        try:
            pushed.push(a_picture(1))
            while camera.state != "LIVE":
                time.sleep(0.01)
            yield station, ears, pushed
        finally:
            began_s = time.monotonic()
            station.close()
            assert time.monotonic() - began_s < 2
    while threading.active_count() > before:
        time.sleep(0.01)


def test_a_station_tells_what_was_asked_written_and_answered(tmp_path: Path) -> None:
    log = EventLog(tmp_path, keep_frames_mb=1)
    with a_station(Stub(), log) as (station, ears, _):
        station.ask("what now?")
        answered = ears.wait_for(Answered)
        asked, writing = ears.wait_for(Asked), ears.wait_for(Writing)
        assert station.asked.id == answered.id == asked.id == writing.id
        assert asked.question == answered.question == "what now?"
        assert answered.text.startswith(writing.text)
        assert asked.number == answered.number == station.asked.stamp.number
        assert answered.source == 4
        assert answered.kept == answered.total > 0
        assert 0 <= answered.age_s <= answered.age_now_s < 20
        assert answered.encoder_runs_total + answered.encoder_hits_total > 0
        assert sum(value for _, value in answered.stages) == pytest.approx(
            answered.ttft_ms, abs=0.2
        )
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    told = {"camera": "eye", "state": "LIVE", "code": None}
    assert any(told.items() <= event.items() for event in events)
    (event,) = (event for event in events if "text" in event)
    assert event["camera"] == "eye"
    assert event["question"] == "what now?"
    assert event["text"] == answered.text
    assert event["budget"] == "1.0"
    assert event["frame"] == answered.number
    assert {"age_s", "ttft_ms", "stages", "kept", "total", "time"} <= event.keys()
    assert (tmp_path / event["picture"]).read_bytes() == station.asked.jpeg


def test_a_window_is_shown_as_a_sheet_of_its_frames() -> None:
    with a_station(Stub(), window=4) as (station, ears, pushed):
        for seed in range(2, 6):
            pushed.push(a_picture(seed))
            while station.camera.status().frames < seed:
                time.sleep(0.01)
        station.ask("what moves?")
        answered = ears.wait_for(Answered)
        assert answered.frames == 4
        assert len(answered.layers) > 1
        sheet = station.asked.sheet
        height, width = station.asked.image.shape[:2]
        assert width == sheet.columns * (sheet.width + sheet.gap) - sheet.gap
        rows = -(-len(answered.layers) // sheet.columns)
        assert height == rows * (sheet.height + sheet.gap) - sheet.gap
        assert station.asked.id == answered.id


def test_pictures_are_encoded_as_the_page_says_and_the_answer_tells_how_many(
    tmp_path: Path,
) -> None:
    asked: dict[str, Any] = {"window": 8, "budget": "0.2", "selector": "attention"}
    with a_station(Stub(), EventLog(tmp_path), **asked) as (station, ears, pushed):
        assert station.settings.encode == "full"
        station.change(Set(4, encode="lazy:1"))
        assert station.settings.encode == "lazy:1"
        for seed in range(2, 9):
            pushed.push(a_picture(seed))
            while station.camera.status().frames < seed:
                time.sleep(0.01)
        station.ask("what moves?")
        answered = ears.wait_for(Answered)
        assert (answered.encode, answered.encoded, answered.total) == ("lazy", 3 * 24, 8 * 24)
        assert answered.encode_reason.startswith("1 of 6 ")
    written = (tmp_path / "events.jsonl").read_text().splitlines()
    (event,) = (event for event in map(json.loads, written) if "text" in event)
    assert (event["encode"], event["encoded"]) == ("lazy", 72)


def test_a_value_that_makes_no_sense_changes_nothing() -> None:
    with a_station(Stub()) as (station, _, _):
        before = station.settings
        for wrong in (
            Set(4, budget="half"),
            Set(4, budget="1.5"),
            Set(4, selector="divprun"),
            Set(4, encode="lasy"),
        ):
            with pytest.raises(tokprune.RequestInvalid):
                station.change(wrong)
            assert station.settings == before
        station.change(Set(4, budget="0.25", choices=["yes", "no"]))
        assert (station.settings.budget, station.settings.choices) == ("0.25", ["yes", "no"])
        assert station.settings.question == before.question


def test_closing_a_station_ends_the_answer_that_is_being_written() -> None:
    stub = Stub()
    held = Held("prefill")
    stub.at = held
    with a_station(stub) as (station, _, _):
        station.ask("what is it?")
        assert held.reached.wait(20)
