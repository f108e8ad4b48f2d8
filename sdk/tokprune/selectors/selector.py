"""What a selector is: prompt, vision tokens and the first layer in, a ranking out."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

from tokprune.canvas import newlines_last
from tokprune.types import Array, First, FirstLayer, Prompt, Ranking, Scores, Take, VisionTokens

Selector: TypeAlias = Callable[[Prompt, VisionTokens, First], Ranking]
Scorer: TypeAlias = Callable[[VisionTokens, FirstLayer], Scores]  # runs the scorer graph


def descending(scores: Scores, vision: VisionTokens) -> Int64[Array, " n"]:
    """Return positions from the highest score down. Ties go to the earlier token."""
    return newlines_last(np.argsort(-scores, kind="stable"), vision.where)


def prefix_of(order: Int64[Array, " n"]) -> Take:
    """Return a nested ranking: k tokens are the first k of one order."""
    return lambda k: order[:k]
