"""A loaded bundle whose graphs a test looks into, and whose answers go on to their length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokprune import load
from tokprune.vlm import VLM
from tokprune_runtimes import Array, Carry, Feeds, Graph, Interrupt, Loop

Entered = Callable[[str, Interrupt | None], None]  # a graph's name; called before every run
Left = Callable[[str], None]  # after it, however it ended


@dataclass
class Watch:
    """What is called around every run of every graph."""

    entered: Entered | None = None
    left: Left | None = None

    def run(
        self, name: str, interrupt: Interrupt | None, run: Callable[[], dict[str, Array]]
    ) -> dict[str, Array]:
        try:
            if self.entered is not None:
                self.entered(name, interrupt)
            return run()
        finally:
            if self.left is not None:
                self.left(name)


@dataclass
class Watched:
    """A graph or a loop of one."""

    inner: Any
    name: str
    watch: Watch

    def run(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        return self.watch.run(self.name, interrupt, lambda: self.inner.run(feeds, interrupt))

    def loop(self, carries: Sequence[Carry]) -> Loop:
        return Watched(self.inner.loop(carries), self.name, self.watch)

    def step(self, feeds: Feeds, interrupt: Interrupt | None = None) -> dict[str, Array]:
        name = "prefill" if feeds["inputs_embeds"].shape[1] > 1 else "decode"
        return self.watch.run(name, interrupt, lambda: self.inner.step(feeds, interrupt))

    def rewind(self, length: int) -> None:
        self.inner.rewind(length)


def watched(
    bundle: Path, watch: Watch, *, endless: bool = False, form: str = "ort", **options: Any
) -> VLM:
    """Load a bundle; `endless`: no token ends an answer."""
    with load(bundle, backend="cpu", threads=1, llm_form=form) as loaded:
        model = loaded.model

    def seen(graph: Graph, name: str) -> Graph:
        return Watched(graph, name, watch)

    llm = replace(model.llm, graph=seen(model.llm.graph, "llm"))
    if endless:
        never = model.bundle.manifest.tokens.image  # no answer has it
        llm = replace(llm, eos=frozenset({never}))
    first = replace(model.first_layer, graph=seen(model.first_layer.graph, "first_layer"), llm=llm)
    return VLM(
        replace(
            model,
            vision=replace(model.vision, graph=seen(model.vision.graph, "vision")),
            first_layer=first,
            scorer=replace(model.scorer, graph=seen(model.scorer.graph, "scorer")),
            llm=llm,
        ),
        **options,
    )
