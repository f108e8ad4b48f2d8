"""What every comparison carries: chance, an even lattice, and attention without a network."""

import numpy as np
from jaxtyping import Int64

from tokprune.canvas import members
from tokprune.selectors.coverage import lattice, shares
from tokprune.selectors.selector import Selector, descending, prefix_of
from tokprune.types import (
    COLUMN,
    ROW,
    Array,
    First,
    FirstLayer,
    Prompt,
    Ranking,
    Scores,
    VisionTokens,
)


def random_tokens(seed: int = 0) -> Selector:
    """Keep a uniformly drawn subset; the same seed and size give the same tokens."""

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt, first
        return Ranking(prefix_of(np.random.default_rng(seed).permutation(len(vision.embeds))))

    return select


def uniform(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep an even lattice of each grid, each by its share of tokens."""
    del prompt, first

    def take(k: int) -> Int64[Array, " k"]:
        sizes = [region.rows * region.columns for region in vision.regions]
        kept: list[Array] = []
        for region, count in zip(vision.regions, shares(sizes, k), strict=True):
            if count:
                inside = members(vision.where, region)
                by_cell = np.empty(region.rows * region.columns, np.int64)
                row, column = vision.where[inside, ROW], vision.where[inside, COLUMN]
                by_cell[row * region.columns + column] = inside
                kept.append(by_cell[lattice(region.rows, region.columns, count)])
        return np.concatenate(kept)

    return Ranking(take)


def attention(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep what the question attends to in the first layer: the scorer's input, no network."""
    del prompt, vision
    scores = mean_attention(first())
    return Ranking(prefix_of(descending(scores)), scores)


def mean_attention(first: FirstLayer) -> Scores:
    """Average over heads and the user's words (all rows where none is marked); sums to 1."""
    rows = first.question if first.question.any() else np.ones_like(first.question)
    scores = first.attention[:, rows].mean(axis=(0, 1), dtype=np.float32)
    return (scores / max(float(scores.sum()), np.finfo(np.float32).tiny)).astype(np.float32)
