"""Waking a thread from anywhere."""

from contextlib import suppress
from queue import Empty, SimpleQueue

LONGEST_SLEEP_S = 0.25


class News:
    """Wakes a thread that waits: from another one, a signal handler or a finalizer.

    The last two run in the middle of whatever the waiting thread itself does, so an Event will
    not do: its lock may be the one that they have interrupted. SimpleQueue's `put` may be called
    at any time.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()

    def tell(self) -> None:
        """Wake whoever waits, or will wait next."""
        self._queue.put(None)

    def wait(self) -> None:
        """Wait for `tell`.

        Python handles a signal that came just before a thread fell asleep when that wakes. So it
        does, now and then.
        """
        while True:
            with suppress(Empty):
                return self._queue.get(timeout=LONGEST_SLEEP_S)
