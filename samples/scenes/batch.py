"""The tensors of a training step."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

PAD_SEGMENT = -1


@dataclass(frozen=True)
class Batch:
    """Tensors of some rows. n counts the vision tokens of all of them."""

    pixels: dict[str, Tensor]  # what the family's `encode` takes
    cells: Tensor  # [n, 8] what each vision token shows, see cells.py
    events: Tensor  # [n, 2] in a film: what the thing there has done so far, and since when
    places: Tensor  # [n, 3] frame, row and column of each vision token
    ids: Tensor  # [b, s]
    slots: Tensor  # [b, s] whether a vision token stands there
    labels: Tensor  # [b, s] the next token where it is answered, else IGNORED
    segments: Tensor  # [b, s] 0 prefix, 1.. branches, PAD_SEGMENT
    groups: Tensor  # [b, s]
    questions: Tensor  # [b, s] number of the question that a label belongs to
    positions: Tensor  # [p, b, s]
    referents: Tensor  # [b, s, parts] classes of the thing that a phrase means, at its last token

    letters: Tensor  # [b, s] where the next character of a spelled text is seen, else IGNORED

    def to(self, device: str) -> "Batch":
        """The same on a device."""
        names = [f.name for f in fields(self) if f.name != "pixels"]
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, pixels={k: v.to(device) for k, v in self.pixels.items()}, **moved)


def attention_bias(segments: Tensor, blocked: float) -> Tensor:
    """[b, 1, s, s]: causal, and a branch sees the prefix and itself."""
    keys, queries = segments[:, None, :], segments[:, :, None]
    seen = ((keys == 0) | (keys == queries)) & (keys != PAD_SEGMENT)
    length = segments.shape[1]
    seen &= torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    seen |= torch.eye(length, dtype=torch.bool, device=segments.device)  # no empty row
    return torch.zeros(seen.shape, device=segments.device).masked_fill_(~seen, blocked)[:, None]
