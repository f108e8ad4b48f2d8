"""Qwen2-VL: the vision encoder as a graph, and random prompts for the parity gate.

Follows transformers' Qwen2VisionTransformerPretrainedModel (5.23).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tokprune.families import Span
from tokprune.families.qwen2_vl import from_patches, patch_positions
from tokprune.types import Prepared, Region
from tokprune_export.checkpoint import load_module
from tokprune_export.decoder import Linear, TextModel, frozen, rotate
from tokprune_export.errors import ExportRefused
from tokprune_export.families.family import Config, Family, Trial
from tokprune_export.families.text_settings import check_text
from tokprune_export.onnx import Input, Output, Source

TOKEN_IDS = (
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
)


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
        self.attention_norm, self.mlp_norm = source.norm1, source.norm2
        self.qkv, self.output = Linear(source.attn.qkv), Linear(source.attn.proj)
        self.up, self.down = Linear(source.mlp.fc1), Linear(source.mlp.fc2)
        self.activation = source.mlp.act

    def forward(self, x: Float[Tensor, "f p e"], rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Let every patch of a frame attend to every other."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.unbind(2)
        query, key = rotate(query, rotation), rotate(key, rotation)
        scores = (query * query.shape[-1] ** -0.5).transpose(1, 2) @ key.permute(0, 2, 3, 1)
        mixed = torch.softmax(scores, dim=-1) @ value.transpose(1, 2)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.down(self.activation(self.up(self.mlp_norm(x))))


class VisionEncoder(nn.Module):
    """Frames of one size to vision tokens. Positions are inputs, so any grid will do."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        kernel = source.patch_embed.proj.weight  # kernel = stride: the convolution is a product
        self.patch = frozen(kernel.flatten(1).t())
        self.inverse_frequencies = frozen(source.rotary_pos_emb.inv_freq.float())
        self.blocks = nn.ModuleList(Block(block) for block in source.blocks)
        self.unit: int = source.spatial_merge_size**2
        merger = source.merger
        self.merge_norm, self.activation = merger.ln_q, merger.mlp[1]
        self.up, self.down = Linear(merger.mlp[0]), Linear(merger.mlp[2])

    def forward(
        self, pixel_values: Float[Tensor, "f p c"], positions: Int64[Tensor, "p 2"]
    ) -> Float[Tensor, "f q d"]:
        """Encode each frame by itself."""
        angles = (positions[..., None].float() * self.inverse_frequencies).flatten(1)
        angles = torch.cat((angles, angles), dim=-1)[None, :, None]
        rotation = (angles.cos(), angles.sin())
        x = pixel_values @ self.patch
        for block in self.blocks:
            x = block(x, rotation)
        x = self.merge_norm(x).unflatten(1, (-1, self.unit)).flatten(2)
        return self.down(self.activation(self.up(x)))


def vision(model: Any) -> Source:
    """Return the vision encoder, to be traced with 3 frames of 6 x 4 vision tokens."""
    source = model.model.visual
    merge = source.spatial_merge_size
    axis = f"{merge**2}*q"
    positions = torch.from_numpy(patch_positions(6, 4, merge))
    channels = source.patch_embed.proj.weight[0].numel()
    pixels = torch.zeros(3, len(positions), channels)
    return Source(
        VisionEncoder(source),
        inputs=(
            Input("pixel_values", pixels, ("F", axis, channels)),
            Input("positions", positions, (axis, 2)),
        ),
        outputs=(Output("vision_tokens", ("F", "q", source.config.hidden_size)),),
    )


class Clip(NamedTuple):
    """A picture (1 temporal patch) or a video (more), its size counted in vision tokens."""

    frames: int
    rows: int
    columns: int


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
    for seed, (name, clips) in enumerate(TRIALS.items()):
        yield _trial(model, name, clips, torch.Generator().manual_seed(seed))


def _trial(model: Any, name: str, clips: Sequence[Clip], random: torch.Generator) -> Trial:
    config, merge = model.config, model.config.vision_config.spatial_merge_size
    video = clips[0].frames > 1
    words = _words(config, random, len(clips))
    ids, kinds, spans = [*next(words)], [], [Span(0)]
    for index, clip in enumerate(clips):
        count = clip.frames * clip.rows * clip.columns
        ids += [config.vision_start_token_id]
        kinds += [0] * (len(ids) - len(kinds))
        spans.append(Span(len(ids) - sum(span.length for span in spans)))
        ids += [config.video_token_id if video else config.image_token_id] * count
        kinds += [2 if video else 1] * count
        regions = (Region(index, f, 0, clip.rows, clip.columns) for f in range(clip.frames))
        spans.append(Span(count, tuple(regions)))
        ids += [config.vision_end_token_id, *next(words)]
    kinds += [0] * (len(ids) - len(kinds))
    spans.append(Span(len(ids) - sum(span.length for span in spans)))
    media = tuple(_random(model, index, clip, random) for index, clip in enumerate(clips))
    inputs = _hf_inputs(ids, kinds, clips, media, merge, video=video)
    grids = {key: inputs[key] for key in inputs if key.endswith("_grid_thw")}
    positions, delta = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], **grids
    )
    return Trial(
        name=name,
        ids=inputs["input_ids"][0],
        slots=torch.tensor(kinds).nonzero()[:, 0],
        spans=tuple(span for span in spans if span.length),
        positions=positions,
        next_position=len(ids) + int(delta),
        media=media,
        inputs=inputs,
    )


def _words(config: Any, random: torch.Generator, clips: int) -> Iterator[list[int]]:
    """Yield random text: before the first clip, and after each one."""
    special = {getattr(config, name) for name in TOKEN_IDS}
    plain = torch.tensor([i for i in range(config.text_config.vocab_size) if i not in special])
    for length in (4, *[3] * (clips - 1), 11):
        yield plain[torch.randint(len(plain), (length,), generator=random)].tolist()


def _random(model: Any, index: int, clip: Clip, random: torch.Generator) -> Prepared:
    merge = model.config.vision_config.spatial_merge_size
    channels = model.model.visual.patch_embed.proj.weight[0].numel()
    patches = clip.rows * clip.columns * merge**2
    pixels = torch.randn(clip.frames, patches, channels, generator=random).numpy()
    kind = "video" if clip.frames > 1 else "picture"
    grid = (clip.rows, clip.columns)
    return from_patches(kind, index, pixels, grid, merge, size_hw=(1, 1))


def _hf_inputs(
    ids: list[int],
    kinds: list[int],
    clips: Sequence[Clip],
    media: Sequence[Prepared],
    merge: int,
    *,
    video: bool,
) -> dict[str, Tensor]:
    patches = [shown.calls[0]["pixel_values"] for shown in media]
    pixels = np.concatenate([each.reshape(-1, each.shape[-1]) for each in patches])
    grids = torch.tensor([(c.frames, c.rows * merge, c.columns * merge) for c in clips])
    return {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
        "mm_token_type_ids": torch.tensor([kinds], dtype=torch.int32),
        "pixel_values_videos" if video else "pixel_values": torch.from_numpy(pixels),
        "video_grid_thw" if video else "image_grid_thw": grids,
    }


def encode(model: Any, inputs: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
    """Run HF's own vision encoder."""
    still = "pixel_values" in inputs
    pixels = inputs["pixel_values" if still else "pixel_values_videos"]
    grids = inputs["image_grid_thw" if still else "video_grid_thw"]
    return model.model.visual(pixels, grid_thw=grids).pooler_output


FAMILY = Family(check=check, load=load, text=text, vision=vision, trials=trials, encode=encode)
