"""What every comparison carries: chance, an even lattice, and attention without a network."""

import numpy as np
from jaxtyping import Int64

from tokprune.canvas import canvas, newlines_last
from tokprune.selectors.coverage import lattice, shares
from tokprune.selectors.scores import mean_attention
from tokprune.selectors.selector import Selector, check_whole, descending, prefix_of
from tokprune.types import KIND, NEWLINE, Array, First, Prompt, Ranking, VisionTokens


def random_tokens(seed: int = 0) -> Selector:
    """Keep a uniformly drawn subset; the same seed and size give the same tokens."""

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt, first
        order = np.random.default_rng(seed).permutation(len(vision.embeds))
        return Ranking(prefix_of(newlines_last(order, vision.where)))

    return select


def uniform(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep an even lattice of each grid, each by its share of tokens."""
    del prompt, first
    check_whole("uniform", vision)
    grids = canvas(vision.where, vision.regions).tokens
    sizes = [region.rows * region.columns for region in vision.regions]
    ends = np.flatnonzero(vision.where[:, KIND] == NEWLINE)

    def take(k: int) -> Int64[Array, " k"]:
        patches = min(k, sum(sizes))
        kept: list[Array] = [ends[: k - patches]]
        counts = shares(sizes, patches)
        for region, grid, count in zip(vision.regions, grids, counts, strict=True):
            if count:
                cells = lattice(region.rows, region.columns, count)
                kept.append(grid[np.divmod(cells, region.columns)])
        return np.concatenate(kept)

    return Ranking(take)


def attention(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep what the question attends to in the first layer: the scorer's input, no network."""
    del prompt
    scores = mean_attention(first())
    return Ranking(prefix_of(descending(scores, vision)), scores)
