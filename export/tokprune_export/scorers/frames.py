"""The scorer that reads the question, convolving over the frames of a video too."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from tokprune_export.scorers.asked import AskedScorer


class FramesScorer(AskedScorer):
    """As AskedScorer; its further convolutions are 3 x 3 x 3: frames, rows and columns.

    A thing that moves is met in the frame before and in the one after. `follows [r]` tells which
    regions are frames of one video, one after the other (tokprune.canvas): pictures and the crops
    of one are convolved each alone.
    """

    reads: ClassVar = ("follows",)

    def __init__(self, heads: int, hidden: int) -> None:
        super().__init__(heads, hidden)
        self.layers = nn.ModuleList(
            nn.Conv2d(3 * self.width, self.width, 3, padding=1) for _ in range(2)
        )

    def deeper(
        self,
        x: Float[Tensor, "r w rows columns"],
        filled: Bool[Tensor, "r 1 rows columns"],
        follows: Float[Tensor, " r"] | None,
    ) -> Float[Tensor, "r w rows columns"]:
        """Run the further convolutions. Before a video's first frame and after its last is 0."""
        assert follows is not None
        told = follows[:, None, None, None]
        for layer in self.layers:
            # padded and cut: one region leaves no tensor without elements, which engines dislike
            edge = torch.zeros_like(x[:1])
            before, after = torch.cat([edge, x])[:-1] * told, torch.cat([x * told, edge])[1:]
            x = x + functional.gelu(layer(torch.cat([before, x, after], dim=1))) * filled
        return x
