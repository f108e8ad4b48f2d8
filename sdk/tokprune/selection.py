"""Turn a ranking and a budget into the vision tokens that stay."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from tokprune.allocation import fair
from tokprune.budgets import Budget, KeepCount, KeepRatio, Plan
from tokprune.canvas import newlines_last, row_ends
from tokprune.selectors import Selector
from tokprune.selectors.merging import by_place
from tokprune.timing.plans import Clock, keeps_all, plan
from tokprune.types import (
    KIND,
    NEWLINE,
    PICTURE,
    Array,
    First,
    Prompt,
    Ranking,
    Selection,
    Take,
    VisionTokens,
)


def select(
    ranking: Ranking, vision: VisionTokens, budget: Budget, clock: Clock | None = None
) -> Selection:
    """Apply the budget to the ranking, and put what stays in the LLM's order.

    Args:
        ranking: how the selector would spend any budget.
        vision: the tokens.
        budget: how many may stay.
        clock: tells a budget in time where the request stands; others do not read it.

    Raises:
        BudgetImpossible: time is too short for the fewest tokens that may be kept.
        NotCalibrated: a budget in time without a clock.
        RequestInvalid: the budget needs scores, and the selector gives none.
    """
    total = len(vision.where)
    asked = isinstance(budget, (KeepRatio, KeepCount))  # else the device decides how few stay
    split = None if asked or not total else fair(ranking, vision)

    def chosen(k: int) -> Int64[Array, " k"]:
        return with_newlines(split(k) if split else ranking.take, vision.where, k)

    everything = Plan(0, None, "all")  # a conversation without pictures, so far
    applied = plan(budget, ranking, vision, chosen, clock) if total else everything
    keep = chosen(applied.keep)
    dropped = applied.keep < total
    merged = ranking.merge(keep) if dropped and ranking.merge is not None else None
    bias: Float32[Array, " k"] | None = None
    if dropped and ranking.size_bias(applied.keep / total):
        bias = size_bias(keep, vision) if merged is None else _log(merged.sizes)
    return Selection(
        keep=keep,
        total=total,
        need=applied.need,
        cap=applied.cap,
        reason=applied.reason,
        scores=ranking.scores,
        embeds=None if merged is None else merged.embeds,
        bias=bias,
        at=None if merged is None else merged.at,
    )


def select_each(
    rank: Callable[[VisionTokens], Ranking], vision: VisionTokens, budget: Budget
) -> Selection:
    """Apply ranking and budget to every picture as if it were alone.

    What is kept of one picture then does not change when another is shown beside it.
    """
    parts: list[Selection] = []
    pictures: list[tuple[VisionTokens, Int64[Array, " m"]]] = []
    for picture in sorted({region.picture for region in vision.regions}):
        inside = np.flatnonzero(vision.where[:, PICTURE] == picture)
        alone = VisionTokens(
            vision.embeds[inside],
            vision.where[inside],
            tuple(region for region in vision.regions if region.picture == picture),
            None if vision.saliency is None else vision.saliency[inside],
        )
        parts.append(select(rank(alone), alone, budget))
        pictures.append((alone, inside))
    return _joined(parts, pictures, len(vision.where))


def _joined(
    parts: Sequence[Selection],
    pictures: Sequence[tuple[VisionTokens, Int64[Array, " _"]]],
    total: int,
) -> Selection:
    """Put together what was chosen of each picture. Tokens are numbered as in all of them."""
    none = np.empty(0, np.int64)
    pairs = list(zip(parts, pictures, strict=True))
    caps = [part.cap for part in parts]
    reasons = {part.reason for part in parts}
    embeds = [
        alone.embeds[part.keep] if part.embeds is None else part.embeds
        for part, (alone, _) in pairs
    ]
    at = [inside[part.keep if part.at is None else part.at] for part, (_, inside) in pairs]
    bias = [np.zeros(part.kept, np.float32) if part.bias is None else part.bias for part in parts]
    return Selection(
        keep=np.concatenate([none, *(inside[part.keep] for part, (_, inside) in pairs)]),
        total=total,
        need=None,
        cap=None if None in caps else sum(cap or 0 for cap in caps),
        reason="all" if reasons <= {"all"} else (reasons - {"all"}).pop(),
        embeds=np.concatenate(embeds) if any(p.embeds is not None for p in parts) else None,
        bias=np.concatenate(bias) if any(p.bias is not None for p in parts) else None,
        at=np.concatenate(at) if any(p.at is not None for p in parts) else None,
    )


def unless_all(selector: Selector, budget: Budget, clock: Clock | None = None) -> Selector:
    """Return a selector that does not run where the budget keeps everything."""

    def ranked(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        total = len(vision.where)
        if not total or keeps_all(budget, total, clock):
            return keep_all(total)
        return selector(prompt, vision, first)

    return ranked


def with_newlines(take: Take, where: Int32[Array, "n 7"], k: int) -> Int64[Array, " k"]:
    """Return k tokens, ascending: patches, and the newlines of the rows that they stand in.

    As many patches are taken as fit in k with their newlines. Places that are left then go to the
    next patches of rows that are kept already or have no newline, and where there are none of
    these, to the next tokens whatever their rows. Where `take` ranks newlines, that is ignored. No
    more of its order is asked for than that takes: to make it may be costly.
    """
    total, newline = len(where), where[:, KIND] == NEWLINE
    if not newline.any():
        return np.flatnonzero(_chosen(take, k, total))
    ends = np.where(newline, np.arange(total), row_ends(where))

    def kept(count: int) -> Bool[Array, " n"]:
        """Mark `count` tokens, newlines passed over, and those that belong to them."""
        marked = _chosen(take, count, total) & ~newline
        marked[ends[marked & (ends >= 0)]] = True
        return marked

    most = int(newline.sum())
    fits, exceeds = max(k // 2, k - most), min(k + most, total) + 1
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        fits, exceeds = (middle, exceeds) if kept(middle).sum() <= k else (fits, middle)
    keep = kept(fits)
    places = k - int(keep.sum())
    free, seen = ~newline & ((ends < 0) | keep[ends]) & ~keep, fits + places
    while True:
        order = newlines_last(take(min(seen, total)), where)
        if seen >= total or free[order].sum() >= places:
            break
        seen *= 2
    for candidates in (order[free[order]], order):
        rest = candidates[~keep[candidates]]
        keep[rest[: k - int(keep.sum())]] = True
    return np.flatnonzero(keep)


def _chosen(take: Take, k: int, total: int) -> Bool[Array, " n"]:
    """Mark the k tokens that a selector takes, and see that it gives as many."""
    marked = np.zeros(total, np.bool_)
    tokens = take(k) if k else np.empty(0, np.int64)
    marked[tokens] = True
    if len(tokens) != k or marked.sum() != k:
        raise ValueError(
            f"The selector returned {marked.sum()} different tokens for k = {k}; "
            "`take(k)` must give exactly k"
        )
    return marked


def keep_all(total: int) -> Ranking:
    """Return the ranking for a budget that drops nothing: no selector has to run."""
    return Ranking(lambda k: np.arange(total)[:k], unranked=True)


def size_bias(keep: Int64[Array, " k"], vision: VisionTokens) -> Float32[Array, " k"]:
    """Log of how many tokens each kept token stands for: those nearest to it on its grid.

    Added to the attention logits of its column, averages over the picture stay what they were
    (proportional attention, arXiv:2210.09461). Ties go to the earlier kept token.
    """
    group = by_place(vision, keep)
    return _log(np.bincount(group[group >= 0], minlength=len(keep)))


def _log(sizes: Int64[Array, " k"]) -> Float32[Array, " k"]:
    return np.log(np.maximum(sizes, 1)).astype(np.float32)
