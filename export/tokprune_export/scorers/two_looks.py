"""Two scorers in one graph: one for what is looked at once, one for the first of two looks."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn


class TwoLooks(nn.Module):
    """Runs both networks and takes one's scores: they are small, and engines branch badly.

    A network that learns from both loses on each (docs/encode.md has figures).
    """

    def __init__(self, whole: nn.Module, glance: nn.Module) -> None:
        super().__init__()
        self.whole, self.glance = whole, glance

    def forward(
        self,
        attention: Float[Tensor, "a u n"],
        question: Bool[Tensor, " u"],
        index: Int64[Tensor, "r rows columns"],
        cells: Int64[Tensor, " n"],
        embeds: Float[Tensor, "n d"],
        words: Float[Tensor, "u d"],
        glance: Float[Tensor, " 1"],
    ) -> Float[Tensor, " n"]:
        """Score one prompt; `glance` is 1 for the first of two looks, else 0."""
        given = (attention, question, index, cells, embeds, words)
        return torch.where(glance > 0.5, self.glance(*given), self.whole(*given))
