"""Qwen2.5-VL: the vision encoder as a graph, and random prompts for the parity gate.

Follows transformers' Qwen2_5_VisionTransformerPretrainedModel (5.23), which puts patches of a
window next to each other and back at the end. Here they stay where they are; layers with local
attention gather them into windows of one size, so that their cost grows with the number of patches
and not with its square.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tokprune.families import qwen2_5_vl as numpy_half
from tokprune.families.qwen2_5_vl import Encoder, with_windows
from tokprune.families.qwen_patches import patch_positions
from tokprune_export.errors import ExportRefused
from tokprune_export.families import qwen2_vl
from tokprune_export.families.family import Config, Family, Trial
from tokprune_export.families.mrope_trials import Clip, make_trials
from tokprune_export.families.qwen2_vl import merged, patch_rotation
from tokprune_export.layers import Linear, RmsNorm, frozen, like, rotate, softmax
from tokprune_export.loading import load_module
from tokprune_export.onnx import Input, Source
from tokprune_export.saliency import outputs, received, watched


class _Layers(msgspec.Struct, frozen=True):
    """What config.json says of the vision encoder's layers; defaults are those of the HF class."""

    depth: int = 32
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)  # others attend to their window


def check(config: Config) -> None:
    """Refuse settings that the graphs would silently ignore."""
    qwen2_vl.check(config)
    vision = dict(config.get("vision_config") or {})
    try:
        msgspec.convert({"vision_config": vision}, numpy_half.Config).encoder()
        layers = msgspec.convert(vision, _Layers)
    except ValueError as error:  # msgspec's errors are such
        raise ExportRefused(f"config.json: {error}") from None
    if set(range(layers.depth)) <= set(layers.fullatt_block_indexes):
        raise ExportRefused(
            f"config.json has fullatt_block_indexes = {list(layers.fullatt_block_indexes)}, which "
            "leaves no layer with window attention. Expected at least one"
        )


