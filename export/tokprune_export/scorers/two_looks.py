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
        self.reads = ("glance", *extra_inputs(whole, glance))

    def forward(
        self,
        attention: Float[Tensor, "a u n"],
        question: Bool[Tensor, " u"],
        index: Int64[Tensor, "r rows columns"],
        cells: Int64[Tensor, " n"],
        embeds: Float[Tensor, "n d"],
        words: Float[Tensor, "u d"],
        glance: Float[Tensor, " 1"],
        follows: Float[Tensor, " r"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Score one prompt; `glance` is 1 for the first of two looks, else 0."""
        given = (attention, question, index, cells, embeds, words)
        known = {} if follows is None else {"follows": follows}
        seen, looked = (
            network(*given, **{name: known[name] for name in extra_inputs(network)})
            for network in (self.whole, self.glance)
        )
        return torch.where(glance > 0.5, looked, seen)


def extra_inputs(*networks: nn.Module) -> tuple[str, ...]:
    """Return the inputs of scorers beyond those that all have, each once."""
    names = (name for network in networks for name in getattr(network, "reads", ()))
    return tuple(dict.fromkeys(names))
