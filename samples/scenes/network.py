"""The small Qwen2-VL: its configuration, its initial weights, and a fast forward pass.

The forward pass computes what transformers computes. Plain matrix products and softmax in
bfloat16 are three to five times faster than fused attention on a CPU at these sizes, and packed
questions need a mask of their own.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.vision_utils import get_vision_position_ids

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PATCH_VALUES = 588  # 3 x 14 x 14
BLOCKED = -1e9


@dataclass(frozen=True)
class Size:
    """What the two presets differ in."""

    vision_layers: int
    vision_width: int
    layers: int
    hidden: int
    mlp: int


SIZES = {
    "cpu": Size(vision_layers=4, vision_width=96, layers=5, hidden=128, mlp=384),
    "gpu": Size(vision_layers=6, vision_width=192, layers=8, hidden=256, mlp=768),
}


def make_config(size: Size, tokenizer: PreTrainedTokenizerBase) -> Qwen2VLConfig:
    """The configuration; the vocabulary is rounded up to a multiple of 16."""

    def token(text: str) -> int:
        ids = tokenizer.convert_tokens_to_ids(text)
        assert isinstance(ids, int)  # one token, one id
        return ids

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
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
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
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=False,
    )


def make_model(
    size: Size, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Qwen2VLForConditionalGeneration:
    """A model with initial weights that learn fast; the patch embedding comes later."""
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(make_config(size, tokenizer))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                continue
            std = 0.8 / math.sqrt(weight[0].numel())
            if "embed_tokens" in name:
                std = 0.3
            elif "visual" in name and (".proj." in name or "fc2" in name):
                std /= math.sqrt(2 * size.vision_layers)
            elif "o_proj" in name or "down_proj" in name:
                std /= math.sqrt(2 * size.layers)
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


def whiten_patches(model: Qwen2VLForConditionalGeneration, patches: Tensor) -> None:
    """Set the patch embedding to the whitened, rotated principal components of patches [m, 588]."""
    weight = model.model.visual.patch_embed.proj.weight
    width = weight.shape[0]
    centred = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    white = (vectors / (values + values[-1]).sqrt()).T
    rotation = torch.linalg.qr(torch.randn(width, width))[0]  # no privileged dimensions
    rows = (rotation @ white).view(width, 3, 1, 14, 14) / 2
    with torch.no_grad():
        weight.copy_(rows.expand(-1, -1, 2, -1, -1))


def normalise(patches: Tensor) -> Tensor:
    """Patches [..., 588] of bytes to what the image processor makes of them."""
    scale = torch.tensor(STD, device=patches.device).repeat_interleave(196) * 255
    offset = torch.tensor(MEAN, device=patches.device).repeat_interleave(196) * 255
    return (patches.float() - offset) / scale


def encode_pictures(
    model: Qwen2VLForConditionalGeneration, patches: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Vision tokens [b, n, d] of pictures of one size, from their patches [b, 4 n, 588]."""
    visual: Any = model.model.visual
    positions = get_vision_position_ids(torch.tensor([[1, 2 * grid[0], 2 * grid[1]]]), 2)
    cos, sin = visual.rotary_pos_emb(patches.new_zeros(1), positions.to(patches.device))
    weight = visual.patch_embed.proj.weight
    width = weight.shape[0]
    # A still picture fills both frames of a patch alike: add the two halves of the weight.
    x = F.linear(normalise(patches), weight.sum(2).reshape(width, PATCH_VALUES))
    for block in visual.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(x))
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = _attend(_turn(q, cos, sin) * attention.scaling, _turn(k, cos, sin), v, None)
        x = x + attention.proj(out)
        x = x + block.mlp(block.norm2(x))
    merged = visual.merger.ln_q(x).reshape(len(x), -1, 4 * width)
    return visual.merger.mlp(merged)


def run_text(
    model: Qwen2VLForConditionalGeneration, embeds: Tensor, positions: Tensor, bias: Tensor
) -> list[Tensor]:
    """Hidden states [b, s, d] after each layer, the last one normalised.

    bias [b, 1, s, s] is added to the attention logits.
    """
    language: Any = model.model.language_model
    cos, sin = language.rotary_emb(embeds, positions)
    cos, sin = cos[:, None], sin[:, None]
    x = embeds
    states: list[Tensor] = []
    for layer in language.layers:
        attention = layer.self_attn
        h = layer.input_layernorm(x)
        q, k, v = (
            project(h).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = _turn(q, cos, sin) * attention.scaling, _turn(k, cos, sin)
        groups = attention.num_key_value_groups
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        x = x + attention.o_proj(_attend(q, k, v, bias))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        states.append(x)
    states[-1] = language.norm(x)
    return states


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    logits = q @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    out = torch.softmax(logits, -1).to(v.dtype) @ v
    return out.transpose(1, 2).flatten(2)