def load(folder: Path, layers: int | None) -> Any:
    """Return the HF module in float32, with its first `layers` decoder layers only, if given."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig.from_pretrained(folder)
    return load_module(Qwen2_5_VLForConditionalGeneration, folder, config, layers)


class Block(nn.Module):
    """One layer of the vision encoder."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.heads: int = source.attn.num_heads
        self.attention_norm, self.mlp_norm = RmsNorm(source.norm1), RmsNorm(source.norm2)
        self.qkv, self.output = Linear(source.attn.qkv), Linear(source.attn.proj)
        self.gate, self.up = Linear(source.mlp.gate_proj), Linear(source.mlp.up_proj)
        self.down, self.activation = Linear(source.mlp.down_proj), source.mlp.act_fn

    def forward(
        self,
        x: Float[Tensor, "f p e"],
        rotation: tuple[Tensor, Tensor],
        windows: tuple[Tensor, Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Let every patch attend to its window, or to its whole frame where `windows` is None.

        Windows are given as the patches of each, the bias of their keys, and the way back. Queries
        and keys are returned too, as they were compared.
        """
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.unbind(2)
        query, key = rotate(query, rotation), rotate(key, rotation)
        if windows is None:
            mixed = attention(query, key, value)
        else:
            members, bias, places = windows
            query, key, value = (
                each.index_select(1, members.flatten()).unflatten(1, members.shape)
                for each in (query, key, value)
            )
            mixed = attention(query, key, value, bias).flatten(1, 2).index_select(1, places)
        x = x + self.output(mixed.flatten(2))
        hidden = self.mlp_norm(x)
        x = x + self.down(self.activation(self.gate(hidden)) * self.up(hidden))
        return x, query, key


def attention(
    query: Float[Tensor, "*w s a hd"],
    key: Float[Tensor, "*w s a hd"],
    value: Float[Tensor, "*w s a hd"],
    bias: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "*w s a hd"]:
    """Let all rows of a window attend to each other, `bias` added to the scores."""
    query, key, value = (each.transpose(-3, -2) for each in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return (softmax(scores, bias) @ value).transpose(-3, -2)


class VisionEncoder(nn.Module):
    """Frames of one size to vision tokens. Positions and windows are inputs: any grid will do."""

    def __init__(self, source: Any, saliency_layers: int = 0) -> None:
        super().__init__()
        kernel = source.patch_embed.proj.weight  # kernel = stride: the convolution is a product
        self.patch = frozen(kernel.flatten(1).t())
        self.inverse_frequencies = frozen(source.rotary_pos_emb.inv_freq.float())
        self.blocks = nn.ModuleList(Block(block) for block in source.blocks)
        self.full = full_layers(source.fullatt_block_indexes, len(self.blocks))
        self.salient = self.full[len(self.full) - saliency_layers :]
        self.unit: int = source.spatial_merge_size**2
        merger = source.merger
        self.merge_norm, self.activation = RmsNorm(merger.ln_q), merger.mlp[1]
        self.up, self.down = Linear(merger.mlp[0]), Linear(merger.mlp[2])

    def forward(
        self,
        pixel_values: Float[Tensor, "f p c"],
        positions: Int64[Tensor, "p 2"],
        windows: Int64[Tensor, "w s"],
        places: Int64[Tensor, " p"],
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Encode each frame by itself: vision tokens [f, q, d], and their saliency [f, q].

        Args:
            pixel_values: patches, those of a vision token together.
            positions: row and column of each patch.
            windows: the patches of each window, -1 where it has no more.
            places: of each patch in `windows`, as one row.
        """
        rotation = patch_rotation(positions, self.inverse_frequencies, pixel_values)
        x = pixel_values @ like(self.patch, pixel_values)
        lowest = torch.finfo(torch.float32).min
        empty = windows < 0
        bias = torch.where(empty, lowest, 0.0)[:, None, None]
        local = (torch.where(empty, 0, windows), bias, places)
        shares: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x, query, key = block(x, rotation, None if number in self.full else local)
            if number in self.salient:
                shares.append(received(query, key))
        x = self.merge_norm(x).unflatten(1, (-1, self.unit)).flatten(2)
        tokens = self.down(self.activation(self.up(x)))
        return (tokens, merged(shares, self.unit)) if shares else tokens


def full_layers(listed: Iterable[int], depth: int) -> list[int]:
    """Return the layers without windows, ascending; others that are listed mean nothing."""
    return sorted(set(range(depth)) & set(listed))


def attention_layers(config: Config) -> int:
    """Return the number of layers without windows."""
    layers = msgspec.convert(dict(config.get("vision_config") or {}), _Layers)
    return len(full_layers(layers.fullatt_block_indexes, layers.depth))


def vision(model: Any, saliency_layers: int = 0) -> Source:
    """Return the vision encoder, to be traced with 3 frames of 6 x 4 vision tokens."""
    source, encoder = model.model.visual, _encoder(model)
    merge = encoder.spatial_merge_size
    axis = f"{merge**2}*q"
    positions = torch.from_numpy(patch_positions(6, 4, merge))
    channels = source.patch_embed.proj.weight[0].numel()
    pixels = torch.zeros(3, len(positions), channels)
    places = torch.zeros(len(positions), dtype=torch.int64)
    patches = (encoder.side * merge) ** 2  # of a whole window
    # a trace asks for shapes only: a number of windows that no other axis has
    windows = torch.zeros(5, patches, dtype=torch.int64)
    return Source(
        VisionEncoder(source, saliency_layers),
        inputs=(
            Input("pixel_values", pixels, ("F", axis, channels)),
            Input("positions", positions, (axis, 2)),
            Input("windows", windows, ("W", patches)),
            Input("places", places, (axis,)),
        ),
        outputs=outputs("F", "q", source.config.out_hidden_size, layers=saliency_layers),
    )


def _encoder(model: Any) -> Encoder:
    return msgspec.convert(model.config.vision_config.to_dict(), Encoder)


TRIALS: dict[str, tuple[Clip, ...]] = {  # published windows have 4 x 4 vision tokens
    "1x1": (Clip(1, 1, 1),),
    "8x4": (Clip(1, 8, 4),),
    "10x13": (Clip(1, 10, 13),),
    "5x7 and 4x2": (Clip(1, 5, 7), Clip(1, 4, 2)),
    "2 frames of 3x5": (Clip(2, 3, 5, step_s=1 / 3),),
    "8 frames of 5x2": (Clip(8, 5, 2, step_s=2 / 1.7),),
    "3 frames of 2x3 and 2 of 4x1": (Clip(3, 2, 3, step_s=4.0), Clip(2, 4, 1, step_s=0.08)),
}


def trials(model: Any) -> Iterator[Trial]:
    """Yield prompts of sizes that were not traced."""
    return make_trials(model, TRIALS, partial(with_windows, _encoder(model)), timed=True)


def saliency(model: Any, inputs: Mapping[str, Tensor], layers: int) -> Float[Tensor, " n"]:
    """Run HF's own vision encoder, and watch its last layers without windows."""
    from transformers.vision_utils import get_vision_window_index

    visual, encoder = model.model.visual, _encoder(model)
    full = full_layers(visual.fullatt_block_indexes, len(visual.blocks))
    merge = encoder.spatial_merge_size
    with watched([visual.blocks[number].attn for number in full[-layers:]]) as total:
        qwen2_vl.encode(model, inputs)
        shares = total().unflatten(0, (-1, merge**2)).mean(1)
    still = "image_grid_thw" in inputs
    order, _ = get_vision_window_index(
        inputs["image_grid_thw" if still else "video_grid_thw"],
        spatial_merge_size=merge,
        window_size=encoder.window_size,
        patch_size=encoder.patch_size,
    )
    return shares[order.argsort()]


FAMILY = Family(
    check=check,
    load=load,
    text=qwen2_vl.text,
    vision=vision,
    attention_layers=attention_layers,
    trials=trials,
    encode=qwen2_vl.encode,
    saliency=saliency,
)
