"""Parts of drawn pictures, to measure the vision encoder on what ways to look show it."""

from collections.abc import Iterator, Sequence
from math import ceil

import numpy as np
from jaxtyping import Int64

from tokprune.errors import EngineTooSmall
from tokprune.looking.parts import apart, part
from tokprune.model import Model
from tokprune.types import COLUMN, ROW, Array, Prepared

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of the vision tokens, or of the tiles
PICTURES = 2  # that are shown in parts: the largest, and one with half its tokens or less
BLOCK = 2  # side in vision tokens of what is shown together: what lies under a token of half size


def trial_parts(loaded: Model, media: Sequence[tuple[Prepared, ...]]) -> list[Prepared]:
    """Return parts of drawn pictures, small to large; none where the encoder takes no parts.

    Args:
        loaded: the bundle.
        media: of drawn requests, small to large.
    """
    found: dict[tuple[int, ...], Prepared] = {}
    for picture in _pictures(media):
        for shown in _parts(loaded, picture):
            try:
                loaded.vision.check_all([shown])
            except EngineTooSmall:  # as in a request, which would be refused too
                continue
            found.setdefault(tuple(call["pixel_values"].size for call in shown.calls), shown)
    return [found[sizes] for sizes in sorted(found, key=sum)]


def _pictures(media: Sequence[tuple[Prepared, ...]]) -> list[Prepared]:
    """Return the largest picture that is alone, and the largest of at most half its tokens."""
    alone = [each[0] for each in media if len(each) == 1]
    chosen: list[Prepared] = []
    for picture in reversed(alone):
        if not chosen or 2 * len(picture.where) <= len(chosen[-1].where):
            chosen.append(picture)
    return chosen[:PICTURES]


def _parts(loaded: Model, picture: Prepared) -> Iterator[Prepared]:
    cut = loaded.processor.ways.cut
    if cut is not None:
        for share in SHARES:
            yield cut(picture, scattered(picture, share))
        return
    split = apart(picture)
    if not split.part:
        return
    units = split.units.shape[1]
    for share in SHARES:
        first: Array = np.asarray([unit < share * units for unit in range(units)])
        yield from part(split, first).media


def scattered(picture: Prepared, share: float) -> Int64[Array, " m"]:
    """Return a share of a picture's vision tokens, ascending: blocks here and there."""
    region = picture.regions[0]
    wide = ceil(region.columns / BLOCK)
    of = picture.where[:, ROW] // BLOCK * wide + picture.where[:, COLUMN] // BLOCK
    order: Array = np.random.default_rng(0).permutation(int(of.max()) + 1)
    rank = np.argsort(order)[of]  # of each token's block
    count = max(1, round(share * len(of)))
    chosen: Array = np.argsort(rank, kind="stable")[:count]
    return np.sort(chosen).astype(np.int64)
