"""What the host feeds to the small graphs."""

import numpy as np
from grids import first_layer, vision_tokens

from tokprune.canvas import canvas
from tokprune.graphs import ScorerGraph
from tokprune.types import Array, Feeds

VISION = vision_tokens((3, 4), (2, 2), hidden=32)
FIRST = first_layer(VISION, np.ones(16, np.float32))


class Recording:
    """A graph that keeps what it was fed."""

    def __init__(self) -> None:
        self.feeds: Feeds = {}

    def run(self, feeds: Feeds, interrupt: object = None) -> dict[str, Array]:
        del interrupt
        self.feeds = feeds
        return {"relevance": np.ones(16, np.float32)}

    def loop(self, carries: object) -> object:
        raise NotImplementedError(carries)


def fed(*names: str) -> Feeds:
    graph = Recording()
    ScorerGraph(graph, frozenset(names))(VISION, FIRST)  # pyright: ignore[reportArgumentType]
    return graph.feeds


def test_a_scorer_gets_what_it_declares_and_no_more() -> None:
    assert set(fed("attention")) == {"attention"}
    feeds = fed("attention", "question", "index", "cells", "embeds")
    layout = canvas(VISION.where, VISION.regions)
    assert feeds["embeds"] is VISION.embeds
    assert (feeds["index"] == layout.tokens).all()
    assert (feeds["cells"] == layout.cells).all()
    assert set(feeds) == {"attention", "question", "index", "cells", "embeds"}
