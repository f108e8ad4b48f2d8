"""Stop strings: where an answer is cut, found while its text still comes in pieces."""

from collections.abc import Sequence
from typing import Final

from tokprune.errors import RequestInvalid

MOST_STOPS: Final = 16


class StopStrings:
    """Passes text on up to the first stop string, which is not given out.

    The first is the one that begins earliest in the whole text, however the text is cut into
    pieces. Where one stop string lies within another that has not ended yet, that one is waited
    for: of "bc" and "abcd", "abc" followed by "d" is cut before the "a". Characters are compared
    as they are: no case folding, no normal form.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Take up to 16 strings; none at all passes everything on.

        Raises:
            RequestInvalid: one is empty or not valid Unicode, or they are too many.
        """
        self._stops = tuple(dict.fromkeys(_checked(stops)))
        self._held = ""
        self._stopped = False

    def push(self, piece: str) -> tuple[str, bool]:
        """Take the next piece; return what can be given out, and whether a stop string was found.

        What may still become a stop string is held back. Nothing may be pushed after it stopped.
        """
        if self._stopped:
            raise RuntimeError("A stop string was found: the text has ended")
        self._held += piece
        for start in range(len(self._held)):
            if self._stop_at(start):
                return self._give(start, stopped=True)
            if any(len(stop) > len(self._held) - start and stop.startswith(self._held[start:])
                   for stop in self._stops):  # fmt: skip
                return self._give(start, stopped=False)
        return self._give(len(self._held), stopped=False)

    def flush(self) -> tuple[str, bool]:
        """Return what is still held, now that no more text comes, and whether it holds a stop.

        It may: a stop string that was whole, within one that is now known not to come.
        """
        for start in range(len(self._held)):
            if self._stop_at(start):
                return self._give(start, stopped=True)
        return self._give(len(self._held), stopped=False)

    def _stop_at(self, start: int) -> bool:
        return any(self._held.startswith(stop, start) for stop in self._stops)

    def _give(self, count: int, *, stopped: bool) -> tuple[str, bool]:
        given, self._held = self._held[:count], "" if stopped else self._held[count:]
        self._stopped = stopped
        return given, stopped


def _checked(stops: Sequence[str]) -> Sequence[str]:
    if isinstance(stops, str):
        raise RequestInvalid(f"stop takes a list of strings, got one string: stop=[{stops!r}]")
    if len(stops) > MOST_STOPS:
        raise RequestInvalid(f"stop takes at most {MOST_STOPS} strings, got {len(stops)}")
    for stop in stops:
        if not isinstance(stop, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise RequestInvalid(f"stop takes strings, got {stop!r}")
        if not stop:
            raise RequestInvalid(
                "A stop string is empty, which every text begins with: leave it out"
            )
        try:
            stop.encode("utf-8")
        except UnicodeEncodeError:
            raise RequestInvalid(
                f"The stop string {stop!r} holds a lone surrogate, which no answer has: give valid "
                "Unicode"
            ) from None
    return stops
