"""The whole data flow: picture -> vision encoder -> first layer -> scorer -> selection -> LLM."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tokprune.budgets import Budget
from tokprune.llm import Token
from tokprune.selection import select
from tokprune.selectors import Selector
from tokprune.types import First, Prepared, Prompt, Ranking, Selection, VisionTokens

VisionGraph: TypeAlias = Callable[[Sequence[Prepared]], VisionTokens]
FirstLayerGraph: TypeAlias = Callable[[Prompt, VisionTokens], First]
Select: TypeAlias = Callable[[Ranking, VisionTokens, Budget], Selection]
Llm: TypeAlias = Callable[[Prompt, VisionTokens, Selection], Iterator[Token]]


@dataclass(frozen=True)
class Flow:
    """What an answer is made of: the vision tokens, those kept, and the tokens as they come."""

    vision: VisionTokens
    selection: Selection
    tokens: Iterator[Token]


@dataclass(frozen=True)
class Pipeline:
    """One deployed model: its graphs, and how vision tokens are chosen between them."""

    vision_graph: VisionGraph
    first_layer: FirstLayerGraph
    selector: Selector
    llm: Llm
    select: Select = select

    def answer(self, prompt: Prompt, pictures: Sequence[Prepared], budget: Budget) -> Flow:
        """Answer `prompt` about its pictures."""
        vision = self.vision_graph(pictures)
        first = self.first_layer(prompt, vision)  # lazy: computed when a selector reads it
        ranking = self.selector(prompt, vision, first)
        selection = self.select(ranking, vision, budget)
        tokens = self.llm(prompt, vision, selection)
        return Flow(vision, selection, tokens)
