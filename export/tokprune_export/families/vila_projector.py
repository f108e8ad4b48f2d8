"""VILA's projector: squares of patches to vision tokens.

Follows MultimodalProjector and DownSampleBlock of NVlabs/VILA.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tokprune.families.vila import ARRANGEMENTS


class Pack(nn.Module):
    """Packs squares of `unit` x `unit` patches into the channels of one token.

    Channels run over the rows of a square, then over its columns. The squares follow one another
    down the columns of the picture, or along its rows.
    """

    def __init__(self, projector: str) -> None:
        super().__init__()
        self.unit, self.column_major = ARRANGEMENTS[projector]

    def forward(self, x: Float[Tensor, "t p e"]) -> Float[Tensor, "t q f"]:
        """Take patches row by row."""
        side = round(x.shape[1] ** 0.5)
        missing = -side % self.unit
        grid = x.unflatten(1, (side, side))
        if missing:
            grid = functional.pad(grid, (0, 0, 0, missing, 0, missing))
        squares = grid.unflatten(2, (-1, self.unit)).unflatten(1, (-1, self.unit))
        order = (0, 3, 1, 2, 4, 5) if self.column_major else (0, 1, 3, 2, 4, 5)
        return squares.permute(order).flatten(3).flatten(1, 2)


class PackedMean(nn.Module):
    """The mean over the patches of each square, those that fill an odd edge not counted."""

    def __init__(self, projector: str) -> None:
        super().__init__()
        self.pack = Pack(projector)

    def forward(self, x: Float[Tensor, "t p"]) -> Float[Tensor, "t q"]:
        """Take values row by row."""
        patches = self.pack(torch.ones_like(x[:1, :, None])).sum(-1)
        return self.pack(x[..., None]).sum(-1) / patches


class Projector(nn.Module):
    """From SigLIP's width to Llama's. Its parameters have the names that checkpoints give them."""

    def __init__(self, kind: str, width: int, hidden: int) -> None:
        super().__init__()
        packed = width * ARRANGEMENTS[kind].unit ** 2
        last = (nn.GELU(), nn.Linear(hidden, hidden))
        self.layers: nn.Module
        match kind:
            case "linear":
                self.layers = nn.Linear(width, hidden)
            case "mlp2x_gelu":
                self.layers = nn.Sequential(nn.Linear(width, hidden), *last)
            case "mlp_downsample_3x3_fix":
                between = 3 * width
                first = (Pack(kind), nn.LayerNorm(packed), nn.Linear(packed, between), nn.GELU())
                second = (nn.LayerNorm(between), nn.Linear(between, hidden), *last)
                self.layers = nn.Sequential(*first, *second)
            case _:
                first = (Pack(kind), nn.LayerNorm(packed), nn.Linear(packed, hidden))
                self.layers = nn.Sequential(*first, *last)

    def forward(self, x: Float[Tensor, "t p e"]) -> Float[Tensor, "t n d"]:
        """Make vision tokens."""
        return self.layers(x)
