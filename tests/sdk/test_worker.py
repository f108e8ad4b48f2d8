"""The door in front of the worker, and the worker, with jobs that are events."""

import threading
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import pytest
from watchdog import Aside, watchdog

from tokprune import Busy, Cancelled, Closed, DeadlineExceeded, RequestInvalid
from tokprune.control import CancelToken, Control
from tokprune.errors import TokpruneError
from tokprune.running.worker import Ticket, Worker, check_admission


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watchdog(60):
        yield


class Job:
    """Runs until it is let go of or stopped, and remembers how it ended."""

    def __init__(self, log: list[str], name: str, control: Control) -> None:
        self.log, self.name, self.control = log, name, control
        self.begun, self.go, self.ended = Event(), Event(), Event()
        self.error: TokpruneError | None = None

    def run(self) -> None:
        self.log.append(self.name)
        self.begun.set()
        with self.control.interrupt.stopping(self.go.set):
            assert self.go.wait(20)
        self.ended.set()

    def fail(self, error: TokpruneError) -> None:
        self.error = error
        self.ended.set()


class Door:
    """A worker, and requests that come to it."""

    def __init__(self, *options: Any) -> None:
        self.worker = Worker(*options)
        self.log: list[str] = []

    def admit(self, **control: Any) -> Ticket:
        return self.worker.admit(Control(**control))

    def start(self, ticket: Ticket, name: str = "") -> Job:
        job = Job(self.log, name, ticket.control)
        self.worker.start(ticket, job)
        return job

    def ask(self, name: str, **control: Any) -> Job:
        return self.start(self.admit(**control), name)

    def running(self, name: str, **control: Any) -> Job:
        job = self.ask(name, **control)
        assert job.begun.wait(20)
        return job


@pytest.fixture
def door() -> Iterator[Callable[..., Door]]:
    made: list[Door] = []

    def make(*options: Any) -> Door:
        made.append(Door(*options))
        return made[-1]

    yield make
    for each in made:
        each.worker.close()
        assert not each.worker._thread.is_alive()


def until(true: Callable[[], object]) -> None:
    """Wait for another thread; the watchdog ends it."""
    pause = Event()
    while not true():
        pause.wait(0.001)


def test_requests_run_one_after_another_in_the_order_of_their_starts(door: Any) -> None:
    at = door("wait", 8)
    tickets = [at.admit() for _ in range(4)]
    first = at.start(tickets[2], "c")
    assert first.begun.wait(20)
    jobs = [at.start(tickets[number], "abcd"[number]) for number in (0, 3, 1)]
    assert at.worker.running
    assert at.worker.waiting == 3
    for job in (first, *jobs):
        job.go.set()
    assert all(job.ended.wait(20) for job in jobs)
    assert at.log == ["c", "a", "d", "b"]


def test_those_before_the_door_get_in_by_turns(door: Any) -> None:
    at = door("wait", 0)
    first = at.running("0")
    waiting: list[Aside] = []
    for number in range(1, 6):
        waiting.append(Aside(lambda number=number: at.ask(str(number))))
        until(lambda number=number: at.worker.waiting == number)
    assert not any(each.done for each in waiting)
    first.go.set()
    for each in waiting:
        each.result().go.set()
    assert all(each.result().ended.wait(20) for each in waiting)
    assert at.log == [str(number) for number in range(6)]
    until(lambda: (at.worker.running, at.worker.waiting) == (False, 0))


def test_rejecting_says_busy_and_how_many_wait(door: Any) -> None:
    at = door("reject", 2)
    first = at.running("a")
    second, third = at.ask("b"), at.admit()
    with pytest.raises(Busy, match="2 requests wait already") as caught:
        at.admit()
    assert caught.value.code == "busy"
    at.worker.release(third)  # its picture could not be read
    fourth = at.ask("d")
    for job in (first, second, fourth):
        job.go.set()
    assert fourth.ended.wait(20)
    assert at.log == ["a", "b", "d"]


