"""What a camera reads its pictures from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from tokprune.types import Array, Image


class SourceGone(Exception):
    """A source cannot be opened, or gives no more pictures. The message holds no secret."""


@dataclass(frozen=True)
class Grabbed:
    """A picture as it came, not yet RGB."""

    image: Callable[[], Image]  # RGB, upright; from any thread, at any later time
    plane: Array  # of the raw picture: equal values mean an equal picture
    media_s: float | None = None  # when the stream or file shows it, in its own time
    captured_s: float | None = None  # monotonic time at which it came; None: as it is read


@runtime_checkable
class Reader(Protocol):
    """An open source. One thread reads and closes it."""

    interval_s: float | None  # usual time between two pictures, where the source says
    skipped: int  # damaged pictures that were not given

    def read(self) -> Grabbed | None:
        """Wait for the next picture; None: the source has come to its end.

        Raises:
            SourceGone: it gives none.
        """
        ...

    def interrupt(self) -> None:
        """End a `read` that waits, from another thread, as far as the source can; forbid others."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


Opener: TypeAlias = Callable[[], Reader]  # waits; raises SourceGone
