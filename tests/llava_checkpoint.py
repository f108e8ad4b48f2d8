"""LLaVA-OneVision checkpoints with random weights and odd dimensions, in plain HF format."""

import json
from pathlib import Path
from typing import Any

# That of llava-hf/llava-onevision-qwen2-0.5b-ov-hf: pictures, then videos, then text.
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
    "{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>' }}{% endfor %}{# Render all video then #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>' }}{% endfor %}{# Render all text next #}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\\n' + content['text'] }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ '\\n' + content['text'] }}{% endgeneration %}{% endfor %}{% endif %}"
    "{{'<|im_end|>'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TILE_PX, PATCH_PX = 30, 4  # 7 patches a side and 2 px that nothing sees, as 384 px have 27 and 6
PINPOINTS = [[TILE_PX * rows, TILE_PX * columns] for rows in range(1, 7) for columns in range(1, 7)]
PLACEHOLDERS = ("<image>", "<video>")


def write_llava_checkpoint(folder: Path, like: Path, *, seed: int = 0, **changes: Any) -> None:
    """Write a checkpoint whose logits are well apart.

    Args:
        folder: is made.
        like: the checkpoint whose tokenizer is taken, two placeholders added.
        seed: of the weights.
        changes: of config.json.
    """
    import torch
    from transformers import LlavaOnevisionForConditionalGeneration

    folder.mkdir(parents=True)
    write_texts(folder, like)
    model = LlavaOnevisionForConditionalGeneration(configuration(like, **changes))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=random)
            if value.ndim > 1:
                scale = 1.0 if "embed_tokens" in name else value[0].numel() ** -0.5
                value.copy_(noise * scale)
            else:
                value.copy_(0.1 * noise + ("norm" in name and "bias" not in name))
    model.save_pretrained(folder)


def configuration(like: Path, **changes: Any) -> Any:
    """Return a small configuration for the tokenizer of another checkpoint."""
    from transformers import LlavaOnevisionConfig

    given = json.loads((like / "config.json").read_text())["text_config"]
    first = _first_free_id(like)
    return LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": given["vocab_size"],
            "eos_token_id": given["eos_token_id"],
            "hidden_size": 60,
            "intermediate_size": 92,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10.0},
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "image_size": TILE_PX,
            "patch_size": PATCH_PX,
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "vision_use_head": False,
        },
        image_grid_pinpoints=PINPOINTS,
        image_token_index=first,
        video_token_index=first + 1,
        **changes,
    )


def write_texts(folder: Path, like: Path) -> None:
    """Write tokenizer, chat template and the settings of HF's processors."""
    from tokenizers import AddedToken, Tokenizer
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )
    from transformers.models.llava_onevision.video_processing_llava_onevision import (
        LlavaOnevisionVideoProcessor,
    )

    tokenizer = Tokenizer.from_file(str(like / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in PLACEHOLDERS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(PLACEHOLDERS),
        "processor_class": "LlavaOnevisionProcessor",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    size = {"height": TILE_PX, "width": TILE_PX}
    grey = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    pictures = LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=PINPOINTS, **grey)
    pictures.save_pretrained(folder)
    LlavaOnevisionVideoProcessor(size=size, **grey).save_pretrained(folder)


def _first_free_id(like: Path) -> int:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(like / "tokenizer.json")).get_vocab_size()
