"""The scorer that reads the question, convolving over the frames of a video too."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from tokprune_export.scorers.asked import AskedScorer


class FramesScorer(AskedScorer):
    """As AskedScorer; its further convolutions are 3 x 3 x 3: regions, rows and columns.

    Regions are in the order in which the LLM sees them. Those of a video are its frames, and a
    thing that moves is met in the one before and in the one after; those of a tiled picture are
    the whole and its crops, where it is for the training to find out what they have in common.
    """

    def __init__(self, heads: int, hidden: int) -> None:
        super().__init__(heads, hidden)
        self.layers = nn.ModuleList(
            nn.Conv2d(3 * self.width, self.width, 3, padding=1) for _ in range(2)
        )

    def deeper(
        self,
        x: Float[Tensor, "r w rows columns"],
        filled: Bool[Tensor, "r 1 rows columns"],
        prompts: Int64[Tensor, " r"] | None,
    ) -> Float[Tensor, "r w rows columns"]:
        """Run the further convolutions. Before the first region and after the last is nothing."""
        for layer in self.layers:
            near = torch.cat([_moved(x, 1, prompts), x, _moved(x, -1, prompts)], dim=1)
            x = x + functional.gelu(layer(near)) * filled
        return x


def _moved(
    x: Float[Tensor, "r w rows columns"], by: int, prompts: Int64[Tensor, " r"] | None
) -> Float[Tensor, "r w rows columns"]:
    """Return what stands one region before (1) or after (-1), within the same prompt; else 0."""
    # padded and cut: a single region leaves no tensor without elements, which engines dislike
    edge = torch.zeros_like(x[:1])
    moved = torch.cat([edge, x])[:-1] if by == 1 else torch.cat([x, edge])[1:]
    if prompts is None:
        return moved
    same = prompts.roll(by) == prompts  # what rolls round meets the edge
    return moved * same[:, None, None, None]
