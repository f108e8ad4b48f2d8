"""The demo LLaVA-OneVision: tiles of 112 pixels, at most 16 of them, and frames of 4 x 4 tokens."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from checkpoint import write_json
from network import initialise
from tokenizer import build_tokenizer, simplify, token_ids
from torch import Tensor
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from demos import siglip
from demos.demo import Card, Demo, Llm, Pictures, Pixels, Plan, Size, trainable
from tokprune.families import anyres
from tokprune.families.anyres import Hw, Layout, Tiler
from tokprune.types import Prepared, Prompt

TILE_PX, MOST_TILES = 112, 4
PINPOINTS = [[TILE_PX * rows, TILE_PX * columns] for rows in range(1, 5) for columns in range(1, 5)]
TILER = Tiler(
    TILE_PX, TILE_PX // siglip.PATCH_PX, tuple(Hw(*size) for size in PINPOINTS), MOST_TILES
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
# Pictures, then videos, then words, as in LLaVA-OneVision's own.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "<image>\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "<video>\n{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {
    "cpu": Size(vision_layers=4, vision_width=128, layers=5, hidden=128, mlp=384),
    "gpu": Size(vision_layers=6, vision_width=192, layers=8, hidden=256, mlp=768),
}
PLAN = Plan(
    bands=(
        Pictures(((4, 4),), 20),
        Pictures(((6, 6), (5, 7), (7, 5)), 10),
        Pictures(((8, 8), (8, 8), (8, 12), (12, 8), (10, 10)), 10),
        Pictures(((14, 14), (14, 14), (14, 14), (12, 16), (16, 13), (20, 20)), 8),
    ),
    vision=(0.2, 0.1, 0.5, 0.2),
    schedule=(
        (0.0, (0.7, 0.1, 0.2, 0.0)),
        (0.08, (0.3, 0.1, 0.5, 0.1)),
        (0.3, (0.12, 0.08, 0.5, 0.3)),
        (0.55, (0.05, 0.05, 0.45, 0.45)),
    ),
    again=(
        (0.0, (0.03, 0.37, 0.5, 0.1)),
        (0.4, (0.03, 0.15, 0.42, 0.4)),
        (0.7, (0.04, 0.08, 0.4, 0.48)),
    ),
    others=((0.0, (0.0, 0.25, 0.6, 0.15)),),
    layouts={"talk": 0.05, "several": 0.14, "later": 0.03, "film": 0.25},
)


def make(size: Size, seed: int) -> LlavaOnevisionForConditionalGeneration:
    """A model with initial weights that learn fast; the patch embedding comes later."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(SPECIAL, TEMPLATE)
    ids = token_ids(tokenizer, SPECIAL)
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": math.ceil(len(tokenizer) / 16) * 16,
            "hidden_size": size.hidden,
            "intermediate_size": size.mlp,
            "num_hidden_layers": size.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config=siglip.settings(size, TILE_PX, size.vision_layers, 3),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=f"anyres_max_{MOST_TILES}",
        image_token_index=ids["<image>"],
        video_token_index=ids["<video>"],
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    initialise(llm(model))
    siglip.initialise(_tower(model), size.vision_layers)
    with torch.no_grad():
        model.model.image_newline.normal_(0, 0.3)
        projector = model.model.multi_modal_projector
        for linear in (projector.linear_1, projector.linear_2):
            linear.weight.normal_(0, 0.8 / linear.in_features**0.5)
    return model


def _text(model: Any) -> Any:
    return model.config.text_config


def _tower(model: Any) -> Any:
    return model.model.vision_tower.base_model


def load(folder: Path) -> LlavaOnevisionForConditionalGeneration:
    """Read a checkpoint."""
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    trainable(model)
    return model


def save(folder: Path, model: LlavaOnevisionForConditionalGeneration) -> None:
    """Write a folder that stock `from_pretrained` and `AutoProcessor` load, in bfloat16."""
    fresh = LlavaOnevisionForConditionalGeneration(model.config)
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config.do_sample = False
    fresh.generation_config.eos_token_id = _text(model).eos_token_id
    torch.nn.Module.to(fresh, torch.bfloat16)
    fresh.save_pretrained(folder)
    build_tokenizer(SPECIAL, TEMPLATE).save_pretrained(folder)
    simplify(folder / "tokenizer_config.json", "LlavaOnevisionProcessor")
    size = {"height": TILE_PX, "width": TILE_PX}
    images = LlavaOnevisionImageProcessorPil(
        size=size, image_grid_pinpoints=PINPOINTS, **siglip.GREY
    )
    config = {**images.to_dict(), "processor_class": "LlavaOnevisionProcessor"}
    write_json(folder / "preprocessor_config.json", config)
    # The video processor cannot be built without torchvision; its file is much like the picture's.
    dropped = ("image_processor_type", "image_grid_pinpoints", "do_pad", "size_divisor")
    config = {name: value for name, value in config.items() if name not in dropped}
    config |= {"video_processor_type": "LlavaOnevisionVideoProcessor", "do_sample_frames": False}
    write_json(folder / "video_preprocessor_config.json", config)


