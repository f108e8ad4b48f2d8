"""The demo Qwen2-VL. M-RoPE, any picture size, frames in pairs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from attention import attend, turn
from checkpoint import write_json
from network import BLOCKED, initialise
from tokenizer import SPECIAL, TEMPLATE, build_tokenizer, simplify, token_ids
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from demos.demo import Card, Demo, Llm, Pictures, Pixels, Plan, Size, trainable
from tokprune.types import Prepared, Prompt

MIN_PIXELS, MAX_PIXELS = 56 * 56, 560 * 560
SIZES = {
    "cpu": Size(vision_layers=4, vision_width=96, layers=5, hidden=128, mlp=384),
    "gpu": Size(vision_layers=6, vision_width=192, layers=8, hidden=256, mlp=768),
}
PLAN = Plan(
    bands=(
        Pictures(((4, 4),), 32),
        Pictures(((6, 6), (5, 7), (7, 5)), 24),
        Pictures(((8, 8), (8, 8), (8, 12), (12, 8), (10, 10)), 16),
        Pictures(((14, 14), (14, 14), (14, 14), (12, 16), (16, 13), (20, 20)), 8),
    ),
    vision=(0.5, 0.3, 0.15, 0.05),
    schedule=(
        (0.0, (0.7, 0.3, 0.0, 0.0)),
        (0.08, (0.4, 0.35, 0.25, 0.0)),
        (0.3, (0.25, 0.25, 0.35, 0.15)),
        (0.5, (0.12, 0.18, 0.3, 0.4)),
        (0.7, (0.08, 0.12, 0.25, 0.55)),
    ),
    again=(
        (0.0, (0.03, 0.47, 0.4, 0.1)),
        (0.4, (0.03, 0.22, 0.35, 0.4)),
        (0.7, (0.04, 0.12, 0.29, 0.55)),
    ),
    others=((0.0, (0.0, 0.35, 0.5, 0.15)),),
    layouts={
        "talk": 0.06,
        "several": 0.14,
        "first": 0.05,
        "later": 0.03,
        "film": 0.25,
    },
)


def make_config(size: Size) -> Qwen2VLConfig:
    """The configuration; the vocabulary is rounded up to a multiple of 16."""
    tokenizer = build_tokenizer(SPECIAL, TEMPLATE)
    ids = token_ids(tokenizer, SPECIAL)
    head = size.hidden // 4
    sections = [head // 8, head * 3 // 16, head * 3 // 16]  # of half a head: time, height, width
    return Qwen2VLConfig(
        text_config={
            "vocab_size": math.ceil(len(tokenizer) / 16) * 16,
            "hidden_size": size.hidden,
            "intermediate_size": size.mlp,
            "num_hidden_layers": size.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            # A base of 1e6 would make columns invisible on grids of a few tokens.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5.0,
                "mrope_section": sections,
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": size.vision_layers,
            "embed_dim": size.vision_width,
            "hidden_size": size.hidden,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def make(size: Size, seed: int) -> Qwen2VLForConditionalGeneration:
    """A model with initial weights that learn fast; the patch embedding comes later."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(make_config(size))
    initialise(llm(model))
    with torch.no_grad():
        for name, weight in model.model.visual.named_parameters():
            if weight.ndim == 1:
                continue
            std = 0.8 / math.sqrt(weight[0].numel())
            if ".proj." in name or "fc2" in name:
                std /= math.sqrt(2 * size.vision_layers)
            weight.normal_(0, std)
        _look_around(model)
    return model


