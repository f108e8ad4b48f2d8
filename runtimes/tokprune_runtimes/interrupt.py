"""Stopping a run from outside."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import RLock


class Interrupt:
    """Stops the run that it was given to, and every later one, from any thread.

    The lock is one that its own thread may take twice: a signal handler runs in the middle of
    whatever the main thread does.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._is_set = False
        self._stop: Callable[[], None] | None = None

    def set(self) -> None:
        """Stop. What runs raises EngineInterrupted as soon as its engine can."""
        with self._lock:
            self._is_set = True
            if self._stop is not None:
                self._stop()

    @property
    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._is_set

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Generator[None]:
        """Let `set` call `stop` for the length of a block; at once where it was called before."""
        with self._lock:
            self._stop = stop
            if self._is_set:
                stop()
        try:
            yield
        finally:
            with self._lock:
                self._stop = None