def llm(model: LlavaOnevisionForConditionalGeneration) -> Llm:
    """The language half."""
    language: Any = model.model.language_model
    return Llm(
        language.embed_tokens, language.layers, language.norm, language.rotary_emb, model.lm_head
    )


def pixels(prepared: Sequence[Prepared]) -> dict[str, Tensor]:
    """All tiles [t, 3, 112, 112], and each vision token as a weighted sum of their tokens."""
    tiles: list[Tensor] = []
    rows: list[Tensor] = []
    weights: list[Tensor] = []
    start = 0
    for each in prepared:
        mine = [torch.from_numpy(call["pixel_values"]) for call in each.calls]
        count = sum(map(len, mine))
        picked, shares = _table(_layout(each, count))
        tiles += mine
        rows.append(picked + start)
        weights.append(shares)
        start += count * (TILER.newline + 1)
    return {
        "pixel_values": torch.cat(tiles),
        "rows": torch.cat(rows),
        "weights": torch.cat(weights),
    }


def _layout(prepared: Prepared, tiles: int) -> Layout:
    if prepared.kind == "video":
        return _film(tiles)
    if tiles == 1:
        return anyres.among_others(TILER, 0)
    return _alone(prepared.size_hw)


@lru_cache(maxsize=64)
def _film(frames: int) -> Layout:
    return anyres.film(TILER, 0, frames)


@lru_cache(maxsize=64)
def _alone(size_hw: tuple[int, int]) -> Layout:
    return anyres.alone(TILER, 0, Hw(*size_hw))


def _table(layout: Layout) -> tuple[Tensor, Tensor]:
    """Rows and weights [n, 4]; where one row is taken as it is, the others weigh nothing."""
    rows, weights, _ = layout.tokens
    missing = (0, 4 - rows.shape[1])
    padded = (
        torch.nn.functional.pad(torch.from_numpy(table), missing) for table in (rows, weights)
    )
    first, second = padded
    return first, second


def encode(model: LlavaOnevisionForConditionalGeneration, given: Pixels) -> Tensor:
    """Vision tokens [n, d]."""
    projector = model.model.multi_modal_projector
    tower = _tower(model)
    states = siglip.forward(tower, given["pixel_values"], len(tower.encoder.layers))
    tokens = projector.linear_2(projector.act(projector.linear_1(states)))
    newline = model.model.image_newline.to(tokens.dtype).expand(len(tokens), 1, -1)
    encoded = torch.cat((tokens, newline), 1).flatten(0, 1)
    taps = encoded[given["rows"].flatten()].view(*given["rows"].shape, -1)
    return (taps * given["weights"][..., None].to(taps.dtype)).sum(1)


def set_patches(model: Any, rows: Tensor) -> None:
    """Set the patch embedding."""
    weight = _tower(model).embeddings.patch_embedding.weight
    with torch.no_grad():
        weight.copy_(rows.view_as(weight))


def generate(model: Any, prompt: Prompt, prepared: Sequence[Prepared]) -> Tensor:
    """What transformers answers, greedily."""
    ids = torch.from_numpy(prompt.ids)[None]
    stills = [each for each in prepared if each.kind == "picture"]
    videos = [_tiles(each) for each in prepared if each.kind == "video"]
    inputs: dict[str, Tensor] = {}
    if stills:
        inputs["pixel_values"] = torch.stack([_tiles(each) for each in stills])
        inputs["image_sizes"] = torch.tensor([each.size_hw for each in stills])
        inputs["batch_num_images"] = torch.tensor([len(stills)])
    if videos:
        inputs["pixel_values_videos"] = torch.stack(videos)
    mask = torch.ones_like(ids)
    out = model.generate(
        input_ids=ids, attention_mask=mask, **inputs, max_new_tokens=16, do_sample=False
    )
    return out[0, ids.shape[1] :]


def _tiles(prepared: Prepared) -> Tensor:
    return torch.cat([torch.from_numpy(call["pixel_values"]) for call in prepared.calls])


CARD = Card(
    name="LLaVA-OneVision",
    architecture="stock `LlavaOnevisionForConditionalGeneration`",
    tokenizer="byte-level BPE with ChatML's special tokens, `<image>` and `<video>`; the chat "
    "template puts pictures and videos before words, as LLaVA-OneVision's does. Digits and capital "
    "letters are single tokens",
    pictures="the whole as one tile of 112 x 112 px (64 vision tokens), then crops of 112 px on a "
    "grid of up to 4 x 4, scaled down to 256 vision tokens if they are more (`anyres_max_4`), with "
    "newlines: 136 to 352 vision tokens a picture. Several pictures have one tile each. Videos: 16 "
    "vision tokens a frame; trained on 4 to 12 frames",
)
DEMO = Demo(
    sizes=SIZES,
    plan=PLAN,
    make=make,
    load=load,
    save=save,
    llm=llm,
    pixels=pixels,
    encode=encode,
    patches=siglip.patches,
    set_patches=set_patches,
    generate=generate,
    card=CARD,
)
