"""How many tokens each crop or frame may keep, and the best of each."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int64

from tokprune.selectors.selector import highest
from tokprune.types import Array


def softmax(values: Float[Array, " r"], temperature: float) -> Float32[Array, " r"]:
    """Return shares that add up to 1; the lower the temperature, the more the highest has."""
    powers = np.exp((values - values.max()) / temperature)
    return (powers / powers.sum()).astype(np.float32)


def proportional(k: int, weights: Float[Array, " r"], sizes: Sequence[int]) -> Int64[Array, " r"]:
    """Split k in proportion to weights, none above its size.

    What does not fit goes to the others by their weights, what is no whole token to the largest
    remainders. Where no weight is left, sizes count.
    """
    sizes_ = np.asarray(sizes, np.int64)
    parts = np.zeros(len(sizes_), np.float64)
    open_ = sizes_ > 0
    while open_.any():
        own = np.where(open_, np.maximum(weights, 0), 0).astype(np.float64)
        if not own.sum() > 0:
            own = np.where(open_, sizes_, 0).astype(np.float64)
        own *= (k - parts[~open_].sum()) / own.sum()
        full = open_ & (own >= sizes_)
        parts = np.where(full, sizes_, np.where(open_, own, parts))
        if not full.any():
            break
        open_ &= ~full
    whole = np.floor(parts + 1e-9).astype(np.int64)
    remainder = np.where(whole < sizes_, parts - whole, -np.inf)
    whole[np.argsort(-remainder, kind="stable")[: k - int(whole.sum())]] += 1
    return whole


def at_least(
    k: int, weights: Float[Array, " r"], sizes: Sequence[int], least: int
) -> Int64[Array, " r"]:
    """Split k so that each has a few, and the rest by weight: the ATA of arXiv:2604.08120.

    `k_i = least + floor(w_i / sum w x (k - r least))`; what is left goes to the largest weights.
    Where k is too few for that many each, all have as many as are there for all.
    """
    sizes_ = np.asarray(sizes, np.int64)
    least = min(least, k // len(sizes_))
    own = np.maximum(weights, 0).astype(np.float64)
    own = own / own.sum() if own.sum() > 0 else sizes_ / sizes_.sum()
    rest = np.floor(own * (k - least * len(sizes_)) + 1e-9).astype(np.int64)
    parts = np.minimum(least + rest, sizes_)
    best = np.argsort(-own, kind="stable")
    while (left := k - int(parts.sum())) > 0:
        parts[best[parts[best] < sizes_[best]][:left]] += 1
    return parts


def best_of_each(
    scores: Float32[Array, " m"], groups: Sequence[Int64[Array, " _"]], counts: Sequence[int]
) -> Int64[Array, " k"]:
    """Return so many tokens of each group, those of highest score."""
    kept = [
        group[highest(scores[group])[:count]] for group, count in zip(groups, counts, strict=True)
    ]
    return np.concatenate([np.empty(0, np.int64), *kept])
