"""The whole data flow: picture -> vision encoder -> first layer -> scorer -> selection -> LLM."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tokprune.budgets import Budget
from tokprune.llm import Token
from tokprune.looking import FULL, Asked, Look, Looking
from tokprune.selection import select
from tokprune.types import First, Prepared, Prompt, Ranking, Selection, VisionTokens

VisionGraph: TypeAlias = Callable[[Sequence[Prepared]], VisionTokens]
FirstLayerGraph: TypeAlias = Callable[[Prompt, VisionTokens], First]
Rank: TypeAlias = Callable[[Look, VisionTokens, First], Ranking]
Select: TypeAlias = Callable[[Ranking, VisionTokens, Budget], Selection]
Llm: TypeAlias = Callable[[Prompt, VisionTokens, Selection], Iterator[Token]]


@dataclass(frozen=True)
class Flow:
    """What an answer is made of: the vision tokens, those kept, and the tokens as they come."""

    looks: tuple[Look, ...]  # the last is what it is read from
    vision: VisionTokens  # of the last look
    selection: Selection  # of these
    tokens: Iterator[Token]


@dataclass(frozen=True)
class Pipeline:
    """One deployed model: its graphs, and how vision tokens are chosen between them."""

    vision_graph: VisionGraph
    first_layer: FirstLayerGraph
    rank: Rank
    llm: Llm
    select: Select = select
    looking: Looking = FULL

    def answer(self, asked: Asked) -> Flow:
        """Answer a question about its pictures, which are looked at once or several times."""
        look, looks = self.looking.first(asked), list[Look]()
        while True:
            looks.append(look)
            vision = replace(self.vision_graph(look.media), glance=not look.last)
            first = self.first_layer(look.prompt, vision)  # lazy: computed when it is read
            ranking = self.rank(look, vision, first)
            closer = self.looking.next(asked, looks, vision, ranking)
            if closer is None:
                break
            look = closer
        selection = self.select(ranking, vision, look.budget)
        tokens = self.llm(look.prompt, vision, selection)
        return Flow(tuple(looks), vision, selection, tokens)
