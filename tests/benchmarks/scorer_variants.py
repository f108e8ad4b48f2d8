"""What a scorer could be otherwise: networks, inputs and losses that the ablation compares.

Each variant differs in one thing from one that is shipped or is the paper's, in two where its name
says so (method.md names the candidates: heads as channels, attention without rotary positions,
convolution over frames, a loss on ranks). What won on the development split is in
tokprune_export.scorers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from tokprune.types import FirstLayer as Seen
from tokprune.types import Prompt, VisionTokens
from tokprune_export.decoder import FirstLayer, TextModel
from tokprune_export.fitting import Loss
from tokprune_export.label_cache import Label, LabelCache
from tokprune_export.pairs import Batch
from tokprune_export.scorer_training import Objective, divergence, network_of
from tokprune_export.scorers import Arch, Network, PaperScorer, Size
from tokprune_export.scorers.paper import row_weights

Rows = Literal["rotated", "plain", "both"]  # attention with RoPE, without it, the heads of both
_TINY = 1e-12


class HeadsPaper(PaperScorer):
    """The paper's network with heads as channels, in the place of their mean."""

    def features(
        self, attention: Float[Tensor, "a u n"], question: Bool[Tensor, " u"]
    ) -> Float[Tensor, "a n"]:
        """Return the mean of the user's rows, head by head."""
        weight = row_weights(question, attention.dtype)
        mean = (attention * weight[:, None]).sum(dim=1) / weight.sum()
        return mean / mean.mean(dim=1, keepdim=True).clamp(min=_TINY)


def ranks(logits: Float[Tensor, "b n"], batch: Batch) -> Float[Tensor, " b"]:
    """Logistic loss of wrongly ordered pairs, each weighted by how far its targets are apart.

    RankNet (Burges et al. 2005) with graded pairs.
    """
    silent = ~batch.slots | logits.isneginf()
    scores = logits.masked_fill(silent, 0.0)
    apart = (batch.target[:, :, None] - batch.target[:, None]).clamp(min=0.0)
    apart = apart * (~silent[:, :, None] & ~silent[:, None])
    wrong = functional.softplus(scores[:, None] - scores[:, :, None])
    return (apart * wrong).sum(dim=(1, 2)) / apart.sum(dim=(1, 2)).clamp(min=_TINY)


@dataclass(frozen=True)
class Variant:
    """One way to make a scorer."""

    name: str
    base: str  # what it is compared with
    arch: Arch  # whose recipe it has
    loss: Loss
    rows: Rows = "rotated"
    network: type[PaperScorer] | None = None  # None: the one of its arch
    objective: Objective = divergence

    def untrained(self, size: Size, seed: int) -> Network:
        """Return the network; equal seeds give equal weights."""
        heads = size.heads * (2 if self.rows == "both" else 1)
        if self.network is None:
            return network_of(self.arch, Size(heads, size.hidden), seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.network(heads)


PAPER, GRID, EXPLAINED, ASKED = "paper", "grid", "asked, by relevance", "asked"
PICTURES = (
    Variant(PAPER, PAPER, "paper", "relevance"),
    Variant("paper, heads as channels", PAPER, "paper", "relevance", network=HeadsPaper),
    Variant("paper, attention without RoPE", PAPER, "paper", "relevance", "plain"),
    Variant("paper, heads with and without RoPE", PAPER, "paper", "relevance", "both", HeadsPaper),
    Variant("paper, loss on ranks", PAPER, "paper", "relevance", objective=ranks),
    Variant(GRID, PAPER, "grid", "relevance"),
    Variant(EXPLAINED, PAPER, "asked", "relevance"),
    Variant("asked, loss on ranks", EXPLAINED, "asked", "relevance", objective=ranks),
    Variant(ASKED, PAPER, "asked", "answers"),
    Variant("asked, attention without RoPE", ASKED, "asked", "answers", "plain"),
    Variant("asked, with and without RoPE", ASKED, "asked", "answers", "both"),
)
VIDEOS = (
    Variant(PAPER, PAPER, "paper", "relevance"),
    Variant(ASKED, PAPER, "asked", "answers"),
    Variant("asked, over frames", ASKED, "frames", "answers"),
)
BOTH = (
    Variant(ASKED, ASKED, "asked", "answers"),
    Variant("asked, over frames", ASKED, "frames", "answers"),
)


class Rotations:
    """The first layer's attention of one LLM, with rotary positions, without them, or both."""

    def __init__(self, text: TextModel) -> None:
        self._text, self._layer = text, FirstLayer(text)

    @torch.no_grad()
    def plain(self, ids: Tensor, slots: Tensor, embeds: Tensor, rows: int) -> Tensor:
        """Return the attention `[a, u, n]` of the last rows, all positions being the same."""
        inputs = self._text.embeddings[ids]
        inputs[slots] = embeds.to(inputs)
        nowhere = torch.zeros(self._text.position_axes, 1, len(ids), dtype=torch.int64)
        last = torch.arange(len(ids) - rows, len(ids))
        return self._layer(inputs[None], nowhere, last, slots)

    def of_label(self, label: Label, rows: Rows) -> Label:
        """Return the label as a network with other rows sees it."""
        if rows == "rotated":
            return label
        plain = self.plain(label.ids, label.slots, label.embeds, len(label.question)).half()
        return replace(label, attention=_joined(label.attention, plain, rows), glance=None)

    def of_prompt(self, prompt: Prompt, vision: VisionTokens, first: Seen, rows: Rows) -> Seen:
        """Return the same of what the runtime computed."""
        if rows == "rotated":
            return first
        ids, slots = torch.from_numpy(prompt.ids), torch.from_numpy(prompt.slots)
        embeds = torch.from_numpy(vision.embeds.astype("float32"))
        plain = self.plain(ids, slots, embeds, len(first.question))
        return replace(
            first, attention=_joined(torch.from_numpy(first.attention), plain, rows).numpy()
        )


def _joined(rotated: Tensor, plain: Tensor, rows: Rows) -> Tensor:
    return plain if rows == "plain" else torch.cat([rotated, plain])


class Labels(LabelCache):
    """Labels as networks with other rows see them."""

    def __init__(self, cache: LabelCache, rotations: Rotations, rows: Rows) -> None:
        self._cache = cache
        self._seen = partial(rotations.of_label, rows=rows)

    def __contains__(self, sample: str) -> bool:
        return sample in self._cache

    def is_wrong(self, sample: str) -> bool:
        """Whether the checkpoint answered this sample wrongly."""
        return self._cache.is_wrong(sample)

    def read(self, samples: Iterable[str]) -> dict[str, Label]:
        """Return the labels of those samples."""
        return {name: self._seen(label) for name, label in self._cache.read(samples).items()}
