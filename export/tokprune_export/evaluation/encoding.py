"""Rows of the tables whose pictures are looked at in another way than as a whole."""

from collections.abc import Sequence
from typing import NamedTuple

from tokprune.budgets import Budget
from tokprune.looking import way_of
from tokprune.selectors import SCORING
from tokprune.types import Answer, Medium
from tokprune.vlm import VLM

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


def ways_of(text: str) -> tuple[str, ...]:
    """Split ways at commas, none twice.

    Raises:
        RequestInvalid: one has no such name, or a number that makes no sense.
    """
    ways = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for way in ways:
        way_of(way)
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
    vlm: VLM, media: Sequence[Medium], question: str, row: Row, budget: Budget, most: int
) -> Answer:
    """Ask as a user does, from the pictures on.

    Raises:
        RequestInvalid: the family has no such way.
    """
    return vlm.ask(list(media), question, budget, row.selector, encode=row.way, max_new_tokens=most)
