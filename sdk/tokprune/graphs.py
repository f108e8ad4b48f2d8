"""The host side of the three small graphs: arrays of the flow in, arrays of the flow out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tokprune.canvas import canvas, follows
from tokprune.llm import LanguageModel
from tokprune.types import Array, Feeds, First, FirstLayer, Prepared, Prompt, Scores, VisionTokens
from tokprune_runtimes import Graph


def any_shape(feeds: Feeds) -> None:
    """Refuse nothing: ONNX Runtime takes every shape."""
    del feeds


@dataclass(frozen=True)
class VisionEncoder:
    """Runs the vision encoder once for each call that a family prepared."""

    graph: Graph
    check: Callable[[Feeds], None] = any_shape  # refuses a call that the engine does not take

    def check_all(self, pictures: Sequence[Prepared]) -> None:
        """Refuse pictures that the engine does not take, before it runs.

        Raises:
            EngineTooSmall: with the numbers.
        """
        for picture in pictures:
            for call in picture.calls:
                self.check(call)

    def __call__(self, pictures: Sequence[Prepared]) -> VisionTokens:
        """Encode all pictures of a prompt, which may have none."""
        embeds: list[Array] = []
        saliency: list[Array] = []
        for picture in pictures:
            outputs = [self.graph.run(call) for call in picture.calls]
            embeds.append(picture.pack([output["vision_tokens"] for output in outputs]))
            if "saliency" in outputs[0]:  # packed as vision tokens with one channel
                channel = [output["saliency"][..., None] for output in outputs]
                saliency.append(picture.pack(channel)[:, 0])
        return VisionTokens(
            embeds=np.concatenate(embeds) if embeds else np.zeros((0, 0), np.float32),
            where=np.concatenate([np.zeros((0, 7), np.int32), *(p.where for p in pictures)]),
            regions=tuple(region for picture in pictures for region in picture.regions),
            saliency=np.concatenate(saliency) if saliency else None,
        )


@dataclass(frozen=True)
class FirstLayerGraph:
    """The first LLM layer's attention, from text after the last vision token to vision tokens."""

    graph: Graph
    llm: LanguageModel

    def run(self, prompt: Prompt, vision: VisionTokens) -> FirstLayer:
        """Run the graph now."""
        rows: Array = np.arange(int(prompt.slots[-1]) + 1, len(prompt.ids))
        outputs = self.graph.run(
            {
                "inputs_embeds": self.llm.prompt_embeds(prompt, vision)[None],
                "position_ids": prompt.positions[:, None],
                "rows": rows,
                "columns": prompt.slots,
            }
        )
        words = self.llm.embed(prompt.ids[rows])
        return FirstLayer(outputs["attention"], prompt.words[rows], words)

    def __call__(self, prompt: Prompt, vision: VisionTokens) -> First:
        """Return what runs the graph when it is first read, and remembers the result."""
        return cache(lambda: self.run(prompt, vision))


@dataclass(frozen=True)
class ScorerGraph:
    """Maps first-layer attention, and what tokens look like, to relevance.

    Feeds what the graph declares.
    """

    graph: Graph
    inputs: frozenset[str]

    def __call__(self, vision: VisionTokens, first: FirstLayer) -> Scores:
        """Predict each vision token's share of the relevance."""
        layout = canvas(vision.where, vision.regions)
        offered: dict[str, Array] = {
            "attention": first.attention,
            "question": first.question,
            "index": layout.tokens,
            "cells": layout.cells,
            "embeds": vision.embeds,
            "words": first.words,
            "follows": follows(vision.regions),
            "glance": np.full(1, vision.glance, np.float32),
        }
        feeds = {name: value for name, value in offered.items() if name in self.inputs}
        return self.graph.run(feeds)["relevance"]
