"""Ways to look by name, and which of them a family has."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

from tokprune.budgets import Auto, Deadline
from tokprune.errors import RequestInvalid, unknown
from tokprune.looking.coarse import TIMES, Coarse, Small
from tokprune.looking.following import Follow, Following
from tokprune.looking.lazy import ENOUGH, NO_SCORES, Lazy, left_for_later
from tokprune.looking.look import FULL, Asked, Looking
from tokprune.looking.parts import units_of
from tokprune.looking.repeats import Repeats
from tokprune.looking.showing import Cut
from tokprune.types import WHOLE, Media, Prepared

Encode: TypeAlias = Literal["full", "lazy", "coarse", "repeats", "auto"]
ENCODES: tuple[Encode, ...] = get_args(Encode)
_EXPECTED = (
    f"expected one of {', '.join(ENCODES)}, or 'lazy:2' (crops and frames of the second look), or "
    "'lazy:0.9' (as many as hold that share of what is expected), or "
    "'coarse:2' (tokens encoded in full for each that is kept), or 'repeats:0.02' (by how much "
    "pixels may differ), or of a stream tokprune.Following(within=8)"
)
_LARGEST_TAU = 2.0  # the encoder's pixels lie within about two of zero


@dataclass(frozen=True)
class Ways:
    """What a family's vision encoder can be shown, beside whole tiles and frames."""

    cut: Cut | None = None  # some tokens' pixels alone
    halved: Callable[[Media], tuple[Prepared, ...]] | None = None  # at half the size
    crops: bool = False  # a picture is several tiles, each encoded by itself

    @property
    def names(self) -> tuple[Encode, ...]:
        """The ways to look that exist."""
        both = self.cut is not None and self.halved is not None
        return tuple(name for name in ENCODES if name != "coarse" or both)

    @property
    def follows(self) -> bool:
        """Whether a picture has parts, of which some can be left out: else nothing is followed."""
        return self.cut is not None or self.crops


NO_WAYS = Ways()


class Way(NamedTuple):
    """A way to look as it was asked for: "lazy", "lazy:2", "coarse:2", or a `Following`."""

    name: Encode | Literal["follow"]
    most: int | None = None  # of lazy: crops and frames of the second look
    share: float = ENOUGH  # of lazy: of what is expected, that those hold
    tau: float = 0.0  # of repeats
    times: float = TIMES  # of coarse: tokens encoded in full for each that is kept
    follow: Following | None = None


def way_of(given: object) -> Way:
    """Read what a user gave.

    Raises:
        RequestInvalid: it is no text, no way has that name, or its number makes no sense.
    """
    if isinstance(given, Following):
        return Way("follow", follow=given)
    if not isinstance(given, str):
        raise RequestInvalid(f"Got encode={given!r:.100}; {_EXPECTED}")
    name, colon, number = given.partition(":")
    if name == "follow":
        raise RequestInvalid(
            f"Got encode={given!r}, but only a stream is followed: give one "
            "tokprune.Following(within=8) with every question about it (`tokprune watch` takes "
            "--encode follow:8)"
        )
    if name not in ENCODES:
        raise RequestInvalid(unknown("way to encode", name, list(ENCODES)))
    if not colon:
        return Way(name)
    if name == "lazy" and re.fullmatch(r"[1-9]\d{0,5}", number):
        return Way(name, most=int(number))
    if name == "lazy" and re.fullmatch(r"[01]\.\d{1,6}", number) and 0 < float(number) <= 1:
        return Way(name, share=float(number))
    if name == "coarse" and re.fullmatch(r"\d(\.\d+)?", number) and float(number) >= 1:
        return Way(name, times=float(number))
    if name == "repeats" and re.fullmatch(r"\d(\.\d+)?", number) and float(number) <= _LARGEST_TAU:
        return Way(name, tau=float(number))
    raise RequestInvalid(f"Got encode={given!r}; {_EXPECTED}")


def stream_way(text: str) -> str | Following:
    """Read what a user wrote of a stream: any way, or "follow", or "follow:8" (looks).

    Raises:
        RequestInvalid: it is none of these.
    """
    name, colon, number = text.partition(":")
    if name != "follow":
        way_of(text)
        return text
    if colon and not re.fullmatch(r"[1-9]\d{0,5}", number):
        raise RequestInvalid(
            f"Got encode={text!r}; expected 'follow:8' or another number of looks in which every "
            "part of the picture is seen"
        )
    return Following(int(number)) if colon else Following()


def check_way(way: Way, ways: Ways, *, scores: bool | None = None, window: int = 1) -> None:
    """Refuse a way that can never be, before anything is encoded.

    Args:
        way: as it was asked for.
        ways: of the bundle's family.
        scores: whether the selector scores tokens; None: that shows when it has run.
        window: frames of a camera that are asked about at once.

    Raises:
        RequestInvalid: names what there is.
    """
    has = ", ".join(ways.names)
    if way.follow is not None and not ways.follows:
        raise RequestInvalid(
            f"Got encode={way.follow!r}, but this bundle's vision encoder takes a picture as a "
            f"whole: of a stream nothing can be left out. It has: {has}"
        )
    if way.follow is not None and window != 1:
        raise RequestInvalid(
            f"A stream is followed picture by picture, got window={window} frames at once: leave "
            f"the window out, or choose another encode: {has}"
        )
    if way.follow is None and way.name not in ways.names:
        raise RequestInvalid(f"This bundle's family has no encode={way.name!r}; it has: {has}")
    if way.name == "lazy" and scores is False:
        raise RequestInvalid(NO_SCORES)


def looking_of(
    way: Way,
    ways: Ways,
    small: Callable[[], Small] | None,
    asked: Asked,
    *,
    scores: bool,
    model: str = "",
) -> tuple[str, Looking]:
    """Return how a request is looked at, and the name of that.

    Args:
        way: as it was asked for.
        ways: of the bundle's family.
        small: makes the same request about the pictures at half their size.
        asked: the request.
        scores: whether the selector scores tokens.
        model: tells it from others, to a `Following`.

    Raises:
        RequestInvalid: the family has no such way.
    """
    check_way(way, ways)
    if way.follow is not None:
        return "follow", Follow(way.follow, ways.cut, model)
    match way.name:
        case "full":
            return "full", FULL
        case "lazy":
            return "lazy", Lazy(way.most, share=way.share)
        case "repeats":
            return "repeats", Repeats(ways.cut, way.tau)
        case "coarse":
            assert ways.cut is not None
            assert small is not None
            return "coarse", Coarse(small, ways.cut, way.times)
        case _:
            return _auto(ways, small, asked, scores=scores)


def _auto(
    ways: Ways, small: Callable[[], Small] | None, asked: Asked, *, scores: bool
) -> tuple[str, Looking]:
    """Return lazily for crops; coarse where time is short, which forecasts tell; else everything.

    Frames that are skipped take what happened in them along: whoever can do without asks for it.
    """
    if scores and asked.media and crops_left(asked.media):
        return "lazy", Lazy()
    timed = isinstance(asked.budget, (Deadline, Auto))
    if timed and ways.cut is not None and small is not None:
        return "coarse", Coarse(small, ways.cut)
    return "full", FULL


def crops_left(media: Sequence[Prepared]) -> bool:
    """Tell whether a lazy first look leaves crops for later."""
    units = units_of(media)
    return bool((left_for_later(units) & (units.tile != WHOLE)).any())
