"""Looks at some tokens, or at some tiles and frames, of what was asked about."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int64

from tokprune.looking.look import Asked, Look, showing, within
from tokprune.looking.parts import part
from tokprune.types import Array, Prepared

Cut: TypeAlias = Callable[[Prepared, Int64[Array, " m"]], Prepared]  # some tokens' pixels alone


def show_tokens(asked: Asked, places: Int64[Array, " m"], cut: Cut, *, reason: str) -> Look:
    """Return the look at the pixels of some tokens.

    Args:
        asked: the request.
        places: the tokens, ascending.
        cut: shows them alone.
        reason: why these.
    """
    bounds = np.cumsum([0, *(len(shown.where) for shown in asked.media)])
    media: list[Prepared] = []
    for shown, start, end in zip(asked.media, bounds[:-1], bounds[1:], strict=True):
        mine = places[(places >= start) & (places < end)] - start
        if len(mine):
            media.append(cut(shown, mine))
    return Look(
        prompt=showing(asked.prompt, places),
        media=tuple(media),
        places=places,
        budget=within(asked, len(places)),
        encoded=len(places),
        reason=reason,
    )


def show_units(
    asked: Asked,
    shown: Bool[Array, " u"],
    before: int = 0,
    *,
    last: bool = True,
    reason: str = "",
) -> Look:
    """Return the look at some tiles and frames.

    Args:
        asked: the request.
        shown: which units, counted over all media (`parts.units_of`).
        before: tokens of it that were encoded by the look before.
        last: whether an answer is read from it.
        reason: why these.
    """
    split = asked.split
    counts = np.cumsum([each.units.shape[1] for each in split])[:-1]
    starts = np.cumsum([0, *(len(each.where) for each in split)])
    parts = [part(each, mine) for each, mine in zip(split, np.split(shown, counts), strict=True)]
    places = np.concatenate(
        [each.places + start for each, start in zip(parts, starts[:-1], strict=True)]
    )
    return Look(
        prompt=showing(asked.prompt, places),
        media=tuple(medium for each in parts for medium in each.media),
        places=places,
        budget=within(asked, len(places)),
        encoded=len(places) - before,
        last=last,
        reason=reason,
    )
