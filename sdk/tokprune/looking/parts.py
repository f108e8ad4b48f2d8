"""Pictures and videos of which some tiles or frames alone are shown to the vision encoder.

A unit is what the encoder takes by itself: a tile, or a frame (of Qwen's: a temporal pair). Units
are encoded independently of each other, so each gives what it gives in the full look, to the bit
where both run it in a call of its own.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from tokprune.canvas import members, row_ends
from tokprune.types import (
    FRAME,
    KIND,
    NEWLINE,
    PICTURE,
    TILE,
    WHOLE,
    Array,
    Feeds,
    Prepared,
    Region,
)

PADDING = -1  # the tile of a unit that no token is made of


class Part(NamedTuple):
    """Some units of a picture or video."""

    media: tuple[Prepared, ...]  # one, or none where nothing of it is shown
    places: Int64[Array, " m"]  # its tokens among those of the whole picture or video


class Units(NamedTuple):
    """All units of all media, in order."""

    medium: Int64[Array, " u"]
    picture: Int64[Array, " u"]
    frame: Int64[Array, " u"]
    tile: Int64[Array, " u"]
    tokens: tuple[Int64[Array, " _"], ...]  # patches that each takes part in, of all media


def apart(prepared: Prepared) -> Prepared:
    """Give each unit a call of its own."""
    calls = tuple(
        {**call, "pixel_values": call["pixel_values"][number : number + 1]}
        for call in prepared.calls
        for number in range(len(call["pixel_values"]))
    )
    if len(calls) == len(prepared.calls):
        return prepared
    return replace(prepared, calls=calls, part=True)


def units_of(media: Sequence[Prepared]) -> Units:
    """List the units of pictures and videos."""
    medium: list[int] = []
    named: list[tuple[int, int, int]] = []
    tokens: list[Array] = []
    before = 0
    for number, shown in enumerate(media):
        for unit in range(shown.units.shape[1]):
            mine = np.flatnonzero(shown.units[:, unit])
            medium.append(number)
            first = shown.where[mine[0] if len(mine) else 0]
            tile = int(first[TILE]) if len(mine) else PADDING
            named.append((int(first[PICTURE]), int(first[FRAME]), tile))
            tokens.append(mine + before)
        before += len(shown.where)
    table: Array = np.reshape(np.asarray(named, np.int64), (-1, 3))
    return Units(np.asarray(medium, np.int64), table[:, 0], table[:, 1], table[:, 2], tuple(tokens))


def part(prepared: Prepared, shown: Bool[Array, " u"]) -> Part:
    """Show some units alone: the tokens that are made of nothing else, and their newlines.

    Args:
        prepared: with a call for each unit (`apart`).
        shown: which units.
    """
    if shown.all():
        return Part((prepared,), np.arange(len(prepared.where)))
    patch = prepared.where[:, KIND] != NEWLINE
    here = patch & ~(prepared.units & ~shown).any(axis=1)
    ends = row_ends(prepared.where)
    here[ends[here & (ends >= 0)]] = True
    places = np.flatnonzero(here)
    if not len(places):
        return Part((), places)
    where = prepared.where[places]
    chosen: list[int] = np.flatnonzero(shown).tolist()
    calls: tuple[Feeds, ...] = tuple(prepared.calls[unit] for unit in chosen)

    def pack(outputs: list[Array]) -> Array:
        # Units that did not run: another's output in their place. No token that is made of them is
        # taken, and newlines are equal in all.
        every = [outputs[0]] * len(shown)
        for unit, output in zip(chosen, outputs, strict=True):
            every[unit] = output
        return prepared.pack(every)[places]

    made = replace(
        prepared,
        calls=calls,
        pack=pack,
        where=where,
        regions=seen_regions(where, prepared.regions),
        units=prepared.units[places][:, shown],
    )
    return Part((made,), places)


def seen_regions(where: Int32[Array, "m 7"], regions: Sequence[Region]) -> tuple[Region, ...]:
    """Return the regions that have any token. They keep their size."""
    return tuple(region for region in regions if len(members(where, region)))


def units_among(shown: Prepared) -> tuple[Int64[Array, " n"], Bool[Array, " u"]]:
    """Return the unit that each token is of, -1 of several or none, and which show the whole."""
    alone = shown.units.sum(axis=1) == 1
    of = np.where(alone, shown.units.argmax(axis=1), -1)
    base = np.zeros(shown.units.shape[1], np.bool_)
    tiles = sorted(set(shown.where[:, TILE].tolist()))
    if len(tiles) > 1:
        base[of[alone & (shown.where[:, TILE] == WHOLE)]] = True
    return of, base
