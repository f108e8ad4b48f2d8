"""One thread that owns the graphs, and the door in front of it.

Requests come from any number of threads and event loops. The door lets in so many; then each
waits its turn, and the worker answers one after another. So no two requests ever share an engine,
and what a request costs is not blurred by another.
"""

import logging
import os
from collections import deque
from collections.abc import Callable
from threading import Condition, RLock, Thread, current_thread
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from tokprune.control import Control
from tokprune.errors import Busy, Closed, ForkDetected, RequestInvalid, TokpruneError, unknown
from tokprune.running.alarms import Alarms
from tokprune.running.news import News

Admission: TypeAlias = Literal["wait", "reject", "latest"]
ADMISSIONS: tuple[Admission, ...] = ("wait", "reject", "latest")
_log = logging.getLogger("tokprune")


@runtime_checkable
class Job(Protocol):
    """What the worker does for a request. Neither method raises."""

    def run(self) -> None:
        """Do it."""
        ...

    def fail(self, error: TokpruneError) -> None:
        """Say that it will not be done."""
        ...


class Ticket:
    """A place behind the door. Between `admit` and `start` its request is prepared."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.job: Job | None = None
        self.refused: TokpruneError | None = None  # before it was started
        self.over = False

    def take_job(self) -> "Job | None":
        """Return what is to be done, once."""
        job, self.job = self.job, None
        return job


Granted: TypeAlias = Callable[[], object]


def check_admission(admission: str, max_waiting: int) -> None:
    """Refuse what makes no sense.

    Raises:
        RequestInvalid: says what would.
    """
    if admission not in ADMISSIONS:
        raise RequestInvalid(unknown("admission", admission, list(ADMISSIONS)))
    if max_waiting < 0:
        raise RequestInvalid(f"max_waiting must be 0 or more, got {max_waiting}")


class Worker:
    """A thread, a bounded queue, and a clock for the deadlines of those who wait."""

    def __init__(self, admission: Admission = "wait", max_waiting: int = 16) -> None:
        """Start the threads.

        Args:
            admission: what happens to a request when `max_waiting` others wait: "wait" until
                there is room, "reject" it with Busy, or "latest": only the newest waits, and the
                one that waited before ends with Busy.
            max_waiting: requests that may wait beside the one that runs; with "latest" always 1.
        """
        check_admission(admission, max_waiting)
        self._admission: Admission = admission
        self._room = 2 if admission == "latest" else 1 + max_waiting
        self._changed = Condition(RLock())
        self._inside: list[Ticket] = []  # admitted, not over
        self._queue: deque[Ticket] = deque()  # started, not yet running
        self._outside: deque[tuple[Ticket, Granted]] = deque()
        self._running: Ticket | None = None
        self._closed = False
        self._pid = os.getpid()
        self._alarms = Alarms()
        self._thread = Thread(target=self._work, name="tokprune-worker", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether a request is being answered."""
        return self._running is not None

    @property
    def waiting(self) -> int:
        """Requests behind the door that are not being answered yet, and those before it.

        Read without the lock, so that a fork can ask too: of a moment, not to the last request.
        """
        return max(0, len(self._inside) - self.running) + len(self._outside)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def forked(self) -> bool:
        """Whether this is a fork of the process that has the threads. Its locks may be held."""
        return os.getpid() != self._pid

    def admit(self, control: Control) -> Ticket:
        """Go through the door; wait before it where that is the way.

        Raises:
            Busy: there is no room, and requests do not wait.
            Cancelled, DeadlineExceeded: meanwhile.
            Closed, ForkDetected: nothing can be asked any more.
        """
        granted = News()
        ticket = self.admit_later(control, granted.tell)
        try:
            granted.wait()
        except BaseException:  # Ctrl-C: nobody waits any longer
            self.release(ticket)
            raise
        return self.admitted(ticket)

    def admit_later(self, control: Control, granted: Granted) -> Ticket:
        """Like `admit` without waiting: `granted` is called when `admitted` will not wait."""
        ticket = Ticket(control)
        try:
            self._check()
            with self._changed:
                inside = self._enter(ticket, granted)
                self._alarms.add(control)
                control.on_stop(lambda: self._stopped(ticket))
        except BaseException:
            self.release(ticket)
            raise
        if inside or ticket.refused is not None:
            granted()
        return ticket

    def admitted(self, ticket: Ticket) -> Ticket:
        """Return the ticket, or raise why it was refused."""
        if ticket.refused is not None:
            self.release(ticket)
            raise ticket.refused
        return ticket

    def start(self, ticket: Ticket, job: Job) -> None:
        """Queue what is to be done. It is run, or told why not."""
        with self._changed:
            ticket.job = job
            self._queue.append(ticket)
            if ticket.refused is None:
                self._changed.notify_all()
                return
            # Stopped before; or between these lines by a signal handler, which may have told it.
            left = ticket.take_job()
            if ticket in self._queue:
                self._queue.remove(ticket)
            refused = ticket.refused
        if left is not None:
            left.fail(refused)
        self.release(ticket)

    def release(self, ticket: Ticket) -> None:
        """Give the place up."""
        if self.forked:
            ticket.control.done()
            return
        with self._changed:
            if ticket.over:
                return
            ticket.over = True
            if ticket in self._inside:
                self._inside.remove(ticket)
            for each in [each for each in list(self._outside) if each[0] is ticket]:
                self._outside.remove(each)
            granted = self._let_in()
            self._changed.notify_all()
        ticket.control.done()
        self._alarms.remove(ticket.control)
        for grant in granted:
            grant()

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop what runs, refuse what waits, and end the threads."""
        if self.forked:
            return  # the threads stayed with the parent, and a lock may be theirs for ever
        with self._changed:
            if self._closed:
                return
            self._closed = True
            tickets = [*self._inside, *(ticket for ticket, _ in self._outside)]
            self._changed.notify_all()
        self._alarms.close()
        for ticket in tickets:
            ticket.control.close()
        if current_thread() is not self._thread:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                _log.warning("the worker did not end within %g s: an engine holds it", timeout_s)

    def _check(self) -> None:
        if self.forked:
            raise ForkDetected(
                f"This VLM was loaded by process {self._pid}, and this is its fork {os.getpid()}: "
                "an engine's threads do not survive fork(). Load the bundle in this process, or "
                "start processes with multiprocessing's 'spawn' or 'forkserver'"
            )
        if current_thread() is self._thread:
            raise RequestInvalid(
                "This thread answers requests, and would wait for itself: a selector must not ask "
                "the VLM that runs it"
            )

    def _enter(self, ticket: Ticket, granted: Granted) -> bool:
        """Put a ticket behind the door, or before it; tell which."""
        if self._closed:
            raise Closed("This VLM is closed: load the bundle again")
        if self._admission == "latest":
            self._replace()
        if len(self._inside) < self._room:
            self._inside.append(ticket)
            return True
        if self._admission == "wait":
            self._outside.append((ticket, granted))
            return False
        waiting = len(self._inside) - self.running
        raise Busy(
            f"{waiting} requests wait already (max_waiting). Ask later, or load with "
            "admission='wait' or 'latest'"
        )

    def _replace(self) -> None:
        """Turn away whoever waits: a newer request is there.

        Where nothing runs, the oldest is about to. It stays: where requests come faster than one
        can be prepared, none would ever be answered.
        """
        first = self._running or (self._inside[0] if self._inside else None)
        for ticket in [each for each in self._inside if each is not first]:
            ticket.control.stop(Busy("A newer request took the place of this one"))

    def _let_in(self) -> list[Granted]:
        granted: list[Granted] = []
        while self._outside and len(self._inside) < self._room and not self._closed:
            ticket, grant = self._outside.popleft()
            self._inside.append(ticket)
            granted.append(grant)
        return granted

    def _stopped(self, ticket: Ticket) -> None:
        """Turn a ticket away that does not run yet. One that runs finds out by itself.

        Its place is free at once; whoever prepares the request learns of it at `start`.
        """
        if self.forked:
            return
        error = ticket.control.error()
        with self._changed:
            if error is None or ticket.over or ticket is self._running:
                return
            grants = [grant for each, grant in list(self._outside) if each is ticket]
            ticket.refused = error
            job = ticket.take_job()
            if ticket in self._queue:  # not yet, if a signal handler came between two lines there
                self._queue.remove(ticket)
        if job is not None:
            job.fail(error)
        self.release(ticket)
        for grant in grants:
            grant()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if not self._queue:
                    return
                ticket = self._queue.popleft()
                job = ticket.take_job()
                self._running = ticket
            try:
                if job is not None:
                    job.run()
            except BaseException:  # the thread must go on: others wait for it
                _log.exception("a request ended in a way that it must not")
            finally:
                with self._changed:  # at once, or a newer request would take it for one that waits
                    self._running = None
                    self.release(ticket)
                del job, ticket  # whatever they hold is not kept until the next request
