"""Turn a ranking and a budget into the vision tokens that stay."""

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.budgets import Budget
from tokprune.canvas import members
from tokprune.types import COLUMN, ROW, Array, Ranking, Selection, VisionTokens


def select(ranking: Ranking, vision: VisionTokens, budget: Budget) -> Selection:
    """Apply the budget to the ranking, and put what stays in the LLM's order."""
    total = len(vision.embeds)
    plan = budget.plan(total)
    keep = np.sort(ranking.take(plan.keep)).astype(np.int64)
    if len(keep) != plan.keep or len(np.unique(keep)) != plan.keep:
        raise ValueError(
            f"The selector returned {len(np.unique(keep))} different tokens for k = {plan.keep}; "
            "`take(k)` must give exactly k"
        )
    corrected = plan.keep < total and ranking.size_bias(plan.keep / total)
    return Selection(
        keep=keep,
        total=total,
        need=None,
        cap=plan.cap,
        reason=plan.reason,
        scores=ranking.scores,
        bias=size_bias(keep, vision) if corrected else None,
    )


def keep_all(total: int) -> Ranking:
    """Return the ranking for a budget that drops nothing: no selector has to run."""
    return Ranking(lambda k: np.arange(total)[:k])


def size_bias(keep: Int64[Array, " k"], vision: VisionTokens) -> Float32[Array, " k"]:
    """Log of how many tokens each kept token stands for: those nearest to it on its grid.

    Added to the attention logits of its column, averages over the picture stay what they were
    (proportional attention, arXiv:2210.09461). Ties go to the earlier kept token.
    """
    bias = np.zeros(len(keep), np.float32)
    for region in vision.regions:
        inside = members(vision.where, region)
        mine = np.flatnonzero(np.isin(keep, inside))
        if len(mine) == 0:
            continue
        cells = vision.where[inside][:, [ROW, COLUMN]].astype(np.float32)
        kept = vision.where[keep[mine]][:, [ROW, COLUMN]].astype(np.float32)
        distance = ((cells[:, None] - kept[None]) ** 2).sum(axis=-1)
        counts = np.bincount(distance.argmin(axis=1), minlength=len(mine))
        bias[mine] = np.log(np.maximum(counts, 1))
    return bias
