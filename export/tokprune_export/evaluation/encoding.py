"""Rows of the tables whose pictures are looked at in another way than as a whole."""

from collections.abc import Sequence
from typing import NamedTuple

from tokprune.budgets import Budget
from tokprune.errors import RequestInvalid
from tokprune.looking import Following, stream_way
from tokprune.selectors import SCORING
from tokprune.types import Answer, Medium
from tokprune.vlm import VLM
from tokprune_export.media import Source, load

_MARK = ", encode "


class Row(NamedTuple):
    """A selector, and a way to look."""

    selector: str
    way: str  # as `AskOptions.encode`

    @property
    def name(self) -> str:
        """Return what tables call it."""
        return f"{self.selector}{_MARK}{self.way}"


def row_of(name: str) -> Row | None:
    """Return what a name of the tables means; None where it is no such row."""
    selector, mark, way = name.partition(_MARK)
    return Row(selector, way) if mark else None


def ways_of(text: str, *, streams: bool) -> tuple[str, ...]:
    """Split ways at commas, none twice.

    Args:
        text: as the user wrote it.
        streams: whether the questions are about streams, which can be followed.

    Raises:
        RequestInvalid: one has no such name, or a number that makes no sense, or there is nothing
            to follow.
    """
    ways = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for way in ways:
        if isinstance(stream_way(way), Following) and not streams:
            raise RequestInvalid(
                f"--encode {way} follows a stream, picture by picture, and these questions are "
                "about pictures or videos that stand alone: give --suite scenes-stream, or a file "
                'with lines such as {"stream": ["000.png", "001.png"], "question": ...}'
            )
    return ways


def rows_of(selectors: Sequence[str], default: str, ways: Sequence[str]) -> tuple[str, ...]:
    """Name the rows: each way with the bundle's own selector, where that scores.

    Args:
        selectors: that are asked for.
        default: the bundle's own.
        ways: to look.
    """
    scoring = [name for name in (default, *selectors) if name in SCORING]
    return tuple(Row(scoring[0], way).name for way in ways) if scoring else ()


def asked(
    vlm: VLM,
    media: Sequence[Medium],
    question: str,
    row: Row,
    budget: Budget,
    most: int,
    seen: Sequence[Source | Medium] = (),
) -> Answer:
    """Ask as a user does, from the pictures on; what is followed, from the stream's first picture.

    Args:
        vlm: is asked.
        media: what is asked about.
        question: about these.
        row: how.
        budget: of every question.
        most: tokens of the answer.
        seen: the pictures of the stream before.

    Raises:
        RequestInvalid: the family has no such way.
    """
    way = stream_way(row.way)
    for picture in seen if isinstance(way, Following) else ():
        vlm.ask([load(picture)], question, budget, row.selector, encode=way, max_new_tokens=1)
    return vlm.ask(list(media), question, budget, row.selector, encode=way, max_new_tokens=most)
