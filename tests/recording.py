"""A VLM whose logits can be seen."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokprune.vlm import VLM
from tokprune_runtimes import Array, Carry, Feeds, Graph, Loop


class RecordingGraph:
    """Passes everything on, and keeps the logits of every step."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.logits = graph, list[Array]()

    def run(self, feeds: Feeds) -> dict[str, Array]:
        return self.graph.run(feeds)

    def loop(self, carries: Sequence[Carry]) -> "RecordingLoop":
        self.logits.clear()
        return RecordingLoop(self.graph.loop(carries), self.logits)


class RecordingLoop:
    """One loop of a recording graph."""

    def __init__(self, loop: Loop, logits: list[Any]) -> None:
        self.loop, self.logits = loop, logits

    def step(self, feeds: Feeds) -> dict[str, Array]:
        outputs = self.loop.step(feeds)
        self.logits.append(outputs["logits"][0, -1].copy())
        return outputs

    def rewind(self, length: int) -> None:
        self.loop.rewind(length)


def recorded(vlm: VLM) -> tuple[VLM, list[Array]]:
    """Return the same VLM, and the list that holds the logits of its last answer."""
    graph = RecordingGraph(vlm.llm.graph)
    return replace(vlm, llm=replace(vlm.llm, graph=graph)), graph.logits
