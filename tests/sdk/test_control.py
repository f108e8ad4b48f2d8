"""What stops a request, in every phase of it: cancel tokens, deadlines, signals and Ctrl-C."""

import asyncio
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from threading import Event, get_ident
from typing import Any

import pytest
from counts import CHUNKS, PARTS
from stub_model import Held, Stub, a_picture, a_vlm
from watchdog import Aside, watchdog

from tokprune import Answer, Cancelled, CancelToken, DeadlineExceeded, RequestInvalid
from tokprune.control import Control
from tokprune.stopwatch import Stopwatch
from tokprune.vlm import VLM

ENGINES = ("vision", "first_layer", "scorer", "prefill")
PICTURE, QUESTION = a_picture(1), "what is it?"


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


def until(true: Callable[[], object]) -> None:
    """Wait for another thread; the watchdog ends it."""
    pause = Event()
    while not true():
        pause.wait(0.001)


class Clock:
    """Monotonic seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_first_reason_to_stop_stays_the_reason() -> None:
    clock, token = Clock(), CancelToken()
    control = Control(2.0, token, clock=clock)
    assert control.due_s() == 2.0
    clock.now += 1.9
    assert control.error() is None
    clock.now += 0.2
    assert isinstance(control.error(), DeadlineExceeded)
    token.cancel()
    assert isinstance(control.error(), DeadlineExceeded)
    other = Control(2.0, token, clock=clock)
    clock.now += 10
    assert isinstance(other.error(), Cancelled)
    with pytest.raises(Cancelled):
        other.check()
    assert other.interrupt.is_set


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_senseless_deadline_is_refused(seconds: float) -> None:
    with pytest.raises(RequestInvalid, match="deadline_s must be above 0"):
        Control(seconds)


def test_what_is_to_happen_at_a_stop_happens_at_once_where_that_was_before() -> None:
    calls: list[str] = []
    control = Control()
    control.on_stop(lambda: calls.append("later"))
    control.cancel()
    control.cancel()
    control.on_stop(lambda: calls.append("at once"))
    assert calls == ["later", "at once"]


def test_one_token_stops_all_its_requests_and_forgets_those_that_ended() -> None:
    token = CancelToken()
    first, second = Control(None, token), Control(None, token)
    first.done()
    token.cancel()
    assert first.error() is None
    assert isinstance(second.error(), Cancelled)
    assert isinstance(Control(None, token).error(), Cancelled), "and those that come after"
    assert token.cancelled


def test_what_a_watcher_of_a_token_does_may_watch_and_unwatch() -> None:
    token = CancelToken()
    unwatch = token.watch(lambda: unwatch())
    calls: list[str] = []

    def again() -> None:
        token.watch(lambda: calls.append("at once"))

    token.watch(again)
    token.cancel()
    assert calls == ["at once"]


class Phases:
    """One request at a time, stopped in a phase of it by an action of the test."""

    def __init__(self, how: str) -> None:
        self.how, self.stub, self.token = how, Stub(), CancelToken()
        self.vlm = a_vlm(self.stub, max_waiting=0)
        self.expected = self.vlm.ask(PICTURE, QUESTION)
        self.vlm._runtime.state.vision_cache.clear()
        self.controls: list[Control] = []
        assert len(self.expected.token_ids) > 2

    @property
    def options(self) -> dict[str, Any]:
        """Of the request that is to be stopped: its deadline is far away, until `stop`."""
        return {"cancel": self.token} if self.how == "cancel" else {"deadline_s": 1000.0}

    def stop(self, control: Control) -> None:
        if self.how == "cancel":
            self.token.cancel()
        else:  # as the clock would, a thousand seconds later
            control._began -= 2000
            control.expire()

    @property
    def error(self) -> type[Exception]:
        return Cancelled if self.how == "cancel" else DeadlineExceeded

    def is_usable(self) -> None:
        self.stub.at = None
        answer = self.vlm.ask(PICTURE, QUESTION)
        assert (answer.text, answer.token_ids) == (self.expected.text, self.expected.token_ids)
        assert not self.token._watchers
        assert not self.vlm._runtime.worker._alarms._due
        self.vlm.close()


@pytest.fixture(params=["cancel", "deadline"])
def phases(request: pytest.FixtureRequest) -> Iterator[Phases]:
    made = Phases(request.param)
    yield made
    made.is_usable()


def the_control(vlm: VLM) -> Control:
    """Of the request that came last."""
    worker = vlm._runtime.worker
    ticket = worker._outside[-1][0] if worker._outside else worker._inside[-1]
    return ticket.control


def test_stopped_before_the_door(phases: Phases) -> None:
    held = Held("vision")
    phases.stub.at = held
    running = Aside(lambda: phases.vlm.ask(PICTURE, QUESTION))
    assert held.reached.wait(20)
    runs = phases.stub.runs.copy()
    waiting = Aside(lambda: phases.vlm.ask(PICTURE, QUESTION, **phases.options))
    until(lambda: phases.vlm.health().waiting)
    phases.stop(the_control(phases.vlm))
    assert isinstance(waiting.ended().error, phases.error)
    assert phases.stub.runs == runs, "no engine has run for it"
    held.go.set()
    assert running.result().text == phases.expected.text


def test_stopped_while_its_pictures_are_read(phases: Phases) -> None:
    held = Held("prepare")
    phases.stub.at = held
    asked = Aside(lambda: phases.vlm.ask(PICTURE, QUESTION, **phases.options))
    assert held.reached.wait(20)
    runs = phases.stub.runs.copy()
    phases.stop(the_control(phases.vlm))
    assert phases.vlm.health().waiting == 0, "its place is free at once"
    held.go.set()
    assert isinstance(asked.ended().error, phases.error)
    assert phases.stub.runs == runs


def test_stopped_in_the_queue(phases: Phases) -> None:
    with a_vlm(phases.stub, max_waiting=4) as vlm:
        held = Held("vision")
        phases.stub.at = held
        running = vlm.stream(PICTURE, QUESTION)
        assert held.reached.wait(20)
        stream = vlm.stream(a_picture(2), QUESTION, **phases.options)
        phases.stop(stream._control)
        with pytest.raises(phases.error):
            stream.result()
        held.go.set()
        assert running.result().text == phases.expected.text
        assert phases.stub.runs["prefill"] == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_stopped_within_an_engine_before_the_first_token(phases: Phases, engine: str) -> None:
    held = Held(engine)
    phases.stub.at = held
    phases.stub.runs.clear()
    stream = phases.vlm.stream(PICTURE, QUESTION, **phases.options)
    assert held.reached.wait(20)
    phases.stop(stream._control)
    for _ in range(2):
        with pytest.raises(phases.error):
            stream.result()
    later = (*ENGINES, "decode")[ENGINES.index(engine) + 1 :]
    assert not any(phases.stub.runs[name] for name in later), "nothing runs after it"


@pytest.mark.parametrize("step", [1, 2])
def test_stopped_between_tokens_the_answer_is_what_was_written(phases: Phases, step: int) -> None:
    held = Held("decode", run=step)
    phases.stub.at = held
    phases.stub.runs.clear()
    stream = phases.vlm.stream(PICTURE, QUESTION, **phases.options)
    assert held.reached.wait(20)
    phases.stop(stream._control)
    answer = stream.result()
    assert answer.finish_reason == ("cancelled" if phases.how == "cancel" else "deadline")
    assert answer.token_ids == phases.expected.token_ids[:step]
    assert answer.text == phases.expected.text[:step]
    assert phases.stub.runs["decode"] == step
    assert answer.ttft_ms > 0
    assert answer.timings_ms["decode"] > 0


def test_a_choice_that_is_stopped_is_none(phases: Phases) -> None:
    held = Held("prefill" if phases.how == "cancel" else "decode")
    phases.stub.at = held
    choices = ["ab", "ac", "b"]
    stream = phases.vlm.stream(PICTURE, QUESTION, choices=choices, **phases.options)
    assert held.reached.wait(20)
    phases.stop(stream._control)
    if phases.how == "cancel":
        with pytest.raises(Cancelled):
            stream.result()
        return
    answer = stream.result()
    assert (answer.choice, answer.probabilities, answer.text) == (None, None, "")
    assert answer.finish_reason == "deadline"


def test_stopped_after_its_end_an_answer_stays(phases: Phases) -> None:
    stream = phases.vlm.stream(PICTURE, QUESTION, **phases.options)
    answer = stream.result()
    phases.stop(stream._control)
    stream.close()
    assert stream.result() is answer
    assert answer.finish_reason == "stop"
    assert answer.text == phases.expected.text


def test_deadlines_pass_by_themselves_while_a_request_waits_or_runs() -> None:
    stub = Stub()
    with a_vlm(stub) as vlm:
        held = Held("first_layer")
        stub.at = held
        running = vlm.stream(PICTURE, QUESTION, deadline_s=0.02)
        waiting = vlm.stream(PICTURE, QUESTION, deadline_s=0.01)
        for stream in (waiting, running):
            with pytest.raises(DeadlineExceeded, match=r"within the deadline of 0\.0"):
                stream.result()
        assert isinstance(DeadlineExceeded(), TimeoutError)
        assert vlm.stats().errors == {"deadline_exceeded": 2}


@pytest.mark.parametrize("phase", ["outside", "queued", "running"])
def test_a_signal_handler_cancels_what_the_main_thread_waits_for(phase: str) -> None:
    stub, token = Stub(), CancelToken()
    with a_vlm(stub, max_waiting=0 if phase == "outside" else 4) as vlm:
        held = Held("scorer")
        stub.at = held
        first = None if phase == "running" else vlm.stream(PICTURE, QUESTION)
        assert first is None or held.reached.wait(20)

        def shoot() -> None:
            if phase == "running":
                assert held.reached.wait(20)
            else:
                until(lambda: vlm.health().waiting == 1)
            os.kill(os.getpid(), signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, lambda *_: token.cancel())
        try:
            shot = Aside(shoot)
            with pytest.raises(Cancelled):
                vlm.ask(PICTURE, QUESTION, cancel=token)
            shot.ended()
        finally:
            signal.signal(signal.SIGUSR1, before)
        held.go.set()
        assert first is None or first.result().finish_reason == "stop"


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_signal_handler_may_cancel_at_any_instruction_of_what_it_interrupts(chunk: int) -> None:
    """The handler runs between two instructions of the main thread, each in its turn.

    Tracing puts it there. Where the main thread holds a lock that the handler needs, or has
    looked for news and not yet begun to wait, one of them never comes back: the watchdog barks.
    """
    stub = Stub()
    with a_vlm(stub, max_waiting=1) as vlm:
        held = Held("scorer")
        stub.at = held
        running = vlm.stream(PICTURE, QUESTION)
        assert held.reached.wait(20)
        main, ours = get_ident(), ("worker", "stream", "control", "alarms", "stats", "runtime")
        files = tuple(f"{name}.py" for name in (*ours, "threading", "queue"))
        ended, place = 0, chunk
        while place >= 0:
            token, left = CancelToken(), [place]

            def trace(frame: Any, event: str, arg: object, left: Any = left, token: Any = token):
                if not frame.f_code.co_filename.endswith(files):
                    return None
                frame.f_trace_opcodes, frame.f_trace_lines = True, False
                if event == "opcode":
                    left[0] -= 1
                    if left[0] == -1:
                        sys.settrace(None)
                        token.cancel()  # as a signal handler would, just here
                        return None
                return trace

            def late(token: Any = token) -> None:  # it has come to wait: that ends it too
                token.cancel()

            assert get_ident() == main
            timer = threading.Timer(0.25, late)
            timer.start()
            sys.settrace(trace)
            try:
                vlm.stream(PICTURE, QUESTION, cancel=token, deadline_s=1000.0).result()
            except Cancelled:
                ended += 1
            finally:
                sys.settrace(None)
                timer.cancel()
            assert vlm.health().waiting == 0
            assert not token._watchers
            place = place + PARTS if left[0] < 0 else -1
        assert ended > 20
        held.go.set()
        assert running.result().finish_reason == "stop"


def test_ctrl_c_while_waiting_stops_the_request() -> None:
    stub = Stub()
    with a_vlm(stub) as vlm:
        held = Held("vision")
        stub.at = held

        def shoot() -> None:
            assert held.reached.wait(20)
            os.kill(os.getpid(), signal.SIGINT)

        shot = Aside(shoot)
        with pytest.raises(KeyboardInterrupt):
            vlm.ask(PICTURE, QUESTION)
        shot.ended()
        until(lambda: vlm.health().state == "ready")
        assert stub.runs["prefill"] == 0
        stub.at = None
        assert vlm.ask(PICTURE, QUESTION).finish_reason == "stop"


def test_ctrl_c_ends_a_loop_and_the_request_with_it() -> None:
    stub = Stub()
    with a_vlm(stub) as vlm:
        held = Held("vision")
        stub.at = held

        def shoot() -> None:
            assert held.reached.wait(20)
            os.kill(os.getpid(), signal.SIGINT)

        async def ask() -> Answer:
            return await vlm.ask_async(PICTURE, QUESTION)

        shot = Aside(shoot)
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(ask())
        shot.ended()
        until(lambda: vlm.health().state == "ready")
        assert stub.runs["prefill"] == 0
        assert vlm.stats().errors == {"cancelled": 1}


def test_the_wall_clock_may_jump_by_days_in_any_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    day = 86_400.0
    jumps = iter([day, -2 * day, day, 400 * day, -800 * day] * 50)
    true, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: true() + shift[0])
    monkeypatch.setattr(time, "time_ns", lambda: int((true() + shift[0]) * 1e9))
    stub = Stub()

    def jump(graph: str, interrupt: object) -> None:
        shift[0] += next(jumps)

    stub.at = jump
    with a_vlm(stub) as vlm:
        for seed in range(20):
            answer = vlm.ask(a_picture(seed), QUESTION, deadline_s=60.0)
            assert answer.finish_reason == "stop"
            assert min(answer.timings_ms.values()) >= 0
            assert 0 < answer.ttft_ms < 60_000
            assert all(span.start_ms >= 0 and span.duration_ms >= 0 for span in answer.spans)
        assert 0 <= vlm.stats().uptime_s < 60
    assert abs(shift[0]) > day / 2
    assert datetime.now(timezone.utc), "the machine's own clock was left alone"


def test_a_day_without_a_request_is_no_timeout_of_the_next() -> None:
    clock = Clock()
    early = Control(5.0, clock=clock)
    clock.now += 86_400
    late = Control(5.0, clock=clock)
    assert late.error() is None
    assert late.due_s() == 5.0
    assert isinstance(early.error(), DeadlineExceeded)


def test_a_stopwatch_counts_by_the_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: -1e9)
    watch = Stopwatch()
    with watch.stage("vision"):
        pass
    assert 0 <= watch.timings_ms["vision"] <= watch.elapsed_ms() < 60_000


@pytest.mark.parametrize("engine", ["vision", "prefill"])
def test_a_request_that_ended_in_an_error_keeps_no_pictures(engine: str) -> None:
    """Without the garbage collector's help: a robot that cancels much must not grow by that."""
    stub, token = Stub(), CancelToken()
    kept: list[weakref.ref[Any]] = []

    def stop(graph: str, interrupt: object) -> None:
        if graph == engine:
            token.cancel()

    stub.at = stop
    with a_vlm(stub, vision_cache_bytes=0) as vlm:
        prepare = vlm.model.processor.prepare

        def spy(media: Any) -> Any:
            made = prepare(media)
            kept.extend(weakref.ref(call["pixel_values"]) for each in made for call in each.calls)
            return made

        object.__setattr__(vlm.model.processor, "prepare", spy)
        gc.collect()
        gc.disable()
        try:
            stream = vlm.stream(PICTURE, QUESTION, cancel=token)
            with pytest.raises(Cancelled) as caught:
                stream.result()
            until(lambda: vlm.health().state == "ready")
            assert caught.value is not None
            assert len(kept) == 1
            assert kept[0]() is None
        finally:
            gc.enable()
