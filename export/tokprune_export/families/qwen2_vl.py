"""Qwen2-VL: the vision encoder as a graph, and random prompts for the parity gate.

Follows transformers' Qwen2VisionTransformerPretrainedModel (5.23).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tokprune.families.qwen_patches import patch_positions
from tokprune_export.decoder import TextModel
from tokprune_export.errors import ExportRefused
from tokprune_export.families.family import Config, Family, Trial
from tokprune_export.families.mrope_trials import TOKEN_IDS, Clip, make_trials
from tokprune_export.families.text_settings import check_text
from tokprune_export.layers import LayerNorm, Linear, frozen, like, rotate, softmax
from tokprune_export.loading import load_module
from tokprune_export.onnx import Input, Source
from tokprune_export.saliency import outputs, received, watched


def check(config: Config) -> None:
    """Refuse settings that the graphs would silently ignore."""
    missing = [name for name in TOKEN_IDS if not isinstance(config.get(name), int)]
    if missing:
        raise ExportRefused(f"config.json lacks {', '.join(missing)}")
    check_text(config.get("text_config", config), mrope=True)


def load(folder: Path, layers: int | None) -> Any:
    """Return the HF module in float32, with its first `layers` decoder layers only, if given."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    config = Qwen2VLConfig.from_pretrained(folder)
    return load_module(Qwen2VLForConditionalGeneration, folder, config, layers)


def text(model: Any) -> TextModel:
    """Return the language half."""
    decoder = model.model.language_model
    config = decoder.config
    return TextModel(
        model=decoder,
        head=model.lm_head,
        mrope_section=tuple(decoder.rotary_emb.mrope_section),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
    )


class Block(nn.Module):
    """One layer of the vision encoder."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.heads: int = source.attn.num_heads
        self.attention_norm, self.mlp_norm = LayerNorm(source.norm1), LayerNorm(source.norm2)
        self.qkv, self.output = Linear(source.attn.qkv), Linear(source.attn.proj)
        self.up, self.down = Linear(source.mlp.fc1), Linear(source.mlp.fc2)
        self.activation = source.mlp.act

    def forward(
        self, x: Float[Tensor, "f p e"], rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Let every patch of a frame attend to every other. Queries and keys are returned too."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.unbind(2)
        query, key = rotate(query, rotation), rotate(key, rotation)
        scores = (query * query.shape[-1] ** -0.5).transpose(1, 2) @ key.permute(0, 2, 3, 1)
        mixed = softmax(scores) @ value.transpose(1, 2)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(self.activation(self.up(self.mlp_norm(x)))), query, key


def patch_rotation(
    positions: Int64[Tensor, "p 2"], inverse_frequencies: Float[Tensor, " r"], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of each patch's row and column, in the precision of `x`."""
    angles = (positions[..., None].float() * inverse_frequencies).flatten(1)
    angles = torch.cat((angles, angles), dim=-1)[None, :, None]
    return like(angles.cos(), x), like(angles.sin(), x)


class VisionEncoder(nn.Module):
    """Frames of one size to vision tokens. Positions are inputs, so any grid will do."""

    def __init__(self, source: Any, saliency_layers: int = 0) -> None:
        super().__init__()
        kernel = source.patch_embed.proj.weight  # kernel = stride: the convolution is a product
        self.patch = frozen(kernel.flatten(1).t())
        self.inverse_frequencies = frozen(source.rotary_pos_emb.inv_freq.float())
        self.blocks = nn.ModuleList(Block(block) for block in source.blocks)
        self.salient = range(len(self.blocks) - saliency_layers, len(self.blocks))
        self.unit: int = source.spatial_merge_size**2
        merger = source.merger
        self.merge_norm, self.activation = LayerNorm(merger.ln_q), merger.mlp[1]
        self.up, self.down = Linear(merger.mlp[0]), Linear(merger.mlp[2])

    def forward(
        self, pixel_values: Float[Tensor, "f p c"], positions: Int64[Tensor, "p 2"]
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Encode each frame by itself: vision tokens [f, q, d], and their saliency [f, q]."""
        rotation = patch_rotation(positions, self.inverse_frequencies, pixel_values)
        x = pixel_values @ like(self.patch, pixel_values)
        shares: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x, query, key = block(x, rotation)
            if number in self.salient:
                shares.append(received(query, key))
        x = self.merge_norm(x).unflatten(1, (-1, self.unit)).flatten(2)
        tokens = self.down(self.activation(self.up(x)))
        return (tokens, merged(shares, self.unit)) if shares else tokens


def merged(shares: list[Float[Tensor, "f p"]], unit: int) -> Float[Tensor, "f q"]:
    """Return the saliency of vision tokens from what their patches get in each layer."""
    return torch.stack(shares).sum(0).unflatten(1, (-1, unit)).mean(2)


def attention_layers(config: Config) -> int:
    """Return the vision encoder's layers."""
    return config["vision_config"].get("depth", 32)


def vision(model: Any, saliency_layers: int = 0) -> Source:
    """Return the vision encoder, to be traced with 3 frames of 6 x 4 vision tokens."""
    source = model.model.visual
    merge = source.spatial_merge_size
    axis = f"{merge**2}*q"
    positions = torch.from_numpy(patch_positions(6, 4, merge))
    channels = source.patch_embed.proj.weight[0].numel()
    pixels = torch.zeros(3, len(positions), channels)
    return Source(
        VisionEncoder(source, saliency_layers),
        inputs=(
            Input("pixel_values", pixels, ("F", axis, channels)),
            Input("positions", positions, (axis, 2)),
        ),
        outputs=outputs("F", "q", source.config.hidden_size, layers=saliency_layers),
    )


TRIALS: dict[str, tuple[Clip, ...]] = {
    "1x1": (Clip(1, 1, 1),),
    "8x3": (Clip(1, 8, 3),),
    "10x14": (Clip(1, 10, 14),),
    "5x7 and 4x2": (Clip(1, 5, 7), Clip(1, 4, 2)),
    "2 frames of 3x5": (Clip(2, 3, 5),),
    "8 frames of 4x2": (Clip(8, 4, 2),),  # longer than it is wide
}


def trials(model: Any) -> Iterator[Trial]:
    """Yield prompts of sizes that were not traced."""
    return make_trials(model, TRIALS, lambda shown: shown, timed=False)


def encode(model: Any, inputs: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
    """Run HF's own vision encoder."""
    still = "pixel_values" in inputs
    pixels = inputs["pixel_values" if still else "pixel_values_videos"]
    grids = inputs["image_grid_thw" if still else "video_grid_thw"]
    return model.model.visual(pixels, grid_thw=grids).pooler_output


def saliency(model: Any, inputs: Mapping[str, Tensor], layers: int) -> Float[Tensor, " n"]:
    """Run HF's own vision encoder, and watch its last layers."""
    visual = model.model.visual
    with watched([block.attn for block in visual.blocks[-layers:]]) as total:
        encode(model, inputs)
        return total().unflatten(0, (-1, visual.spatial_merge_size**2)).mean(1)


FAMILY = Family(
    check=check,
    load=load,
    text=text,
    vision=vision,
    attention_layers=attention_layers,
    trials=trials,
    encode=encode,
    saliency=saliency,
)
