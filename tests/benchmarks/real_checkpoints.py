"""Checkpoints of the published sizes with random weights, in the published formats.

Configurations are those of llava-hf/llava-onevision-qwen2-0.5b-ov-hf, Qwen/Qwen2-VL-2B-Instruct and
Efficient-Large-Model/VILA1.5-3b. Tokenizers and templates are the demo checkpoints'.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

DEMOS = Path(__file__).parents[2] / "samples" / "scenes" / "checkpoints"
SHARD_BYTES = 2 << 30
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
SMALL_PX = {"height": 384, "width": 384}
PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]


def write_llava_onevision(folder: Path) -> None:
    """LLaVA-OneVision-0.5B."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    demo = _read(DEMOS / "llava_onevision" / "config.json")
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": 152000,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "tie_word_embeddings": True,
            "eos_token_id": demo["text_config"]["eos_token_id"],
        },
        vision_config={**SIGLIP, "num_hidden_layers": 26},
        image_grid_pinpoints=PINPOINTS,
        image_token_index=demo["image_token_index"],
        video_token_index=demo["video_token_index"],
        tie_word_embeddings=True,
    )
    _copy_texts("llava_onevision", folder)
    change_settings(
        folder / "preprocessor_config.json", size=SMALL_PX, image_grid_pinpoints=PINPOINTS
    )
    change_settings(folder / "video_preprocessor_config.json", size=SMALL_PX)
    _write_model(folder, LlavaOnevisionForConditionalGeneration, config)


def write_qwen2_vl(folder: Path) -> None:
    """Qwen2-VL-2B."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    demo = _read(DEMOS / "qwen2_vl" / "config.json")
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": 151936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
            "tie_word_embeddings": True,
            "eos_token_id": demo["text_config"]["eos_token_id"],
        },
        vision_config={"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 1536},
        **{name: demo[name] for name in demo if name.endswith("_token_id")},
        tie_word_embeddings=True,
    )
    _copy_texts("qwen2_vl", folder)
    pixels = {"shortest_edge": 3136, "longest_edge": 12845056}  # as published; the demo has fewer
    change_settings(folder / "preprocessor_config.json", size=pixels)
    _write_model(folder, Qwen2VLForConditionalGeneration, config)


def write_vila(folder: Path) -> None:
    """VILA1.5-3B."""
    from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

    from tokprune_export.families.vila_projector import Projector

    llama = LlamaConfig(
        vocab_size=32000,
        hidden_size=2560,
        intermediate_size=6912,
        num_hidden_layers=32,
        num_attention_heads=20,
        num_key_value_heads=20,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    siglip: dict[str, Any] = {name: SIGLIP[name] for name in SIGLIP if name != "model_type"}
    tower = SiglipVisionConfig(**siglip, num_hidden_layers=27)
    _copy_texts("vila", folder)
    for part in ("llm", "vision_tower", "mm_projector"):
        _copy_texts(f"vila/{part}", folder / part)
    change_settings(folder / "vision_tower" / "preprocessor_config.json", size=SMALL_PX)
    change_settings(folder / "config.json", hidden_size=2560, mm_hidden_size=1152)
    _write_model(folder / "llm", LlamaForCausalLM, llama)
    _write_model(folder / "vision_tower", SiglipVisionModel, tower)
    with torch.device("meta"):
        projector = Projector("mlp_downsample", 1152, 2560)
    _write_weights(folder / "mm_projector", projector, tied=False)


MODELS: dict[str, Callable[[Path], None]] = {
    "LLaVA-OneVision-0.5B": write_llava_onevision,
    "Qwen2-VL-2B": write_qwen2_vl,
    "VILA1.5-3B": write_vila,
}


def write_random(
    demo: str, folder: Path, kind: Any, config_like: Callable[[dict[str, Any]], Any]
) -> None:
    """Write a checkpoint with random weights and the texts of a demo checkpoint.

    Args:
        demo: name of the demo checkpoint.
        folder: to be made.
        kind: a class of transformers.
        config_like: makes its config; is given the demo's config.json.
    """
    _copy_texts(demo, folder)
    _write_model(folder, kind, config_like(_read(DEMOS / demo / "config.json")))


def _copy_texts(demo: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in (DEMOS / demo).iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja", ".model"):
            shutil.copyfile(path, folder / path.name)


def _write_model(folder: Path, kind: Any, config: Any) -> None:
    with torch.device("meta"):
        model = kind(config)
    given = _read(folder / "config.json")
    config.architectures = given["architectures"]
    config.save_pretrained(folder)
    _write_weights(
        folder, model, tied=bool(getattr(config.get_text_config(), "tie_word_embeddings", False))
    )


def _write_weights(folder: Path, model: torch.nn.Module, *, tied: bool) -> None:
    """Write random bfloat16 weights in files of at most 2 GiB, never more than one in memory."""
    index: dict[str, str] = {}
    for number, shard in enumerate(_shards(model, tied=tied)):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
    text = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _shards(model: torch.nn.Module, *, tied: bool) -> Iterator[dict[str, torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, value in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        weight = torch.empty(value.shape, dtype=torch.bfloat16)
        if value.ndim > 1:
            weight.normal_(0, value[0].numel() ** -0.5, generator=random)
        else:
            scales = any(part in name for part in ("norm", "ln_q"))
            weight.fill_(float(scales and name.endswith("weight")))
        shard[name] = weight
        size += weight.nbytes
        if size >= SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    yield shard


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def change_settings(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**_read(path), **changes}, indent=2), encoding="utf-8")
