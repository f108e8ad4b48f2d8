"""Pictures in tiles, as LLaVA-OneVision cuts them, and questions about them."""

import numpy as np
from grids import prompt_for

from tokprune import KeepCount, KeepMass, KeepRatio
from tokprune.families import anyres, llava_onevision
from tokprune.families.anyres import Hw, Tiler
from tokprune.looking import Asked
from tokprune.types import Prepared, VisionTokens

SIDE = 4  # tokens of a tile
TILER = Tiler(8, SIDE, tuple(Hw(8 * r, 8 * c) for r in range(1, 4) for c in range(1, 4)), 9)


def picture(rows: int = 3, columns: int = 3) -> Prepared:
    """A picture that is cut into so many crops."""
    size = Hw(8 * rows, 8 * columns)
    tiles = np.zeros((1 + rows * columns, 3, 8, 8), np.float32)
    return llava_onevision.from_tiles("picture", tiles, anyres.alone(TILER, 0, size), size)


def tokens_of(media: tuple[Prepared, ...]) -> VisionTokens:
    where = np.concatenate([shown.where for shown in media])
    regions = tuple(region for shown in media for region in shown.regions)
    return VisionTokens(np.ones((len(where), 2), np.float32), where, regions)


def asked(budget: KeepRatio | KeepCount | KeepMass, *media: Prepared) -> Asked:
    return Asked(prompt_for(tokens_of(media)), media, budget)
