"""A VLM whose logits can be seen."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokprune.vlm import VLM
from tokprune_runtimes import Array, Carry, Feeds, Graph, Interrupt, Loop


class RecordingGraph:
    """Passes everything on, and keeps the logits of every step."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.logits = graph, list[Array]()

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        return self.graph.run(feeds, interrupt)

    def loop(self, carries: Sequence[Carry]) -> "RecordingLoop":
        return RecordingLoop(self.graph.loop(carries), self.logits)


class RecordingLoop:
    """One loop of a recording graph."""

    def __init__(self, loop: Loop, logits: list[Any]) -> None:
        self.loop, self.logits = loop, logits

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        if feeds["inputs_embeds"].shape[1] > 1:
            self.logits.clear()  # a prompt: another answer begins
        outputs = self.loop.step(feeds, interrupt)
        self.logits.append(outputs["logits"][0, -1].copy())
        return outputs

    def rewind(self, length: int) -> None:
        self.loop.rewind(length)


def recorded(vlm: VLM) -> tuple[VLM, list[Array]]:
    """Return the same VLM, and the list that holds the logits of its last answer."""
    graph = RecordingGraph(vlm.model.llm.graph)
    llm = replace(vlm.model.llm, graph=graph)
    return VLM(replace(vlm.model, llm=llm)), graph.logits
