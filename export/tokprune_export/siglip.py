"""SigLIP's vision encoder as a module that exports, over the weights of an HF one.

Follows transformers' SiglipVisionModel (5.23).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokprune_export.layers import LayerNorm, Linear, frozen, like, softmax
from tokprune_export.saliency import Watch, received, watched


class Block(nn.Module):
    """One layer."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        attention = source.self_attn
        self.heads: int = attention.num_heads
        self.attention_norm = LayerNorm(source.layer_norm1)
        self.mlp_norm = LayerNorm(source.layer_norm2)
        self.query, self.key = Linear(attention.q_proj), Linear(attention.k_proj)
        self.value, self.output = Linear(attention.v_proj), Linear(attention.out_proj)
        self.up, self.down = Linear(source.mlp.fc1), Linear(source.mlp.fc2)
        self.activation = source.mlp.activation_fn

    def forward(self, x: Float[Tensor, "t p e"]) -> tuple[Tensor, Tensor, Tensor]:
        """Let every patch of a tile attend to every other. Queries and keys are returned too."""
        hidden = self.attention_norm(x)
        projected = [
            project(hidden).unflatten(-1, (self.heads, -1))
            for project in (self.query, self.key, self.value)
        ]
        query, key, value = (each.transpose(1, 2) for each in projected)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        mixed = softmax(scores) @ value
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        x = x + self.down(self.activation(self.up(self.mlp_norm(x))))
        return x, projected[0], projected[1]


class Siglip(nn.Module):
    """Squares of pixels to hidden states, row by row, before any last norm.

    `outputs` counts as `hidden_states` of transformers does: 0 is what enters the first layer, -1
    what leaves the last. Several are joined in their order. Layers after them are left out.
    """

    def __init__(self, source: Any, outputs: Sequence[int], saliency_layers: int = 0) -> None:
        super().__init__()
        tower = source.base_model  # itself, since transformers 5.23
        kernel = tower.embeddings.patch_embedding.weight  # kernel = stride: it is a product
        self.side: int = kernel.shape[-1]
        self.patches: int = tower.config.image_size // self.side  # a side
        self.patch = frozen(kernel.flatten(1).t())
        self.patch_bias = frozen(tower.embeddings.patch_embedding.bias)
        self.positions = frozen(tower.embeddings.position_embedding.weight)
        layers = tower.encoder.layers
        self.outputs = [output % (len(layers) + 1) for output in outputs]
        self.blocks = nn.ModuleList(Block(layer) for layer in layers[: max(self.outputs)])
        self.salient = range(len(self.blocks) - saliency_layers, len(self.blocks))

    def forward(self, pixel_values: Float[Tensor, "t 3 s s"]) -> tuple[Tensor, Tensor | None]:
        """Encode each tile by itself: states [t, p, e], and the saliency of patches [t, p]."""
        inside = self.patches * self.side  # what does not fill a patch is cut off
        grid = pixel_values[:, :, :inside, :inside].unflatten(3, (self.patches, self.side))
        cut = grid.unflatten(2, (self.patches, self.side)).permute(0, 2, 4, 1, 3, 5)
        x = cut.flatten(3).flatten(1, 2) @ like(self.patch, cut)
        x = x + like(self.patch_bias, x) + like(self.positions, x)
        states, shares = [x], list[Tensor]()
        for number, block in enumerate(self.blocks):
            x, query, key = block(x)
            states.append(x)
            if number in self.salient:
                shares.append(received(query, key))
        joined = torch.cat([states[output] for output in self.outputs], dim=-1)
        return joined, torch.stack(shares).sum(0) if shares else None


def layers_used(outputs: Sequence[int], depth: int) -> int:
    """Return how many of `depth` layers are needed for these outputs."""
    return max(output % (depth + 1) for output in outputs)


def watched_layers(source: Any, outputs: Sequence[int], layers: int) -> Watch:
    """Watch the last layers of an HF encoder that are used."""
    found = source.base_model.encoder.layers
    used = layers_used(outputs, len(found))
    return watched([layer.self_attn for layer in found[used - layers : used]])
