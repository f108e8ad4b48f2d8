"""What may stop a request: its cancel token, its deadline, or the end of the VLM."""

from collections.abc import Callable
from threading import RLock
from time import monotonic

from tokprune.errors import Cancelled, Closed, DeadlineExceeded, RequestInvalid, TokpruneError
from tokprune_runtimes import Interrupt

Clock = Callable[[], float]  # monotonic seconds: the wall clock may jump


class CancelToken:
    """Cancels the requests that it was given to, from any thread or signal handler.

    One token may serve several requests, and those that come after `cancel` too.
    """

    def __init__(self) -> None:
        self._lock = RLock()  # a signal handler may run within `watch`
        self._cancelled = False
        self._watchers: dict[int, Callable[[], None]] = {}
        self._count = 0

    def cancel(self) -> None:
        """Stop them. Does nothing the second time."""
        with self._lock:
            self._cancelled = True
            watchers = list(self._watchers.values())
        for watcher in watchers:
            watcher()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call `watcher` when cancelled; at once where that was before. Return what ends it."""
        with self._lock:
            self._count += 1
            number = self._count
            self._watchers[number] = watcher
            cancelled = self._cancelled
        if cancelled:
            watcher()

        def unwatch() -> None:
            with self._lock:
                self._watchers.pop(number, None)

        return unwatch


class Control:
    """Whether one request may go on. The first reason to stop stays the reason."""

    def __init__(
        self,
        deadline_s: float | None = None,
        cancel: CancelToken | None = None,
        *,
        clock: Clock = monotonic,
    ) -> None:
        """Start the clock.

        Raises:
            RequestInvalid: the deadline is not above 0.
        """
        if deadline_s is not None and not 0 < deadline_s < float("inf"):
            raise RequestInvalid(f"deadline_s must be above 0 seconds, got {deadline_s}")
        self.interrupt = Interrupt()
        self._clock = clock
        self._began = clock()
        self._deadline_s = deadline_s
        self._lock = RLock()
        self._error: TokpruneError | None = None
        self._on_stop: Callable[[], None] | None = None
        self._unwatch = cancel.watch(self.cancel) if cancel is not None else None

    def cancel(self) -> None:
        """Stop, as the caller wanted."""
        self.stop(Cancelled("The request was cancelled before its first token"))

    def close(self) -> None:
        """Stop, as the VLM was closed."""
        self.stop(Closed("The VLM was closed before this request was answered"))

    def stop(self, error: TokpruneError) -> None:
        """Stop for the reason that `error` gives."""
        with self._lock:
            if self._error is not None:
                return
            self._error = error
            on_stop = self._on_stop
        self.interrupt.set()
        if on_stop is not None:
            on_stop()

    def due_s(self) -> float | None:
        """Return the seconds to the deadline, not above 0 where it has passed."""
        if self._deadline_s is None:
            return None
        return self._began + self._deadline_s - self._clock()

    def due_at(self) -> float:
        """Return when that is, by the clock; infinity where there is no deadline."""
        return float("inf") if self._deadline_s is None else self._began + self._deadline_s

    def expire(self) -> bool:
        """Stop if the deadline has passed, and tell whether it has."""
        due = self.due_s()
        if due is None or due > 0:
            return False
        self.stop(DeadlineExceeded(f"No first token within the deadline of {self._deadline_s:g} s"))
        return True

    def error(self) -> TokpruneError | None:
        """Return why the request must stop, None while it may go on."""
        self.expire()
        return self._error

    def check(self) -> None:
        """Return if the request may go on.

        Raises:
            Cancelled, DeadlineExceeded, Closed: it may not.
        """
        error = self.error()
        if error is not None:
            raise error

    def on_stop(self, action: Callable[[], None] | None) -> None:
        """Call `action` once when the request is stopped; at once where it was before."""
        with self._lock:
            self._on_stop = action
            stopped = self._error is not None
        if stopped and action is not None:
            action()

    def done(self) -> None:
        """Let go of the cancel token: the request has ended."""
        self.on_stop(None)
        if self._unwatch is not None:
            self._unwatch()
