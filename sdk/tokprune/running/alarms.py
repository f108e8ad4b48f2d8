"""Deadlines that pass while nobody looks."""

import heapq
from itertools import count
from threading import Condition, RLock, Thread

from tokprune.control import Control

LONGEST_WAIT_S = 3600.0  # at a time: a condition takes no time of thousands of years


class Alarms:
    """One thread that sees deadlines pass, of requests that run or wait."""

    def __init__(self) -> None:
        self._changed = Condition(RLock())
        self._due: list[tuple[float, int, Control]] = []
        self._numbers = count()
        self._closed = False
        self._thread: Thread | None = None

    def add(self, control: Control) -> None:
        """Watch a deadline, if there is one."""
        due_s = control.due_s()
        if due_s is None:
            return
        with self._changed:
            if self._thread is None:  # most robots set none
                self._thread = Thread(target=self._watch, name="tokprune-deadlines", daemon=True)
                self._thread.start()
            heapq.heappush(self._due, (control.due_at(), next(self._numbers), control))
            self._changed.notify_all()

    def remove(self, control: Control) -> None:
        """Watch it no longer."""
        with self._changed:
            left = [item for item in self._due if item[2] is not control]
            if len(left) != len(self._due):
                self._due[:] = left  # the same list: a signal handler may be within `add`
                heapq.heapify(self._due)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._due.clear()
            self._changed.notify_all()

    def _watch(self) -> None:
        while True:
            with self._changed:
                while not self._closed:
                    wait_s = self._due[0][2].due_s() if self._due else None
                    if wait_s is not None and wait_s <= 0:
                        break
                    self._changed.wait(wait_s and min(wait_s, LONGEST_WAIT_S))
                if self._closed:
                    return
                control = heapq.heappop(self._due)[2]
            control.expire()
