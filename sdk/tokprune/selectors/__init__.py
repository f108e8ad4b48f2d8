"""Selectors by name. One row each; any function of the type `Selector` works without a row."""

from collections.abc import Callable

from tokprune.selectors.baselines import attention, random_tokens, uniform
from tokprune.selectors.relevance import attention_coverage, relevance, relevance_coverage
from tokprune.selectors.selector import Scorer, Selector

# Each builds a selector from the bundle's scorer graph.
SELECTORS: dict[str, Callable[[Scorer], Selector]] = {
    "relevance": relevance,
    "relevance-coverage": relevance_coverage,
    "attention": lambda _: attention,
    "attention-coverage": lambda _: attention_coverage,
    "random": lambda _: random_tokens(),
    "uniform": lambda _: uniform,
}
LEARNED = frozenset({"relevance", "relevance-coverage"})  # an error without a trained scorer

__all__ = ["LEARNED", "SELECTORS", "Scorer", "Selector"]
