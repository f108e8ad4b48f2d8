"""The scorer that sees the tokens themselves and reads the question, beside the attention."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from tokprune_export.scorers.grid import TEXT_ROWS, last_rows, scaled, without_cell
from tokprune_export.scorers.paper import row_weights, shares

_EMPTY = -1.0  # in place of empty cells where the largest value is looked for: below GELU's least
_UNSAID = 1e4  # taken from what is no word of the user's where the largest value is looked for


class AskedScorer(nn.Module):
    """2-D convolutions over each region: attention, looks and the question are the channels.

    The first layer's attention says what it says about everything in the picture; what is asked
    for is learned here: a small attention of its own, from the user's words to the tokens' looks.
    Channels: the last text rows x heads as in GridScorer; for each head the mean and the largest
    attention of the user's words, wherever they stand; a linear map of the embeddings; for each
    head of the own attention the mean and the largest match of the user's words; and the largest
    values of a linear map of these words, the same for every token: the kind of question. After
    the first convolution every cell hears the mean and the largest values of all pictures and
    frames: how much there is to keep decides what a token is worth.
    """

    reads: ClassVar[tuple[str, ...]] = ()  # inputs beyond those that all scorers have
    width = 32
    looks = 24  # channels that the embeddings are mapped to
    told = 24  # channels that the words are mapped to
    heads, head_width = 8, 8  # of the own attention

    def __init__(self, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.word_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.look = nn.Linear(hidden, self.looks)
        self.tell = nn.Linear(hidden, self.told)
        self.key = nn.Linear(hidden, self.heads * self.head_width)
        self.query = nn.Linear(hidden, self.heads * self.head_width)
        channels = heads * (TEXT_ROWS + 2) + self.looks + 2 * self.heads + self.told
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

    def channels(
        self,
        features: Float[Tensor, "c n"],
        embeds: Float[Tensor, "n d"],
        words: Float[Tensor, "u d"],
        question: Bool[Tensor, " u"],
    ) -> Float[Tensor, "_ n"]:
        """Return all channels of one prompt."""
        seen, said = self.norm(embeds), self.word_norm(words)
        weight = row_weights(question, embeds.dtype)
        keys = self.key(seen).unflatten(1, (self.heads, -1)).transpose(0, 1)
        queries = self.query(said).unflatten(1, (self.heads, -1)).permute(1, 2, 0)
        match = keys @ queries * self.head_width**-0.5  # [head, n, u]
        mean = (torch.tanh(match) * weight).sum(dim=2) / weight.sum()
        best = 2 * torch.tanh((match + (weight - 1) * _UNSAID).amax(dim=2) / 2)
        kind = (self.tell(said) + (weight - 1)[:, None] * _UNSAID).amax(dim=0)
        kinds = kind[:, None].expand(-1, features.shape[1])
        return torch.cat([features, self.look(seen).T, mean, best, kinds])

    def logits(
        self,
        channels: Float[Tensor, "c n"],
        index: Int64[Tensor, "r rows columns"],
        cells: Int64[Tensor, " n"],
        prompts: Int64[Tensor, " r"] | None = None,
        follows: Float[Tensor, " r"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Run the convolutions.

        Args:
            channels: of every token.
            index: tokprune.canvas.
            cells: the same.
            prompts: tells regions of several prompts apart: 0, 0, 1, ...
            follows: tokprune.canvas, of networks that read it.
        """
        filled = (index >= 0)[:, None]
        x = channels[:, index.clamp(min=0)].transpose(0, 1) * filled
        x = functional.gelu(self.first(x)) * filled
        x = (x + self._whole(x, filled, prompts)) * filled
        x = self.deeper(x, filled, follows)
        return without_cell(self.readout(x).flatten()[cells], index, cells)

    def deeper(
        self,
        x: Float[Tensor, "r w rows columns"],
        filled: Bool[Tensor, "r 1 rows columns"],
        follows: Float[Tensor, " r"] | None,
    ) -> Float[Tensor, "r w rows columns"]:
        """Run what comes after the first convolution and what each region hears of the others."""
        del follows
        for layer in self.layers:
            x = x + functional.gelu(layer(x)) * filled
        return x

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
        words: Float[Tensor, "u d"],
        follows: Float[Tensor, " r"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Score one prompt."""
        channels = self.channels(self.features(attention, question), embeds, words, question)
        return shares(self.logits(channels, index, cells, follows=follows))
