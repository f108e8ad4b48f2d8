"""The options of a request, as callers write them and as they travel."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from tokprune.control import CancelToken
from tokprune.errors import unknown
from tokprune.llm import Generation
from tokprune.looking import Following, way_of
from tokprune.text.sampling import Sampling
from tokprune.text.stopping import StopStrings


class AskOptions(TypedDict, total=False):
    """Keywords of `ask`, `stream` and their async twins, besides pictures, question and budget."""

    max_new_tokens: int
    """Bound of the answer's length. Default 128."""
    temperature: float
    """0 (the default) is greedy; above, tokens are drawn. No effect on `choices`."""
    top_p: float
    """Draw from the smallest set of tokens that holds this probability. Default 1."""
    seed: int
    """Equal seeds draw equal answers. Default 0."""
    stop: Sequence[str]
    """The answer ends before the first of these strings."""
    choices: Sequence[str] | None
    """Answer with the likeliest of these; `Answer.probabilities` has all of them."""
    deadline_s: float | None
    """Seconds from the call. Before the first token DeadlineExceeded, later a partial answer."""
    cancel: CancelToken | None
    """Stops the request from another thread or a signal handler."""
    repetition_guard: bool
    """End an answer that has fallen into a loop, with `finish_reason = "repetition"`.
    Default True."""
    encode: str | Following
    """What of the pictures the vision encoder is shown (tokprune.looking): "full" (the default),
    "lazy" (whole pictures and some frames, then crops and frames where the question points;
    "lazy:2": two of them at most; "lazy:0.9": all that hold 0.9 of what is expected of them),
    "coarse" (half the size, then what matters in full; "coarse:2": twice as much as is kept),
    "repeats" (nothing twice; "repeats:0.02": nor what differs by no more) or "auto"; or
    a `Following`, for a stream of pictures. The answer says what was done."""


@dataclass(frozen=True)
class Options:
    """The same, checked."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    choices: Sequence[str] | None = None
    deadline_s: float | None = None
    cancel: CancelToken | None = None
    repetition_guard: bool = True
    encode: str | Following = "full"

    @property
    def generation(self) -> Generation:
        """How long and how freely to answer.

        Raises:
            RequestInvalid: a number is out of its range.
        """
        return Generation(self.max_new_tokens, Sampling(self.temperature, self.top_p, self.seed))

    def check(self) -> None:
        """Refuse what needs no bundle to be refused.

        Raises:
            RequestInvalid: a number is out of its range, or a stop string makes no sense.
        """
        _ = self.generation
        way_of(self.encode)
        StopStrings(tuple(self.stop) if not isinstance(self.stop, str) else self.stop)


def options_of(given: AskOptions) -> Options:
    """Check the names of the keywords.

    Raises:
        TypeError: with the nearest name that exists.
    """
    names = [field.name for field in fields(Options)]
    known: dict[str, Any] = dict(given)
    for name in known:
        if name not in names:
            raise TypeError(unknown("keyword", name, names))
    return Options(**known)
