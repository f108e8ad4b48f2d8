"""Selectors that read the learned relevance: the method of arXiv:2506.01097, alone and spread."""

import numpy as np
from jaxtyping import Int64

from tokprune.selectors.coverage import coverage_order
from tokprune.selectors.facility import covering_most
from tokprune.selectors.halves import mixed
from tokprune.selectors.mmr import marginal
from tokprune.selectors.scores import mean_attention, min_max
from tokprune.selectors.selector import (
    Lazy,
    Scorer,
    Selector,
    descending,
    patches,
    patches_first,
    prefix_of,
)
from tokprune.selectors.similarity import looks
from tokprune.selectors.spread import Scale, spread
from tokprune.types import Array, First, FirstLayer, Prompt, Ranking, Scores, VisionTokens

# Chosen on drawn scenes of the development split (CONTRIBUTING.md, "Settings of the selectors").
ATTENTION_SHARE = 0.0
COVERAGE_SHARE, SCARCE_COVERAGE_SHARE = 0.5, 0.25
SCARCE = 0.2  # kept shares below have less room for coverage
RELEVANCE_SCALE = Scale(score_power=1.0)
NEVER = 2.0  # a kept share from which on size bias is used
IMPORTANCE_SHARE = 0.5  # beside similarity, as arXiv:2602.13315 has it
MMR_WIDTH = 128


def relevance(scorer: Scorer) -> Selector:
    """Keep the tokens of highest predicted relevance."""

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt
        scores = scorer(vision, first())
        return Ranking(prefix_of(descending(scores, vision)), scores)

    return select


def relevance_spread(
    scorer: Scorer,
    *,
    attention_share: float = ATTENTION_SHARE,
    scale: Scale = RELEVANCE_SCALE,
) -> Selector:
    """Keep what the answer will be read from, no two tokens alike.

    The highest scores alone would take many tokens that show the same: the order is spread over
    looks, place and time (spread.py). A scorer that was trained on relevance alone, as the paper's,
    misses evidence of absence: its labels explain the answer that was given, and nothing in
    particular explains "no" or "zero". Half of what the question's words attend to helps there; one
    that was trained on what answers lose knows.

    Args:
        scorer: predicts relevance.
        attention_share: weight of the first layer's mean attention beside the relevance, 0..1.
        scale: of distances and scores.
    """

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt
        scores = _with_attention(scorer, attention_share, vision, first())
        return Ranking(spread(scores, vision, scale), scores)

    return select


def attention_spread(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep what the question attends to in the first layer, no two tokens alike; no training."""
    del prompt
    scores = mean_attention(first())
    return Ranking(spread(scores, vision), scores)


def spread_alone(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep tokens that are far from each other, whatever is asked; no network, no training."""
    del prompt, first
    return Ranking(spread(np.ones(len(vision.where), np.float32), vision))


def relevance_coverage(
    scorer: Scorer,
    *,
    attention_share: float = ATTENTION_SHARE,
    coverage_share: float | None = None,
    size_bias_from: float = NEVER,
) -> Selector:
    """Keep what the answer will be read from, and cover the rest evenly.

    Looks at no embedding: where `relevance_spread` sees what is there twice, half of the tokens go
    to every part of every picture and frame.

    Args:
        scorer: predicts relevance.
        attention_share: weight of the first layer's mean attention beside the relevance, 0..1.
        coverage_share: share of K in farthest-point order over the grid, 0..1; None: half, and a
            quarter where less than a fifth is kept. The ranking is not nested then.
        size_bias_from: from this kept share upwards, each kept token's attention is corrected for
            the number of tokens it stands for (selection.py); above 1, never.
    """

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt
        scores = _with_attention(scorer, attention_share, vision, first())
        return covering(scores, vision, coverage_share, size_bias_from)

    return select


def relevance_mmr(
    scorer: Scorer,
    *,
    attention_share: float = ATTENTION_SHARE,
    importance_share: float = IMPORTANCE_SHARE,
    width: int | None = MMR_WIDTH,
) -> Selector:
    """Keep what the answer will be read from, unlike what is kept.

    Maximal marginal relevance, by the rule of arXiv:2602.13315.

    Args:
        scorer: predicts relevance.
        attention_share: weight of the first layer's mean attention beside the relevance, 0..1.
        importance_share: of a token's score, against its similarity to those kept, 0..1.
        width: compare looks in so many dimensions; None: in all.
    """

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt
        scores = _with_attention(scorer, attention_share, vision, first())
        importance = min_max(scores[patches(vision)])
        order = Lazy(marginal(looks(vision, width), importance, importance_share))
        return Ranking(patches_first(vision, order), scores)

    return select


def scope_relevance(
    scorer: Scorer, *, attention_share: float = ATTENTION_SHARE, width: int | None = None
) -> Selector:
    """Keep relevant tokens that many others are like: arXiv:2510.24214 with our relevance.

    Args:
        scorer: predicts relevance.
        attention_share: weight of the first layer's mean attention beside the relevance, 0..1.
        width: compare looks in so many dimensions; None: in all.
    """

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt
        scores = _with_attention(scorer, attention_share, vision, first())
        weights = np.maximum(scores[patches(vision)], 0)
        order = Lazy(covering_most(looks(vision, width), weights))
        return Ranking(patches_first(vision, order), scores)

    return select


def attention_coverage(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep what the question attends to in the first layer, and cover the rest; no training."""
    del prompt
    return covering(mean_attention(first()), vision, None, NEVER)


def covering(
    scores: Scores, vision: VisionTokens, coverage_share: float | None, size_bias_from: float
) -> Ranking:
    """Take the highest scores, and a share of K in coverage order."""
    by_score = descending(scores, vision)
    by_coverage = coverage_order(vision.where, vision.regions)
    total = len(scores)

    def take(k: int) -> Int64[Array, " k"]:
        share = coverage_share
        if share is None:
            share = COVERAGE_SHARE if k >= SCARCE * total else SCARCE_COVERAGE_SHARE
        return mixed(by_score, by_coverage, k, share)

    return Ranking(take, scores, size_bias=lambda kept_share: kept_share >= size_bias_from)


def _with_attention(
    scorer: Scorer, attention_share: float, vision: VisionTokens, first: FirstLayer
) -> Scores:
    scores = (1 - attention_share) * scorer(vision, first)
    if attention_share:
        scores = scores + attention_share * mean_attention(first)
    return scores.astype(np.float32)
