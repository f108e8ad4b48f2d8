"""A small SigLIP vision encoder, and a forward pass for training."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from attention import attend
from torch import Tensor

from demos.demo import Pixels, Size

GREY = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
PATCH_PX, HEADS = 14, 4


def settings(size: Size, image_px: int, layers: int, mlp: int) -> dict[str, Any]:
    """The configuration."""
    return {
        "model_type": "siglip_vision_model",
        "image_size": image_px,
        "patch_size": PATCH_PX,
        "hidden_size": size.vision_width,
        "intermediate_size": mlp * size.vision_width,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "vision_use_head": False,
    }


def forward(tower: Any, pixel_values: Tensor, layers: int) -> Tensor:
    """Hidden states [t, p, e] after so many layers of squares [t, 3, px, px], no norm after them.

    Squares smaller than the configuration's see its positions interpolated.
    """
    embeddings, encoder = tower.embeddings, tower.encoder
    kernel = embeddings.patch_embedding
    x = F.linear(unfold(pixel_values), kernel.weight.flatten(1), kernel.bias)
    x = x + _positions(embeddings.position_embedding.weight, x.shape[1])
    for layer in encoder.layers[:layers]:
        attention = layer.self_attn
        hidden = layer.layer_norm1(x)
        q, k, v = (
            project(hidden).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        x = x + attention.out_proj(attend(q * attention.scale, k, v, None))
        x = x + layer.mlp(layer.layer_norm2(x))
    return x


def unfold(pixel_values: Tensor) -> Tensor:
    """Patches [t, p, 588] of squares [t, 3, px, px], row by row."""
    side = pixel_values.shape[-1] // PATCH_PX
    grid = pixel_values.unflatten(3, (side, PATCH_PX)).unflatten(2, (side, PATCH_PX))
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def patches(pixels: Pixels) -> Tensor:
    """Patches [m, 588] of a batch."""
    return unfold(pixels["pixel_values"]).flatten(0, 1)


def _positions(table: Tensor, patches: int) -> Tensor:
    if len(table) == patches:
        return table
    full, side = round(len(table) ** 0.5), round(patches**0.5)
    grid = table.float().T.unflatten(1, (full, full))[None]
    small = F.interpolate(grid, (side, side), mode="bilinear", antialias=True)
    return small[0].flatten(1).T


def initialise(tower: Any, layers: int) -> None:
    """Give initial weights that learn fast; the patch embedding's come later."""
    with torch.no_grad():
        for name, weight in tower.named_parameters():
            if weight.ndim == 1:
                continue
            std = 0.8 / weight[0].numel() ** 0.5
            if "position" in name:
                std = 0.3
            elif "out_proj" in name or "fc2" in name:
                std /= (2 * layers) ** 0.5
            weight.normal_(0, std)
