"""Vision tokens on grids, for tests of what works on them."""

from dataclasses import replace

import numpy as np

from tokprune.selectors import SELECTORS, Inputs
from tokprune.types import (
    COLUMN,
    FRAME,
    KIND,
    NEWLINE,
    ROW,
    TILE,
    FirstLayer,
    Prompt,
    Region,
    VisionTokens,
)


def vision_tokens(*grids: tuple[int, int], hidden: int = 4) -> VisionTokens:
    """Pictures of the given rows and columns, row-major."""
    where, regions = [], []
    for picture, (rows, columns) in enumerate(grids):
        table = np.zeros((rows * columns, 7), np.int32)
        table[:, 0] = picture
        table[:, 3:5] = np.indices((rows, columns)).reshape(2, -1).T
        where.append(table)
        regions.append(Region(picture, 0, 0, rows, columns))
    total = sum(rows * columns for rows, columns in grids)
    embeds = np.random.default_rng(0).normal(size=(total, hidden)).astype(np.float32)
    return VisionTokens(embeds, np.concatenate(where), tuple(regions))


def tiled_vision(*, hidden: int = 4) -> VisionTokens:
    """A picture of 3 x 3 tokens, then its crops: 5 rows of 6 tokens and a newline."""
    rows, columns = 5, 6
    whole = vision_tokens((3, 3), hidden=hidden)
    crops = np.zeros((rows, columns + 1, 7), np.int32)
    crops[..., TILE] = 1
    crops[..., ROW], crops[..., COLUMN] = np.indices((rows, columns + 1))
    crops[:, columns, KIND] = NEWLINE
    where = np.concatenate([whole.where, crops.reshape(-1, 7)])
    embeds = np.random.default_rng(0).normal(size=(len(where), hidden)).astype(np.float32)
    return VisionTokens(embeds, where, (*whole.regions, Region(0, 0, 1, rows, columns)))


def prompt_for(vision: VisionTokens, *, before: int = 3, after: int = 5) -> Prompt:
    """Text, all vision tokens, text; the last text but two are the user's words."""
    count = before + len(vision.embeds) + after
    words = np.zeros(count, np.bool_)
    words[-after:-2] = True
    return Prompt(
        ids=np.arange(count),
        slots=np.arange(before, before + len(vision.embeds)),
        words=words,
        positions=np.arange(count)[None],
        next_position=count,
    )


def first_layer(vision: VisionTokens, scores: np.ndarray, *, rows: int = 5) -> FirstLayer:
    """Attention whose mean over heads and question rows is `scores`; other rows mislead."""
    attention = np.tile(scores.astype(np.float32), (2, rows, 1))
    question = np.ones(rows, np.bool_)
    question[-2:] = False
    attention[:, -2:] = scores[::-1]
    words = np.zeros((rows, vision.embeds.shape[1]), np.float32)
    return FirstLayer(attention, question, words)


def film_tokens(
    frames: int, rows: int, columns: int, *, hidden: int = 4, newline: bool = False
) -> VisionTokens:
    """A video: frames of the given rows and columns, row-major; a newline after everything."""
    cells = rows * columns
    where = np.zeros((frames * cells, 7), np.int32)
    where[:, FRAME] = np.repeat(np.arange(frames), cells)
    where[:, ROW], where[:, COLUMN] = np.tile(np.divmod(np.arange(cells), columns), frames)
    if newline:
        where = np.concatenate([where, where[-1:]])
        where[-1, [COLUMN, KIND]] = (columns, NEWLINE)
    embeds = np.random.default_rng(0).normal(size=(len(where), hidden)).astype(np.float32)
    return VisionTokens(
        embeds, where, tuple(Region(0, frame, 0, rows, columns) for frame in range(frames))
    )


def salient(vision: VisionTokens, seed: int = 7) -> VisionTokens:
    """The same, with drawn attention of the vision encoder; newlines have none."""
    values = np.random.default_rng(seed).random(len(vision.where)).astype(np.float32)
    values[vision.where[:, KIND] == NEWLINE] = 0
    return replace(vision, saliency=values)


def shown_to(name: str) -> VisionTokens:
    """Vision tokens that a selector of the table takes; the most have two pictures."""
    needs = SELECTORS[name].needs
    vision = vision_tokens((6, 7), (3, 8))
    if "frames" in needs:
        vision = film_tokens(3, 4, 5, newline=True)
    if "tiles" in needs:
        vision = tiled_vision()
    return salient(vision)


def inputs(scores: np.ndarray, hidden: int = 4) -> Inputs:
    """A scorer that always says the same, and embeddings of a thousand token ids."""
    table = np.random.default_rng(11).normal(size=(1000, hidden)).astype(np.float32)
    return Inputs(lambda vision, first: scores, lambda ids: table[ids])


def never() -> FirstLayer:
    """A first layer that must not be read."""
    raise AssertionError("this selector must not run the first layer")
