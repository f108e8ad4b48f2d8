"""How many requests are in the server at once, and how they are ended together."""

from collections.abc import Generator
from contextlib import contextmanager

from tokprune.control import CancelToken
from tokprune.errors import Busy, Closed


class Door:
    """Bounds the requests that are read, wait or are answered. For one event loop.

    A request has its place before its body is read, so the memory of all of them is bounded too.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._inside: set[CancelToken] = set()
        self._closed = False

    @property
    def inside(self) -> int:
        """Requests that have a place."""
        return len(self._inside)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @contextmanager
    def place(self) -> Generator[CancelToken]:
        """Take a place for a block; what was asked within it is cancelled at its end.

        Raises:
            Busy: all are taken.
            Closed: the server ends.
        """
        if self._closed:
            raise Closed("The server ends: ask again when it is back")
        if len(self._inside) >= self._places:
            raise Busy(
                f"The server is full: {self._places - 1} requests wait already (--max-waiting). "
                "Ask again later"
            )
        token = CancelToken()
        self._inside.add(token)
        try:
            yield token
        finally:
            self._inside.discard(token)
            token.cancel()

    def close(self) -> None:
        """Let nobody in any more, and cancel those inside."""
        self._closed = True
        for token in tuple(self._inside):
            token.cancel()
