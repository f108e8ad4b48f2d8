"""Scorer networks over the grids of pictures and frames."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from tokprune_export.scorers.paper import shares

TEXT_ROWS = 20  # the last rows before the answer that are read


def last_rows(attention: Float[Tensor, "a u n"]) -> Float[Tensor, "c n"]:
    """Return the last rows, right-aligned, missing ones zero, on a scale that suits any n."""
    heads, _, tokens = attention.shape
    empty = attention.new_zeros(heads, TEXT_ROWS, tokens)
    rows = torch.cat([empty, attention], dim=1)[:, -TEXT_ROWS:]
    return scaled(rows).reshape(-1, tokens)


def scaled(attention: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
    """Bring attention to a scale that does not depend on n."""
    return torch.log1p(attention * (4 * attention.shape[-1]))


def without_cell(
    scores: Float[Tensor, " n"],
    index: Int64[Tensor, "r rows columns"],
    cells: Int64[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Return the scores, -inf where a token has no cell: newlines."""
    tokens = torch.arange(cells.shape[0], device=cells.device)
    return torch.where(index.flatten()[cells] == tokens, scores, float("-inf"))


class GridScorer(nn.Module):
    """Three 2-D convolutions over each region; the last text rows x heads are the channels.

    Empty cells of the canvas act as the zero padding of a convolution at every layer, so a picture
    scores the same alone and on a bigger canvas. Newline tokens have no cell and score 0.
    """

    width = 32

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(heads * TEXT_ROWS, self.width, 3, padding=1),
                nn.Conv2d(self.width, self.width, 3, padding=1),
            ]
        )
        self.readout = nn.Conv2d(self.width, 1, 1)

    def features(
        self, attention: Float[Tensor, "a u n"], question: Bool[Tensor, " u"]
    ) -> Float[Tensor, "c n"]:
        """Return the last rows, right-aligned, missing ones zero, on a scale that suits any n."""
        del question
        return last_rows(attention)

    def logits(
        self,
        features: Float[Tensor, "c n"],
        index: Int64[Tensor, "r rows columns"],
        cells: Int64[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """Run the convolutions. Regions do not touch, so several prompts may share one call."""
        filled = (index >= 0)[:, None]
        x = features[:, index.clamp(min=0)].transpose(0, 1) * filled
        for layer in self.layers:
            x = functional.gelu(layer(x)) * filled
        return without_cell(self.readout(x).flatten()[cells], index, cells)

    def forward(
        self,
        attention: Float[Tensor, "a u n"],
        question: Bool[Tensor, " u"],
        index: Int64[Tensor, "r rows columns"],
        cells: Int64[Tensor, " n"],
        embeds: Float[Tensor, "n d"],
        words: Float[Tensor, "u d"],
    ) -> Float[Tensor, " n"]:
        """Score one prompt."""
        del embeds, words
        return shares(self.logits(self.features(attention, question), index, cells))
