"""Selectors by name. One row each; any function of the type `Selector` works without a row."""

from collections.abc import Callable

from tokprune.selectors.baselines import attention, random_tokens, uniform
from tokprune.selectors.relevance import (
    attention_coverage,
    attention_spread,
    relevance,
    relevance_coverage,
    relevance_spread,
    spread_alone,
)
from tokprune.selectors.selector import Scorer, Selector

# Each builds a selector from the bundle's scorer graph.
SELECTORS: dict[str, Callable[[Scorer], Selector]] = {
    "relevance": relevance,
    "relevance-spread": relevance_spread,
    "relevance-coverage": relevance_coverage,
    "attention": lambda _: attention,
    "attention-spread": lambda _: attention_spread,
    "attention-coverage": lambda _: attention_coverage,
    "spread": lambda _: spread_alone,
    "random": lambda _: random_tokens(),
    "uniform": lambda _: uniform,
}
LEARNED = frozenset(
    {"relevance", "relevance-spread", "relevance-coverage"}
)  # an error without a trained scorer

# Whose choice the question does not change: pictures can be pinned with them.
AGNOSTIC = frozenset({"spread", "uniform", "random"})

__all__ = ["AGNOSTIC", "LEARNED", "SELECTORS", "Scorer", "Selector"]
