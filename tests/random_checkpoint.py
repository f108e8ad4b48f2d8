"""Qwen2-VL checkpoints with random weights and odd dimensions, in plain HF format."""

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

COPIED = (
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")


def write_checkpoint(
    folder: Path,
    like: Path,
    *,
    heads: int = 6,
    kv_heads: int = 3,
    head_dim: int = 10,
    layers: int = 3,
    tied: bool = False,
    seed: int = 0,
) -> None:
    """Write a checkpoint whose logits are well apart, with the tokenizer of another one.

    Args:
        folder: is made.
        like: the checkpoint whose tokenizer, chat template and picture settings are copied.
        heads: attention heads of the LLM.
        kv_heads: a divisor of `heads`.
        head_dim: even, at least 6.
        layers: decoder layers.
        tied: the head is the embedding table.
        seed: of the weights.
    """
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    given = json.loads((like / "config.json").read_text())
    text, vision = given["text_config"], given["vision_config"]
    size = heads * head_dim
    half = head_dim // 2
    section = [half - 2 * (half // 3), half // 3, half // 3]
    config = Qwen2VLConfig(
        text_config={
            **_only(text, "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"),
            "hidden_size": size,
            "intermediate_size": 2 * size + 4,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10.0,
                "mrope_section": section,
            },
            "tie_word_embeddings": tied,
        },
        vision_config={
            **_only(vision, "patch_size", "spatial_merge_size", "temporal_patch_size"),
            "depth": 2,
            "embed_dim": 36,
            "num_heads": 3,
            "mlp_ratio": 2,
            "hidden_size": size,
        },
        tie_word_embeddings=tied,
        **_only(given, *TOKENS),
    )
    model = Qwen2VLForConditionalGeneration(config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=random)
            if value.ndim > 1:
                scale = 1.0 if "embed_tokens" in name else value[0].numel() ** -0.5
                value.copy_(noise * scale)
            else:
                value.copy_(0.1 * noise + ("bias" not in name))
    model.save_pretrained(folder)
    for name in COPIED:
        copyfile(like / name, folder / name)


def _only(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: config[name] for name in names}
