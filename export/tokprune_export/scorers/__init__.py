"""The scorer graph: from the first layer's attention to the relevance of every vision token.

    AttentionMean   no parameters: what the question attends to
    PaperScorer     the network of arXiv:2506.01097, open points as in its class
    GridScorer      rows and heads as channels of small 2-D convolutions over each region's grid
    AskedScorer     the same, what the tokens look like, and the words of the question
    FramesScorer    the same, over the frames before and after too (`follows [r]`)
    TwoLooks        two of these, the second for the first of two looks (`glance [1]`)

All take `attention [a, u, n]`, `question [u]`, `index [r, rows, columns]` and `cells [n]`
(tokprune.canvas), `embeds [n, d]` and `words [u, d]` (what the LLM is fed of the text rows), and
give `relevance [n]`, which sums to 1.
"""

from tokprune_export.scorers.asked import AskedScorer
from tokprune_export.scorers.files import (
    NETWORKS,
    Arch,
    Network,
    Scorer,
    Size,
    load_scorer,
    save_scorer,
    size_of,
)
from tokprune_export.scorers.frames import FramesScorer
from tokprune_export.scorers.grid import TEXT_ROWS, GridScorer
from tokprune_export.scorers.paper import AttentionMean, PaperScorer, mean_rows
from tokprune_export.scorers.two_looks import TwoLooks, extra_inputs

__all__ = [
    "NETWORKS",
    "TEXT_ROWS",
    "Arch",
    "AskedScorer",
    "AttentionMean",
    "FramesScorer",
    "GridScorer",
    "Network",
    "PaperScorer",
    "Scorer",
    "Size",
    "TwoLooks",
    "extra_inputs",
    "load_scorer",
    "mean_rows",
    "save_scorer",
    "size_of",
]
