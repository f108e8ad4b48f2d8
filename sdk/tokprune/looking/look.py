"""A look: what is shown to the vision encoder, and the prompt that has its tokens alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int64

from tokprune.budgets import Budget, KeepCount, KeepRatio
from tokprune.looking.parts import apart
from tokprune.types import Array, Prepared, Prompt, Ranking, Selection, VisionTokens


@dataclass(frozen=True)
class Asked:
    """A request: its whole prompt, its whole pictures, and how many tokens may stay of them."""

    prompt: Prompt
    media: tuple[Prepared, ...]
    budget: Budget

    @property
    def total(self) -> int:
        """Number of vision tokens of the whole pictures."""
        return len(self.prompt.slots)

    @cached_property
    def split(self) -> tuple[Prepared, ...]:
        """The media with a call for each tile and frame.

        Made once, so that all looks share these calls: what ran for one need not for the next.
        """
        return tuple(map(apart, self.media))


@dataclass(frozen=True)
class Look:
    """What is shown at once."""

    prompt: Prompt  # its slots are those of the tokens that are shown
    media: tuple[Prepared, ...]  # the parts of the pictures that are shown
    places: Int64[Array, " m"] | None  # each token's number among those of the whole; None: all
    budget: Budget  # for these tokens
    encoded: int  # tokens that were not encoded by a look before
    last: bool = True  # an answer is read from it; else it only tells where to look
    reason: str = ""  # why no more and no less is looked at
    worth: Float32[Array, " n"] | None = None  # what a look before expected of the whole's tokens

    def lifted(self, selection: Selection, asked: Asked) -> Selection:
        """Return a selection among these tokens as one among those of the whole pictures."""
        places = self.places
        if places is None:
            return selection
        scores = self.worth
        if selection.scores is not None:
            scores = np.zeros(asked.total, np.float32)
            scores[places] = selection.scores
        return replace(
            selection,
            keep=places[selection.keep],
            total=asked.total,
            scores=scores,
            at=None if selection.at is None else places[selection.at],
            **_told(selection, asked, len(places)),
        )


def _told(selection: Selection, asked: Asked, shown: int) -> dict[str, str | int | None]:
    """Return why as many are kept, in terms of the whole pictures."""
    if not isinstance(asked.budget, (KeepRatio, KeepCount)):
        reason = "encoded" if selection.reason == "all" else selection.reason
        return {"reason": reason}
    plan = asked.budget.plan(asked.total)
    return {"reason": plan.reason if plan.keep <= shown else "encoded", "cap": plan.cap}


@runtime_checkable
class Looking(Protocol):
    """Says what to look at, given what was seen."""

    def first(self, asked: Asked) -> Look:
        """Return the first look."""
        ...

    def next(
        self, asked: Asked, looks: Sequence[Look], vision: VisionTokens, ranking: Ranking
    ) -> Look | None:
        """Return the next look; None where the last one is what the answer is read from.

        Args:
            asked: the request.
            looks: those before, the latest last.
            vision: the tokens of the latest.
            ranking: of these.
        """
        ...


@dataclass(frozen=True)
class Full:
    """One look at everything."""

    reason: str = ""  # why, where another way was asked for

    def first(self, asked: Asked) -> Look:
        """Return the whole pictures."""
        return whole(asked, self.reason)

    def next(
        self, asked: Asked, looks: Sequence[Look], vision: VisionTokens, ranking: Ranking
    ) -> Look | None:
        """Return nothing."""
        del asked, looks, vision, ranking
        return None


FULL = Full()


def whole(asked: Asked, reason: str = "") -> Look:
    """Return the look at everything."""
    return Look(asked.prompt, asked.media, None, asked.budget, asked.total, reason=reason)


def within(asked: Asked, shown: int) -> Budget:
    """Return the budget of the whole pictures as one of the tokens that are shown of them."""
    if isinstance(asked.budget, (KeepRatio, KeepCount)):
        return KeepCount(min(asked.budget.plan(asked.total).keep, shown))
    return asked.budget


def keeps_everything(asked: Asked) -> bool:
    """Tell whether all tokens are to be kept, so that all must be encoded."""
    budget = asked.budget
    return isinstance(budget, (KeepRatio, KeepCount)) and (
        budget.plan(asked.total).keep == asked.total
    )


def showing(prompt: Prompt, places: Int64[Array, " m"]) -> Prompt:
    """Return a prompt without the rows of the other vision tokens. Positions stay as they were."""
    stays = np.ones(len(prompt.ids), np.bool_)
    stays[prompt.slots] = False
    stays[prompt.slots[places]] = True
    new = np.cumsum(stays) - 1
    return Prompt(
        ids=prompt.ids[stays],
        slots=new[prompt.slots[places]],
        words=prompt.words[stays],
        positions=prompt.positions[:, stays],
        next_position=prompt.next_position,
    )
