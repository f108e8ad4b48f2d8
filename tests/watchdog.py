"""A test that waits for ever fails instead, and says where every thread stood."""

import faulthandler
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


@contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Fail the block, which the main thread runs, when it takes longer."""

    def bark(number: int, frame: object) -> None:
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        raise AssertionError(f"nothing came of it in {seconds} s")

    before = signal.signal(signal.SIGALRM, bark)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Aside(Generic[T]):
    """Something that another thread does meanwhile."""

    def __init__(self, action: Callable[[], T]) -> None:
        self._result: list[T] = []
        self.error: BaseException | None = None
        self._action = action
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result.append(self._action())
        except BaseException as error:
            self.error = error

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def ended(self, seconds: float = 20) -> "Aside[T]":
        self._thread.join(seconds)
        assert self.done, "it still waits"
        return self

    def result(self) -> T:
        self.ended()
        if self.error is not None:
            raise self.error
        return self._result[0]
