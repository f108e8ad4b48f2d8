"""The paper's scorer network, and the mean of the attention that needs no training."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

_TINY = 1e-12


def mean_rows(
    attention: Float[Tensor, "a u n"], question: Bool[Tensor, " u"]
) -> Float[Tensor, " n"]:
    """Average over heads and the user's words (over all rows where none is marked)."""
    weight = row_weights(question, attention.dtype)
    return torch.matmul(weight / weight.sum(), attention.mean(dim=0))


def row_weights(question: Bool[Tensor, " u"], dtype: torch.dtype) -> Float[Tensor, " u"]:
    """Return 1 for the user's words and 0 for other rows; 1 for all where none is marked."""
    marked = question.to(dtype)
    return torch.where(marked.sum() > 0, marked, torch.ones_like(marked))


def shares(logits: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Normalise. TensorRT takes no softmax of a vector, so it is one of a matrix of one row."""
    return logits[None].softmax(dim=1)[0]


class AttentionMean(nn.Module):
    """Relevance without training: the mean attention, normalised."""

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
        del index, cells, embeds, words
        scores = mean_rows(attention, question)
        return scores / scores.sum().clamp(min=_TINY)


class PaperScorer(nn.Module):
    """The paper's network over the raster of vision tokens.

    Stated there: mean over the instruction's rows, five depthwise-separable 1-D convolutions of 32
    to 512 channels, a pointwise one, softmax. Open there, chosen here: mean over heads, division by
    the mean, kernel 7, GELU. The raster is an image of one row: in channels-last order, CPUs train
    2-D convolutions of 1 x 7 a third faster than 1-D ones.
    """

    widths = (32, 64, 128, 256, 512)
    kernel = 7

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        inputs = (channels, *self.widths[:-1])
        self.depthwise = nn.ModuleList(
            nn.Conv2d(width, width, (1, self.kernel), padding=(0, self.kernel // 2), groups=width)
            for width in inputs
        )
        self.pointwise = nn.ModuleList(
            nn.Conv2d(width, wider, 1) for width, wider in zip(inputs, self.widths, strict=True)
        )
        self.readout = nn.Conv2d(self.widths[-1], 1, 1)

    def features(
        self, attention: Float[Tensor, "a u n"], question: Bool[Tensor, " u"]
    ) -> Float[Tensor, "1 n"]:
        """Return the network's input, on a scale that does not depend on n."""
        scores = mean_rows(attention, question)
        return (scores / scores.mean().clamp(min=_TINY))[None]

    def logits(
        self, features: Float[Tensor, "b c m"], mask: Bool[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b m"]:
        """Run the convolutions. Where `mask` is False is padding, and acts as the edge does."""
        x = features[:, :, None]
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            x = functional.gelu(pointwise(depthwise(x)))
            if mask is not None:
                x = x * mask[:, None, None]
        return self.readout(x)[:, 0, 0]

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
        del index, cells, embeds, words
        return shares(self.logits(self.features(attention, question)[None])[0])