def _look_around(model: Qwen2VLForConditionalGeneration) -> None:
    """Let the heads of the first two vision layers look at neighbours, through the qkv bias."""
    steps = (
        ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)),
        ((-0.8, -0.8), (-0.8, 0.8), (0.8, -0.8), (0.8, 0.8)),
    )
    strength = 2.4
    visual: Any = model.model.visual
    frequencies = visual.rotary_pos_emb.inv_freq
    for block, directions in zip(visual.blocks, steps, strict=False):
        width = block.attn.qkv.weight.shape[1]
        block.attn.qkv.weight[: 2 * width] *= 0.6
        bias = block.attn.qkv.bias.view(3, 4, width // 4)
        half = width // 8
        for head, (down, right) in enumerate(directions):
            angle = torch.cat([frequencies * down, frequencies * right])
            bias[0, head] = torch.cat([angle.cos(), angle.sin()]) * strength
            bias[1, head] = torch.cat([torch.ones(half), torch.zeros(half)]) * strength


def load(folder: Path) -> Qwen2VLForConditionalGeneration:
    """Read a checkpoint."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    trainable(model)
    return model


def save(folder: Path, model: Qwen2VLForConditionalGeneration) -> None:
    """Write a folder that stock `from_pretrained` and `AutoProcessor` load, in bfloat16."""
    fresh = Qwen2VLForConditionalGeneration(model.config)  # saves the names of real checkpoints
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config.do_sample = False
    torch.nn.Module.to(fresh, torch.bfloat16)
    fresh.save_pretrained(folder)
    build_tokenizer(SPECIAL, TEMPLATE).save_pretrained(folder)
    simplify(folder / "tokenizer_config.json", "Qwen2VLProcessor")
    images = Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    config = {**images.to_dict(), "processor_class": "Qwen2VLProcessor"}
    write_json(folder / "preprocessor_config.json", config)
    # The video processor cannot be built without torchvision; its file is the picture's.
    config.pop("image_processor_type")
    config |= {"video_processor_type": "Qwen2VLVideoProcessor", "do_sample_frames": False}
    write_json(folder / "video_preprocessor_config.json", config)


def llm(model: Qwen2VLForConditionalGeneration) -> Llm:
    """The language half."""
    language: Any = model.model.language_model
    return Llm(
        language.embed_tokens, language.layers, language.norm, language.rotary_emb, model.lm_head
    )


def pixels(prepared: Sequence[Prepared]) -> dict[str, Tensor]:
    """Patches of pictures and frames of one size: [frames, 4 n, 1176]."""
    [positions] = {
        each.calls[0]["positions"].tobytes(): each.calls[0] for each in prepared
    }.values()
    values = [torch.from_numpy(each.calls[0]["pixel_values"]) for each in prepared]
    return {
        "pixel_values": torch.cat(values),
        "positions": torch.from_numpy(positions["positions"]),
    }


def encode(
    model: Qwen2VLForConditionalGeneration, given: Pixels, unseen: Tensor | None = None
) -> Tensor:
    """Vision tokens [n, d]; to the patches of the `unseen` ones [n] no other attends."""
    visual: Any = model.model.visual
    patches = given["pixel_values"]
    bias = None
    if unseen is not None:
        blocked = unseen.view(len(patches), -1).repeat_interleave(4, 1)[:, None, None]
        bias = torch.zeros(blocked.shape, device=patches.device).masked_fill_(blocked, BLOCKED)
    cos, sin = visual.rotary_pos_emb(patches.new_zeros(1), given["positions"])
    weight = visual.patch_embed.proj.weight
    x = F.linear(patches, weight.flatten(1))
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(x))
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = attend(turn(q, cos, sin) * attention.scaling, turn(k, cos, sin), v, bias)
        x = x + attention.proj(out)
        x = x + block.mlp(block.norm2(x))
    merged = visual.merger.ln_q(x).reshape(len(x), -1, 4 * weight.shape[0])
    return visual.merger.mlp(merged).flatten(0, 1)


def patches_of(given: Pixels) -> Tensor:
    """The first frame's patches [m, 588]."""
    return given["pixel_values"].unflatten(-1, (3, 2, 196))[..., 0, :].flatten(2).flatten(0, 1)


def set_patches(model: Qwen2VLForConditionalGeneration, rows: Tensor) -> None:
    """Set the patch embedding: half to each frame of a pair."""
    weight = model.model.visual.patch_embed.proj.weight
    with torch.no_grad():
        weight.copy_((rows / 2).view(-1, 3, 1, 14, 14).expand_as(weight))


def generate(model: Any, prompt: Prompt, prepared: Sequence[Prepared]) -> Tensor:
    """What transformers answers, greedily."""
    config = model.config
    ids = torch.from_numpy(prompt.ids)[None]
    inputs: dict[str, Tensor] = {}
    for kind, name in (("picture", ""), ("video", "_videos")):
        given = [each for each in prepared if each.kind == kind]
        if given:
            patches = [torch.from_numpy(each.calls[0]["pixel_values"]) for each in given]
            grids = [(len(each.regions), *_patches_hw(each)) for each in given]
            inputs[f"pixel_values{name}"] = torch.cat([each.flatten(0, 1) for each in patches])
            inputs["video_grid_thw" if name else "image_grid_thw"] = torch.tensor(grids)
    kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=kinds,
        **inputs,
        max_new_tokens=16,
        do_sample=False,
    )
    return out[0, ids.shape[1] :]


def _patches_hw(prepared: Prepared) -> tuple[int, int]:
    region = prepared.regions[0]
    return 2 * region.rows, 2 * region.columns


CARD = Card(
    name="Qwen2-VL",
    architecture="stock `Qwen2VLForConditionalGeneration`",
    tokenizer="byte-level BPE with Qwen2-VL's special tokens and the form of its chat template, "
    "without a default system message. Digits and capital letters are single tokens",
    pictures="any size of 4 to 400 vision tokens (28 x 28 px each); trained on 16 to 400, mostly "
    "64 to 208. Videos: two frames share a vision token; trained on 4 to 12 frames of 112 to 224 "
    "px a side",
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
    encode_parts=encode,
    patches=patches_of,
    set_patches=set_patches,
    generate=generate,
    card=CARD,
)
