"""Selectors by name. One row each; any function of the type `Selector` works without a row."""

from collections.abc import Callable

from tokprune.errors import RequestInvalid, lookup
from tokprune.selectors.baselines import attention, random_tokens, uniform
from tokprune.selectors.crops import globalcom2
from tokprune.selectors.frames import evs, ts_llava, vidcom2
from tokprune.selectors.pooling import pool
from tokprune.selectors.relevance import (
    attention_coverage,
    attention_spread,
    relevance,
    relevance_coverage,
    relevance_mmr,
    relevance_spread,
    scope_relevance,
    spread_alone,
)
from tokprune.selectors.selector import Inputs, Method, Need, Scorer, Selector
from tokprune.selectors.training_free import (
    apet,
    apet_merge,
    cdpruner,
    dart,
    divprune,
    flashvlm,
    recoverable,
    scope,
    vtc_cls,
)


def _needs(*needs: Need) -> frozenset[Need]:
    return frozenset(needs)


def _by(make: Callable[[Scorer], Selector]) -> Callable[[Inputs], Selector]:
    """Build from the scorer alone."""
    return lambda given: make(given.scorer)


def _of(selector: Selector) -> Callable[[Inputs], Selector]:
    """Build from nothing."""

    def make(given: Inputs) -> Selector:
        del given
        return selector

    return make


SELECTORS: dict[str, Method] = {
    "relevance": Method(_by(relevance), _needs("scorer")),
    "relevance-spread": Method(_by(relevance_spread), _needs("scorer")),
    "relevance-coverage": Method(_by(relevance_coverage), _needs("scorer")),
    "relevance-mmr": Method(_by(relevance_mmr), _needs("scorer")),
    "scope-relevance": Method(_by(scope_relevance), _needs("scorer")),
    "attention": Method(_of(attention)),
    "attention-spread": Method(_of(attention_spread)),
    "attention-coverage": Method(_of(attention_coverage)),
    "spread": Method(_of(spread_alone), reads_question=False),
    "cdpruner": Method(cdpruner),
    "dart": Method(dart),
    "divprune": Method(_of(divprune()), reads_question=False),
    "apet": Method(_of(apet), reads_question=False),
    "apet-merge": Method(_of(apet_merge), reads_question=False),
    "scope": Method(_of(scope()), _needs("saliency"), reads_question=False),
    "vtc-cls": Method(_of(vtc_cls), _needs("saliency"), reads_question=False),
    "flashvlm": Method(flashvlm, _needs("saliency")),
    "recoverable": Method(recoverable, _needs("saliency")),
    "globalcom2": Method(_of(globalcom2), _needs("saliency", "tiles"), reads_question=False),
    "evs": Method(_of(evs), _needs("frames"), reads_question=False),
    "vidcom2": Method(_of(vidcom2), _needs("frames"), reads_question=False),
    "ts-llava": Method(_of(ts_llava), _needs("frames"), reads_question=False),
    "pool": Method(_of(pool), reads_question=False),
    "random": Method(_of(random_tokens()), reads_question=False),
    "uniform": Method(_of(uniform), reads_question=False),
}
# An error without a trained scorer.
LEARNED = frozenset(name for name, method in SELECTORS.items() if "scorer" in method.needs)

# Whose rankings have scores: they can say where to look closer.
SCORING = LEARNED | {"attention", "attention-spread", "attention-coverage"}

# Whose choice the question does not change: pictures can be pinned with them.
AGNOSTIC = frozenset(name for name, method in SELECTORS.items() if not method.reads_question)

# What comparisons carry, and no bundle can run.
ELSEWHERE = {
    "full": "no pruning at all: ask with a budget of 1.0",
    "downsample": "smaller pictures, as few tokens as a budget allows: make them before asking",
    "oracle": "the true relevance, which takes the checkpoint and its answer",
}


def method_of(name: str) -> Method:
    """Return the row of a selector.

    Raises:
        RequestInvalid: no selector has that name.
    """
    if name in ELSEWHERE:
        raise RequestInvalid(
            f"{name!r} is no selector but {ELSEWHERE[name]}. The tables of `tokprune-eval` have "
            f"it beside the selectors, which are {', '.join(sorted(SELECTORS))}"
        )
    return lookup(SELECTORS, name, "selector")


__all__ = [
    "AGNOSTIC",
    "LEARNED",
    "SCORING",
    "SELECTORS",
    "Inputs",
    "Method",
    "Need",
    "Scorer",
    "Selector",
    "method_of",
]
