"""Run an exported graph on one engine: named arrays in, named arrays out.

This is the lowest layer. It knows engines, and nothing of vision tokens or prompts.
"""

from tokprune_runtimes.arrays import Array, Carry, Feeds
from tokprune_runtimes.graph import BACKENDS, Backend, Graph, Loop, load_graph
from tokprune_runtimes.interrupt import Interrupt

__all__ = [
    "BACKENDS",
    "Array",
    "Backend",
    "Carry",
    "Feeds",
    "Graph",
    "Interrupt",
    "Loop",
    "load_graph",
]
