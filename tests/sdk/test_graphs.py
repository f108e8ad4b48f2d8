"""What the host feeds to the small graphs."""

import numpy as np
from grids import first_layer, vision_tokens

from tokprune.canvas import canvas, follows
from tokprune.graphs import ScorerGraph
from tokprune.types import Array, Feeds, Region

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


def test_frames_follow_each_other_and_nothing_else_does() -> None:
    regions = (
        Region(0, 0, 0, 2, 2),  # a picture, and its crops
        Region(0, 0, 1, 2, 2),
        Region(0, 0, 2, 2, 2),
        Region(1, 0, 0, 2, 2),  # a video, and another that is not shown from its first frame
        Region(1, 1, 0, 2, 2),
        Region(1, 4, 0, 2, 2),
        Region(2, 5, 0, 2, 2),
        Region(2, 6, 0, 2, 2),
    )
    assert follows(regions).tolist() == [0, 0, 0, 0, 1, 1, 0, 1]
    assert fed("follows")["follows"].tolist() == follows(VISION.regions).tolist()
