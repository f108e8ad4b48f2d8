"""The scorer that sees the tokens themselves, beside what attends to them."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from tokprune_export.scorers.grid import TEXT_ROWS, last_rows, scaled, without_cell
from tokprune_export.scorers.paper import row_weights, shares

_EMPTY = -1.0  # in place of empty cells where the largest value is looked for: below GELU's least


class LooksScorer(nn.Module):
    """2-D convolutions over each region: attention and the tokens' looks are the channels.

    Attention says what is asked for; looks say which tokens show the same thing and which show
    nothing. Channels: the last text rows x heads as in GridScorer; for each head the mean and the
    largest attention of the user's words, wherever they stand; a linear map of the embeddings.
    After the first convolution every cell hears the mean and the largest values of all pictures and
    frames: how much there is to keep decides what a token is worth.
    """

    width = 32
    looks = 24  # channels that the embeddings are mapped to

    def __init__(self, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.look = nn.Linear(hidden, self.looks)
        channels = heads * (TEXT_ROWS + 2) + self.looks
        self.first = nn.Conv2d(channels, self.width, 3, padding=1)
        self.whole = nn.Linear(2 * self.width, self.width)
        self.layers = nn.ModuleList(
            nn.Conv2d(self.width, self.width, 3, padding=1) for _ in range(2)
        )
        self.readout = nn.Conv2d(self.width, 1, 1)

    def features(
        self, attention: Float[Tensor, "a u n"], question: Bool[Tensor, " u"]
    ) -> Float[Tensor, "c n"]:
        """Return the channels that come from attention, on a scale that suits any n."""
        weight = row_weights(question, attention.dtype)
        asked = attention * weight[:, None]  # TensorRT takes no product of a vector and a stack
        mean, largest = asked.sum(dim=1) / weight.sum(), asked.amax(dim=1)
        return torch.cat([last_rows(attention), scaled(mean), scaled(largest)])

    def logits(
        self,
        features: Float[Tensor, "c n"],
        embeds: Float[Tensor, "n d"],
        index: Int64[Tensor, "r rows columns"],
        cells: Int64[Tensor, " n"],
        prompts: Int64[Tensor, " r"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Run the convolutions. `prompts` tells regions of several prompts apart: 0, 0, 1, ..."""
        channels = torch.cat([features, self.look(self.norm(embeds)).T])
        filled = (index >= 0)[:, None]
        x = channels[:, index.clamp(min=0)].transpose(0, 1) * filled
        x = functional.gelu(self.first(x)) * filled
        x = (x + self._whole(x, filled, prompts)) * filled
        for layer in self.layers:
            x = x + functional.gelu(layer(x)) * filled
        return without_cell(self.readout(x).flatten()[cells], index, cells)

    def _whole(
        self,
        x: Float[Tensor, "r w rows columns"],
        filled: Bool[Tensor, "r 1 rows columns"],
        prompts: Int64[Tensor, " r"] | None,
    ) -> Float[Tensor, "_ w 1 1"]:
        """Return what each region hears of its whole prompt."""
        sums, counts = x.sum(dim=(2, 3)), filled.to(x.dtype).sum(dim=(2, 3))
        tops = torch.where(filled, x, _EMPTY).amax(dim=(2, 3))
        if prompts is None:
            mean = sums.sum(dim=0, keepdim=True) / counts.sum()
            top = tops.amax(dim=0, keepdim=True)
        else:
            size = int(prompts.max()) + 1
            total = sums.new_zeros(size, 1).index_add(0, prompts, counts)
            mean = (sums.new_zeros(size, sums.shape[1]).index_add(0, prompts, sums) / total)[
                prompts
            ]
            empty = tops.new_full((size, tops.shape[1]), _EMPTY)
            places = prompts[:, None].expand_as(tops)
            top = empty.scatter_reduce(0, places, tops, "amax")[prompts]
        return self.whole(torch.cat([mean, top], dim=1))[:, :, None, None]

    def forward(
        self,
        attention: Float[Tensor, "a u n"],
        question: Bool[Tensor, " u"],
        index: Int64[Tensor, "r rows columns"],
        cells: Int64[Tensor, " n"],
        embeds: Float[Tensor, "n d"],
    ) -> Float[Tensor, " n"]:
        """Score one prompt."""
        return shares(self.logits(self.features(attention, question), embeds, index, cells))