def test_no_room_to_wait_means_one_request_at_a_time(door: Any) -> None:
    at = door("reject", 0)
    job = at.running("a")
    with pytest.raises(Busy, match="0 requests wait already"):
        at.admit()
    job.go.set()
    until(lambda: not at.worker.running)
    at.running("b").go.set()


def test_the_latest_takes_the_place_of_whoever_waits_and_what_runs_is_left_alone(door: Any) -> None:
    at = door("latest", 16)
    running = at.running("0")
    waiting = [at.ask(str(number)) for number in range(1, 20)]
    newest = waiting.pop()
    assert all(job.ended.is_set() for job in waiting)
    assert {type(job.error) for job in waiting} == {Busy}
    assert "newer request" in str(waiting[0].error)
    assert running.control.error() is None
    running.go.set()
    assert newest.begun.wait(20)
    newest.go.set()
    assert newest.ended.wait(20)
    assert at.log == ["0", "19"]


def test_a_request_that_is_being_prepared_is_replaced_too_and_told_at_its_start(door: Any) -> None:
    at = door("latest")
    running = at.running("0")
    preparing = at.admit()
    newest = at.admit()
    job = at.start(preparing, "1")
    assert isinstance(job.error, Busy)
    last = at.start(newest, "2")
    for each in (running, last):
        each.go.set()
    assert last.ended.wait(20)
    assert at.log == ["0", "2"]


def test_requests_that_come_faster_than_one_is_prepared_do_not_starve_each_other(door: Any) -> None:
    at = door("latest")
    oldest = at.admit()  # the worker is idle: it is the next to run
    others = [at.admit() for _ in range(5)]
    job = at.start(oldest, "0")
    assert job.begun.wait(20)
    replaced = [at.start(ticket, "x") for ticket in others[:-1]]
    assert all(isinstance(each.error, Busy) for each in replaced)
    newest = at.start(others[-1], "5")
    for each in (job, newest):
        each.go.set()
    assert newest.ended.wait(20)
    assert at.log == ["0", "5"]


def test_the_newest_is_never_busy_however_many_come_at_once(door: Any) -> None:
    at = door("latest")
    at.running("0")

    def come() -> None:
        for _ in range(200):
            at.start(at.worker.admit_later(Control(), lambda: None), "x")

    for thread in [Aside(come) for _ in range(4)]:
        thread.result()
    assert at.worker.waiting == 1


@pytest.mark.parametrize("place", ["outside", "prepared", "queued"])
@pytest.mark.parametrize("how", ["cancel", "deadline", "close"])
def test_whoever_waits_is_stopped_at_once_and_its_place_is_free(
    door: Any, place: str, how: str
) -> None:
    at, clock, token = door("wait", 0 if place == "outside" else 1), [0.0], CancelToken()
    running = at.running("0")
    control = Control(5.0 if how == "deadline" else None, token, clock=lambda: clock[0])
    errors = {"cancel": Cancelled, "deadline": DeadlineExceeded, "close": Closed}

    def stop() -> None:
        clock[0] = 6.0
        actions = {"cancel": token.cancel, "deadline": control.expire, "close": control.close}
        actions[how]()

    if place == "outside":
        waiting = Aside(lambda: at.worker.admit(control))
        until(lambda: at.worker.waiting == 1)
        stop()
        assert isinstance(waiting.ended().error, errors[how])
    else:
        ticket = at.worker.admit(control)
        job = at.start(ticket, "1") if place == "queued" else None
        stop()
        assert at.worker.waiting == 0
        job = job or at.start(ticket, "1")
        assert isinstance(job.error, errors[how])
    assert at.worker.waiting == 0
    assert not token._watchers, "nothing of the request is left"
    running.go.set()
    after = at.running("2")
    after.go.set()
    assert after.ended.wait(20)
    assert at.log == ["0", "2"]


def test_a_token_that_was_cancelled_before_lets_nobody_in(door: Any) -> None:
    at, token = door(), CancelToken()
    token.cancel()
    for _ in range(3):
        with pytest.raises(Cancelled):
            at.admit(cancel=token)
    assert (at.worker.waiting, token._watchers) == (0, {})


