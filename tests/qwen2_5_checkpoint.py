"""Qwen2.5-VL checkpoints with random weights and odd dimensions, as newer transformers write them.

The settings of all processors are in processor_config.json.
"""

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

from random_checkpoint import COPIED, TOKENS

WINDOW_PX = 100  # 3 vision tokens of 28 px and a rest, as HF rounds it
HEADS, HEAD_DIM = 6, 10


def write_qwen2_5_checkpoint(folder: Path, like: Path, *, seed: int = 0, **vision: Any) -> None:
    """Write a checkpoint whose logits are well apart.

    Args:
        folder: is made.
        like: the Qwen2-VL checkpoint whose tokenizer, chat template and settings are taken.
        seed: of the weights.
        vision: changes of the vision encoder's configuration.
    """
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration(configuration(like, **vision))
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
        if name != "preprocessor_config.json":  # as newer checkpoints are written
            copyfile(like / name, folder / name)
    parts = {
        "image_processor": json.loads((like / "preprocessor_config.json").read_text()),
        "processor_class": "Qwen2_5_VLProcessor",
        "video_processor": json.loads((like / "video_preprocessor_config.json").read_text()),
    }
    (folder / "processor_config.json").write_text(json.dumps(parts))


def configuration(like: Path, **vision: Any) -> Any:
    """Return a small configuration for the tokenizer of another checkpoint."""
    from transformers import Qwen2_5_VLConfig

    given = json.loads((like / "config.json").read_text())
    text, size = given["text_config"], HEADS * HEAD_DIM
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    return Qwen2_5_VLConfig(
        text_config={
            **{name: text[name] for name in names},
            "hidden_size": size,
            "intermediate_size": 2 * size + 4,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "num_key_value_heads": 3,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10.0,
                "mrope_section": [3, 1, 1],  # of 5 pairs of channels: time counts for most
            },
        },
        vision_config={
            "depth": 4,
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_heads": 3,
            "out_hidden_size": size,
            "fullatt_block_indexes": [2],
            "window_size": WINDOW_PX,
            "tokens_per_second": 2,
            **vision,
        },
        **{name: given[name] for name in TOKENS},
    )
