"""The field's selectors that need no training, as recipes of the parts beside this file.

Formulas are those of the papers cited. `width` is a projection of looks to fewer dimensions
(similarity.py); None compares them as they are.
"""

import numpy as np
from jaxtyping import Int64

from tokprune.selectors.dpp import most_likely
from tokprune.selectors.facility import covering_most
from tokprune.selectors.max_min import max_min
from tokprune.selectors.merging import by_looks, merged
from tokprune.selectors.pivots import least_like, loudest
from tokprune.selectors.scores import (
    farthest_points,
    min_max,
    outliers,
    reconstruction_error,
    saliency,
    text_similarity,
    word_ids,
)
from tokprune.selectors.selector import (
    Inputs,
    Lazy,
    Selector,
    highest,
    patches,
    patches_first,
    prefix_of,
)
from tokprune.selectors.similarity import looks, unit
from tokprune.types import Array, First, Prompt, Ranking, VisionTokens

LEAST_QUALITY = 1e-6  # keeps a determinant above 0
PIVOTS = 4  # of vision, and of text
BASIS = 10
WORD_TEMPERATURE = 0.05
LEAST_FACTOR = 1e-6  # whose logarithm is taken


def vtc_cls(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep what the vision encoder itself attends to (arXiv:2412.05819)."""
    del prompt, first
    return Ranking(patches_first(vision, prefix_of(highest(saliency(vision)))))


def divprune(*, width: int | None = None) -> Selector:
    """Keep tokens that are least like each other (arXiv:2503.02175)."""

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt, first
        return Ranking(patches_first(vision, Lazy(max_min(looks(vision, width)))))

    return select


def cdpruner(inputs: Inputs, *, width: int | None = None) -> Selector:
    """Keep tokens that are like the question and unlike each other (arXiv:2506.10967).

    A determinantal point process; the question is the LLM's input embeddings of its words. It
    tells no more tokens apart than looks have dimensions, so a projection bounds it further; the
    others follow by likeness to the question.
    """

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del first
        similar = text_similarity(looks(vision), inputs.embed(word_ids(prompt)))
        quality = min_max(similar) + np.float32(LEAST_QUALITY)
        return Ranking(patches_first(vision, Lazy(most_likely(looks(vision, width), quality))))

    return select


def scope(*, width: int | None = None) -> Selector:
    """Keep salient tokens that many others are like (arXiv:2510.24214)."""

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt, first
        weights = np.maximum(saliency(vision), 0)
        return Ranking(patches_first(vision, Lazy(covering_most(looks(vision, width), weights))))

    return select


def dart(inputs: Inputs) -> Selector:
    """Keep what is least like four loud tokens of the pictures and four of the question.

    "Loud": of largest L1 norm (arXiv:2502.11494, in the form that needs input embeddings alone).
    """

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del first
        rows, words = looks(vision), inputs.embed(word_ids(prompt))
        own = loudest(vision.embeds[patches(vision)], PIVOTS)
        pivots = np.concatenate([rows[own], unit(words[loudest(words, PIVOTS)])])
        return Ranking(patches_first(vision, lambda k: least_like(rows, pivots, k)))

    return select


def apet(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
    """Keep what ten tokens that are far from each other describe worst (arXiv:2602.19870)."""
    del prompt, first
    rows = np.asarray(vision.embeds[patches(vision)], np.float32)
    error = reconstruction_error(rows, rows[farthest_points(rows, BASIS)])
    return Ranking(patches_first(vision, prefix_of(highest(error))))


apet_merge = merged(apet, by_looks)


def flashvlm(inputs: Inputs, *, width: int | None = None) -> Selector:
    """Keep what is salient and like the question, and as many tokens unlike those.

    Half by the geometric mean of both scores, half by max-min distance (arXiv:2512.20561).
    """

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del first
        words = inputs.embed(word_ids(prompt))
        similar = min_max(text_similarity(looks(vision), words, WORD_TEMPERATURE))
        salient, rows = min_max(saliency(vision)), looks(vision, width)
        factors = np.stack([similar, salient]) + np.float32(LEAST_FACTOR)
        best = highest(np.exp(0.5 * np.log(factors).sum(axis=0)).astype(np.float32))

        def take(k: int) -> Int64[Array, " k"]:
            head = best[: k - k // 2]
            return np.concatenate([head, Lazy(max_min(rows, head))(k // 2)]) if k else head

        return Ranking(patches_first(vision, take))

    return select


def recoverable(inputs: Inputs) -> Selector:
    """Keep salient outliers, then what is unusually like the question; merge the rest.

    Outliers by interquartile range, the question as the LLM's input embeddings of its words, the
    rest into the kept token most like it (arXiv:2409.01179, which has local outlier factors and
    the text tower of CLIP). Places that are left go to the most salient.
    """

    def select(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del first
        salient = saliency(vision)
        similar = text_similarity(looks(vision), inputs.embed(word_ids(prompt)))
        kept = outliers(salient)
        found = np.flatnonzero(~kept)
        recovered = np.zeros_like(kept)
        recovered[found] = outliers(similar[found])
        by_saliency, by_text = highest(salient), highest(similar)
        order = [
            by_saliency[kept[by_saliency]],
            by_text[recovered[by_text]],
            by_saliency[~(kept | recovered)[by_saliency]],
        ]
        return Ranking(patches_first(vision, prefix_of(np.concatenate(order))))

    return merged(select, by_looks)
