"""What a selector is: prompt, vision tokens and the first layer in, a ranking out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.canvas import newlines_last
from tokprune.errors import RequestInvalid
from tokprune.types import (
    KIND,
    NEWLINE,
    Array,
    First,
    FirstLayer,
    Prompt,
    Ranking,
    Scores,
    Take,
    VisionTokens,
)

Selector: TypeAlias = Callable[[Prompt, VisionTokens, First], Ranking]
Scorer: TypeAlias = Callable[[VisionTokens, FirstLayer], Scores]  # runs the scorer graph
Need = Literal["scorer", "saliency", "tiles", "frames"]


@dataclass(frozen=True)
class Inputs:
    """What a selector may be built from, beside what it is called with."""

    scorer: Scorer
    embed: Callable[[Int64[Array, " m"]], Float32[Array, "m d"]]  # the LLM's inputs of token ids


class Method(NamedTuple):
    """One row of the table of selectors.

    `scorer` and `saliency` are looked for in the bundle when a request comes in, `tiles` (crops
    beside the whole picture) and `frames` (a video) by the selector itself.
    """

    make: Callable[[Inputs], Selector]
    needs: frozenset[Need] = frozenset()
    reads_question: bool = True


class Lazy:
    """An order of tokens, made as far as it is asked for."""

    def __init__(self, steps: Iterator[int]) -> None:
        self._steps = steps
        self._made: list[int] = []

    def __call__(self, k: int) -> Int64[Array, " k"]:
        """Return the first k tokens."""
        self._made.extend(islice(self._steps, max(k - len(self._made), 0)))
        return np.asarray(self._made[:k], np.int64)


def check_whole(name: str, vision: VisionTokens) -> None:
    """Refuse grids of which a part is not encoded, for selectors that reckon with whole ones.

    Raises:
        RequestInvalid: a cell has no token.
    """
    cells = sum(region.rows * region.columns for region in vision.regions)
    if len(patches(vision)) < cells:
        raise RequestInvalid(
            f"The selector {name!r} needs whole grids, and only {len(patches(vision))} of {cells} "
            "vision tokens are encoded: choose another, such as 'relevance-spread' or "
            "'attention-spread', or encode='full'"
        )


def descending(scores: Scores, vision: VisionTokens) -> Int64[Array, " n"]:
    """Return positions from the highest score down. Ties go to the earlier token."""
    return newlines_last(np.argsort(-scores, kind="stable"), vision.where)


def highest(values: Float32[Array, " m"]) -> Int64[Array, " m"]:
    """Return the places of values from the highest down. Ties go to the earlier place."""
    return np.argsort(-values, kind="stable")


def prefix_of(order: Int64[Array, " n"]) -> Take:
    """Return a nested ranking: k tokens are the first k of one order."""
    return lambda k: order[:k]


def patches(vision: VisionTokens) -> Int64[Array, " m"]:
    """Return the tokens that are patches, not newlines."""
    return np.flatnonzero(vision.where[:, KIND] != NEWLINE)


def patches_first(vision: VisionTokens, take: Take) -> Take:
    """Return what takes patches, numbered among themselves by `take`, and then newlines."""
    own = patches(vision)
    ends = np.flatnonzero(vision.where[:, KIND] == NEWLINE)

    def tokens(k: int) -> Int64[Array, " k"]:
        head = take(min(k, len(own)))
        return np.concatenate([own[head], ends[: k - len(head)]])

    return tokens
