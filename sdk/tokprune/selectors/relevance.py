"""Selectors that read the learned relevance: the method of arXiv:2506.01097, and with coverage."""

import numpy as np
from jaxtyping import Int64

from tokprune.selectors.coverage import coverage_order
from tokprune.selectors.selector import Scorer, Selector, descending, prefix_of
from tokprune.types import Array, First, Prompt, Ranking, VisionTokens

# From experiments on another small VLM: coverage pays where there is room for it, and size bias
# only while much of the picture is still there. Not yet chosen on the shipped VLM's development
# split.
COVERAGE_SHARE = 0.5
SIZE_BIAS_FROM = 0.2


def relevance(scorer: Scorer) -> Selector:
    """Keep the tokens of highest predicted relevance."""

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt
        scores = scorer(vision, first())
        return Ranking(prefix_of(descending(scores, vision)), scores)

    return select


def relevance_coverage(
    scorer: Scorer,
    *,
    coverage_share: float = COVERAGE_SHARE,
    size_bias_from: float = SIZE_BIAS_FROM,
) -> Selector:
    """Keep the most relevant tokens, and spread the rest evenly over the grid.

    Args:
        scorer: predicts relevance.
        coverage_share: share of K in farthest-point order over the grid, 0..1.
        size_bias_from: from this kept share upwards, each kept token's attention is corrected for
            the number of tokens it stands for (selection.py); above 1, never.
    """

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt
        scores = scorer(vision, first())
        by_relevance = descending(scores, vision)
        by_coverage = coverage_order(vision.where, vision.regions)

        def take(k: int) -> Int64[Array, " k"]:
            return mixed(by_relevance, by_coverage, k, coverage_share)

        return Ranking(take, scores, size_bias=lambda kept_share: kept_share >= size_bias_from)

    return select


def mixed(
    first: Int64[Array, " n"], second: Int64[Array, " n"], k: int, share: float
) -> Int64[Array, " k"]:
    """Take k tokens: the head of `first`, then `share` of k from `second`, none twice."""
    head = first[: k - round(k * share)]
    rest = second[~np.isin(second, head)][: k - len(head)]
    return np.concatenate([head, rest])
