"""Scores of vision tokens, higher is kept first: what selections choose by.

Relevance is the scorer graph's. Those of videos stand in frames.py.
"""

import numpy as np
from jaxtyping import Bool, Float32, Int64

from tokprune.errors import SelectorUnavailable
from tokprune.selectors.selector import patches
from tokprune.selectors.similarity import products, unit
from tokprune.types import Array, FirstLayer, Prompt, Scores, VisionTokens

RIDGE = 1e-5
ROWS = 512  # that are reconstructed at a time


def mean_attention(first: FirstLayer) -> Scores:
    """Average over heads and the user's words (all rows where none is marked); sums to 1."""
    rows = first.question if first.question.any() else np.ones_like(first.question)
    scores = first.attention[:, rows].mean(axis=(0, 1), dtype=np.float32)
    return (scores / max(float(scores.sum()), np.finfo(np.float32).tiny)).astype(np.float32)


def saliency(vision: VisionTokens) -> Float32[Array, " m"]:
    """Return the vision encoder's own attention to each patch.

    Raises:
        SelectorUnavailable: this bundle's encoder does not give it.
    """
    if vision.saliency is None:
        raise SelectorUnavailable(no_saliency("This selector"))
    return np.asarray(vision.saliency[patches(vision)], np.float32)


def no_saliency(who: str) -> str:
    """Return what to say where saliency is missing."""
    return (
        f"{who} needs the vision encoder's attention, and this bundle was exported without it. "
        "Export it again with `tokprune-export MODEL OUTPUT --saliency`"
    )


def text_similarity(
    rows: Float32[Array, "m f"], words: Float32[Array, "t f"], temperature: float | None = None
) -> Float32[Array, " m"]:
    """Return each token's cosine similarity to the question's words.

    Args:
        rows: the tokens' looks, of unit length.
        words: the LLM's input embeddings of the question; there may be none, then all are alike.
        temperature: weigh the words by a softmax of their similarities; None: their mean.
    """
    if not len(words):
        return np.zeros(len(rows), np.float32)
    similar = products(rows, unit(words))
    if temperature is None:
        return similar.mean(axis=1)
    weights = np.exp((similar - similar.max(axis=1, keepdims=True)) / np.float32(temperature))
    return (similar * weights).sum(axis=1) / weights.sum(axis=1)


def word_ids(prompt: Prompt) -> Int64[Array, " t"]:
    """Return the token ids of the user's words in this turn."""
    return prompt.ids[prompt.words]


def reconstruction_error(
    rows: Float32[Array, "m d"], basis: Float32[Array, "b d"]
) -> Float32[Array, " m"]:
    """Return how far each token is from its best linear combination of a basis (ridge 1e-5)."""
    exact = basis.astype(np.float64)
    gram = products(exact, exact) + RIDGE * np.eye(len(basis))
    error = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        shares = np.linalg.solve(gram, products(basis, part).astype(np.float64))
        rest = part - np.swapaxes(shares, 0, 1).astype(np.float32) @ basis
        error[start : start + ROWS] = np.sqrt(np.einsum("md,md->m", rest, rest))
    return error


def farthest_points(rows: Float32[Array, "m d"], count: int) -> Int64[Array, " b"]:
    """Return tokens that are far from each other, from that of the largest norm on."""
    squares = np.einsum("md,md->m", rows, rows)
    nearest = np.full(len(rows), np.inf, np.float32)
    chosen = [int(squares.argmax())]
    while len(chosen) < min(count, len(rows)):
        distance = squares - 2 * (rows @ rows[chosen[-1]]) + squares[chosen[-1]]
        np.minimum(nearest, distance, out=nearest)
        nearest[chosen] = -np.inf
        chosen.append(int(nearest.argmax()))
    return np.asarray(chosen, np.int64)


def min_max(values: Float32[Array, " m"]) -> Float32[Array, " m"]:
    """Scale to 0..1; all ones where all are alike."""
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    if not high > low:
        return np.ones_like(values)
    return (values - np.float32(low)) / np.float32(high - low)


def outliers(values: Float32[Array, " m"]) -> Bool[Array, " m"]:
    """Mark what is more than 1.5 interquartile ranges above the third quartile."""
    if not len(values):
        return np.zeros(0, np.bool_)
    low, high = np.quantile(values, (0.25, 0.75))
    return values > high + 1.5 * (high - low)
