"""Traces, field by field. The format is the Trace Event Format, cited in tokprune.tracing."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokprune import stopwatch
from tokprune.stopwatch import MAX_SPANS, Span, Stopwatch
from tokprune.tracing import trace_events, write_trace
from tokprune.types import Answer, Region, Selection

STAGES = (
    Span("preprocess", 0.0, 2.0),
    Span("vision", 2.5, 10.0),
    Span("select", 12.5, 3.0),
    Span("first_layer", 12.75, 1.5),  # within select
    Span("prefill", 16.0, 20.0),
    Span("decode", 36.0, 5.0),
    Span("decode", 41.0, 5.5),
)


def answer(began_s: float = 100.0, spans: tuple[Span, ...] = STAGES) -> Answer:
    return Answer(
        text="a star",
        finish_reason="stop",
        selection=Selection(np.arange(16), 64, None, 16, "count"),
        regions=(Region(0, 0, 0, 8, 8),),
        where=np.zeros((64, 7), np.int32),
        selector="uniform",
        timings_ms={"decode": 10.5},
        ttft_ms=36.0,
        token_ids=(1, 2, 3),
        encoded=64,
        began_s=began_s,
        spans=spans,
    )


def of_kind(events: list[dict[str, Any]], phase: str) -> list[dict[str, Any]]:
    return [event for event in events if event["ph"] == phase]


def test_the_file_is_the_json_object_format(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", [answer()])
    trace = json.loads((tmp_path / "trace.json").read_bytes())
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert trace["displayTimeUnit"] in ("ms", "ns")  # the two that the format knows
    assert {event["ph"] for event in trace["traceEvents"]} == {"X", "M"}
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def test_complete_events_have_every_field_that_the_format_asks_for() -> None:
    for event in of_kind(trace_events([answer()]), "X"):
        assert set(event) - {"args"} == {"name", "cat", "ph", "ts", "dur", "pid", "tid"}
        assert isinstance(event["name"], str)
        assert isinstance(event["cat"], str)
        assert all(type(event[key]) is int for key in ("ts", "dur", "pid", "tid"))
        assert event["dur"] >= 0
        assert event["pid"] == os.getpid()


def test_names_of_process_and_lanes_are_metadata_events() -> None:
    names = of_kind(trace_events([answer()]), "M")
    assert [(event["name"], event["args"]) for event in names] == [
        ("process_name", {"name": "tokprune"}),
        ("thread_name", {"name": "requests"}),
    ]
    named = {event["tid"] for event in names if event["name"] == "thread_name"}
    assert named == {event["tid"] for event in of_kind(trace_events([answer()]), "X")}


def test_times_are_microseconds_of_the_monotonic_clock() -> None:
    events = {event["name"]: event for event in of_kind(trace_events([answer(12.5)]), "X")}
    assert (events["vision"]["ts"], events["vision"]["dur"]) == (12_502_500, 10_000)
    assert (events["request"]["ts"], events["request"]["dur"]) == (12_500_000, 46_500)


def test_a_request_says_what_was_kept_and_why() -> None:
    (request,) = [event for event in trace_events([answer()]) if event["name"] == "request"]
    assert request["args"] == {
        "kept": 16,
        "total": 64,
        "encode": "full",
        "encoded": 64,
        "budget": {"reason": "count", "need": None, "cap": 16},
        "selector": "uniform",
        "tokens": 3,
        "finish_reason": "stop",
        "ttft_ms": 36.0,
    }


def assert_nested(events: list[dict[str, Any]]) -> None:
    """Two events of a lane lie one in the other, or apart: viewers draw nothing else."""
    spans = [(event["tid"], event["ts"], event["ts"] + event["dur"]) for event in events]
    for lane, start, end in spans:
        for other, began, ended in spans:
            apart = lane != other or end <= began or ended <= start
            assert apart or (start <= began and ended <= end) or (began <= start and end <= ended)


def test_stages_nest_in_their_request_whatever_the_fractions_are() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        edges = np.sort(random.uniform(0, 50, 8)).tolist()
        inner = Span("first_layer", edges[2], edges[3] - edges[2])
        outer = Span("select", edges[1], edges[4] - edges[1])
        rest = Span("prefill", edges[4], edges[5] - edges[4])
        one = answer(float(random.uniform(0, 1e6)), (outer, inner, rest))
        assert_nested(of_kind(trace_events([one]), "X"))


def test_requests_that_overlap_stand_in_lanes_of_their_own() -> None:
    answers = [answer(100.0), answer(100.02), answer(100.01), answer(100.2)]
    events = of_kind(trace_events(answers), "X")
    assert_nested(events)
    lanes = [event["tid"] for event in events if event["name"] == "request"]
    assert lanes == [1, 2, 3, 1]  # by the time at which they began


def test_no_answer_makes_a_trace_without_requests(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.json", [])
    assert of_kind(json.loads((tmp_path / "trace.json").read_bytes())["traceEvents"], "X") == []


def test_a_trace_replaces_the_old_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "trace.json"
    write_trace(target, [answer()])
    before = target.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_trace(target, [])
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stopwatch, "monotonic", made)
    return made


def test_spans_stand_in_the_order_in_which_stages_began(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 1
    with watch.stage("select"):
        clock.now += 2
        with watch.stage("first_layer"):
            clock.now += 4
        clock.now += 8
    assert watch.began_s == 50.0
    assert watch.spans == (Span("select", 1000.0, 14000.0), Span("first_layer", 3000.0, 4000.0))
    assert watch.timings_ms == {"select": 10000.0, "first_layer": 4000.0}


def test_a_stage_that_is_not_over_has_no_span(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.stage("vision"):
        assert watch.spans == ()
    assert watch.spans == (Span("vision", 0.0, 0.0),)


def test_a_stage_that_fails_has_its_span(clock: Clock) -> None:
    watch = Stopwatch()

    def fail() -> None:
        clock.now += 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        watch.timed("vision", fail)()
    assert watch.spans == (Span("vision", 0.0, 1000.0),)


def test_the_spans_of_a_long_answer_are_bounded(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.stage("prefill"):
        clock.now += 1
    for _ in range(3 * MAX_SPANS):
        with watch.stage("decode"):
            clock.now += 0.5
    with watch.stage("late"):
        clock.now += 1
    assert len(watch.spans) == MAX_SPANS + 1
    assert watch.spans[-2].end_ms == watch.spans[-1].start_ms == 1000 + 3 * MAX_SPANS * 500
    assert watch.spans[-1].name == "late"
    assert watch.timings_ms["decode"] == 3 * MAX_SPANS * 500