def test_a_token_keeps_nothing_of_requests_that_were_refused(door: Any) -> None:
    at, token = door("reject", 0), CancelToken()
    job = at.running("0")
    for _ in range(50):
        with pytest.raises(Busy):
            at.admit(cancel=token)
    job.go.set()
    at.worker.close()
    with pytest.raises(Closed):
        at.admit(cancel=token)
    assert not token._watchers


def test_closing_stops_what_runs_and_refuses_what_waits_and_what_comes(door: Any) -> None:
    at = door("wait", 2)
    running, queued, preparing = at.running("0"), at.ask("1"), at.admit()
    outside = Aside(at.admit)
    until(lambda: at.worker.waiting == 3)
    at.worker.close()
    assert running.ended.is_set()
    assert isinstance(running.control.error(), Closed)
    assert isinstance(queued.error, Closed)
    assert isinstance(at.start(preparing, "2").error, Closed)
    assert isinstance(outside.ended().error, Closed)
    with pytest.raises(Closed, match="load the bundle again"):
        at.admit()
    at.worker.close()
    assert at.worker.closed
    assert at.log == ["0"]
    assert not at.worker._thread.is_alive()


def test_closing_from_the_workers_own_thread_does_not_wait_for_it(door: Any) -> None:
    at = door()

    class Closing(Job):
        def run(self) -> None:
            at.worker.close()
            super().run()

    ticket = at.admit()
    job = Closing(at.log, "0", ticket.control)
    at.worker.start(ticket, job)
    assert job.ended.wait(20)
    at.worker._thread.join(20)
    assert not at.worker._thread.is_alive()


def test_a_thread_that_answers_requests_is_not_left_to_wait_for_itself(door: Any) -> None:
    at, errors = door(), []

    class Asking(Job):
        def run(self) -> None:
            try:
                at.admit()
            except RequestInvalid as error:
                errors.append(str(error))
            self.ended.set()

    ticket = at.admit()
    job = Asking(at.log, "0", ticket.control)
    at.worker.start(ticket, job)
    assert job.ended.wait(20)
    assert "would wait for itself" in errors[0]


def test_a_job_that_breaks_its_word_does_not_take_the_worker_with_it(
    door: Any, caplog: pytest.LogCaptureFixture
) -> None:
    at = door()

    class Broken(Job):
        def run(self) -> None:
            raise OSError("no such thing")

    ticket = at.admit()
    at.worker.start(ticket, Broken(at.log, "0", ticket.control))
    after = at.running("1")
    after.go.set()
    assert after.ended.wait(20)
    assert "no such thing" in caplog.text


def test_an_interrupt_before_the_door_gives_the_place_up(door: Any) -> None:
    at = door("wait", 0)
    running = at.running("0")
    with pytest.raises(KeyboardInterrupt):
        at.worker.admit(Interrupting())
    assert at.worker.waiting == 0
    running.go.set()
    at.running("1").go.set()


class Interrupting(Control):
    """Ctrl-C comes when it has just been put before the door."""

    def on_stop(self, action: Callable[[], None] | None) -> None:
        super().on_stop(action)
        if action is not None:
            raise KeyboardInterrupt


@pytest.mark.parametrize("seconds", [1e9, 1e12, 1e300])
def test_a_deadline_of_thousands_of_years_does_not_end_those_of_others(
    door: Any, seconds: float
) -> None:
    at = door("wait", 4)
    at.running("0")
    at.ask("1", deadline_s=seconds)
    assert at.worker._alarms._thread is not None
    job = at.ask("2", deadline_s=0.005)
    assert job.ended.wait(20)
    assert isinstance(job.error, DeadlineExceeded)


def test_a_worker_without_deadlines_has_one_thread_and_none_after_closing() -> None:
    before = set(threading.enumerate())
    worker = Worker()
    assert len(set(threading.enumerate()) - before) == 1
    worker.close()
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [(("newest", 1), "Unknown admission 'newest'"), (("wait", -1), "max_waiting must be 0")],
)
def test_senseless_admissions_are_refused(options: Any, message: str) -> None:
    with pytest.raises(RequestInvalid, match=message):
        check_admission(*options)
