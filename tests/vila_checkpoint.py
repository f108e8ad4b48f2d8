"""VILA1.5 checkpoints with random weights and odd dimensions, in the layout that is published."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

TEXT = Path(__file__).with_name("vila_tokenizer.txt")  # for sentencepiece to learn words from
IMAGE_PX, PATCH_PX, WIDTH = 70, 14, 36  # 5 x 5 patches: an odd grid, as the 27 x 27 of VILA1.5


def write_vila_checkpoint(
    folder: Path,
    *,
    projector: str = "mlp_downsample",
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 12,
    layers: int = 3,
    seed: int = 0,
    ending: float = 1.0,
) -> None:
    """Write a checkpoint whose logits are well apart.

    Args:
        folder: is made. A name such as `vila1.5-3b` tells the conversation.
        projector: mm_projector_type.
        heads: attention heads of the LLM.
        kv_heads: a divisor of `heads`.
        head_dim: even.
        layers: decoder layers.
        seed: of the weights.
        ending: how strongly answers end; 1 as any other token.
    """
    import torch

    hidden = heads * head_dim
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    llm = _llm(write_tokenizer(folder / "llm"), num_key_value_heads=kv_heads, **sizes)
    tower, made = _tower(), projector_of(projector, WIDTH, hidden)
    random = torch.Generator().manual_seed(seed)
    for module in (llm, tower, made):
        randomise(module, random)
    with torch.no_grad():
        llm.lm_head.weight[2] *= ending
    _write_llm(folder / "llm", llm)
    _write_tower(folder / "vision_tower", tower)
    _write_projector(folder / "mm_projector", projector, made)
    _write(folder / "config.json", _top(projector, hidden))


def _llm(vocabulary: int, hidden_size: int, **sizes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size + 4,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            pad_token_id=0,
            **sizes,
        )
    )


def _tower() -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=50,
            num_hidden_layers=3,
            num_attention_heads=3,
            image_size=IMAGE_PX,
            patch_size=PATCH_PX,
        )
    )


def projector_of(kind: str, width: int, hidden: int) -> Any:
    """Return the layers that MultimodalProjector has, without what packs patches."""
    from torch import nn

    last = [nn.GELU(), nn.Linear(hidden, hidden)]
    if kind == "linear":
        return nn.Linear(width, hidden)
    if kind == "mlp2x_gelu":
        return nn.Sequential(nn.Linear(width, hidden), *last)
    if kind == "mlp_downsample_3x3_fix":
        between = [nn.Linear(9 * width, 3 * width), nn.GELU(), nn.LayerNorm(3 * width)]
        outer = nn.Linear(3 * width, hidden)
        return nn.Sequential(nn.Identity(), nn.LayerNorm(9 * width), *between, outer, *last)
    packed = nn.Linear(4 * width, hidden)
    return nn.Sequential(nn.Identity(), nn.LayerNorm(4 * width), packed, *last)


def randomise(module: Any, random: Any) -> None:
    """Give all parameters values that spread what comes out."""
    import torch

    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=random)
            if value.ndim > 1:
                scale = 1.0 if "embed" in name else value[0].numel() ** -0.5
                value.copy_(noise * scale)
            else:
                value.copy_(0.1 * noise + ("bias" not in name))


def write_tokenizer(llm: Path, **changes: Any) -> int:
    """Train a sentencepiece model of Llama's kind and return the size of its vocabulary."""
    import sentencepiece

    llm.mkdir(parents=True, exist_ok=True)
    size = 500
    options: dict[str, Any] = {
        "vocab_size": size,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        input=str(TEXT), model_prefix=str(llm / "tokenizer"), **{**options, **changes}
    )
    (llm / "tokenizer.vocab").unlink()
    specials = {"0": "<unk>", "1": "<s>", "2": "</s>"}
    added = {index: {"content": token, "special": True} for index, token in specials.items()}
    _write(
        llm / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "added_tokens_decoder": added,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "legacy": False,
            "model_max_length": 1024,
            "pad_token": "<unk>",
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
        },
    )
    return size


def _write_llm(folder: Path, llm: Any) -> None:
    llm.save_pretrained(folder, max_shard_size="60KB")  # several files, as published
    _name(folder, "LlamaForCausalLM", rope_theta=10.0, rope_parameters=None)
    _write(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})


def _write_tower(folder: Path, tower: Any) -> None:
    """Write SigLIP under the names that transformers 4.36 gave its weights."""
    from safetensors.torch import save_file

    tower.config.save_pretrained(folder)
    _name(folder, "SiglipVisionModel")
    state = tower.state_dict()
    whole = all(name.startswith("vision_model.") for name in state)
    named = {name if whole else f"vision_model.{name}": value for name, value in state.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    _write(
        folder / "preprocessor_config.json",
        {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "SiglipImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": IMAGE_PX, "width": IMAGE_PX},
        },
    )


def _write_projector(folder: Path, kind: str, layers: Any) -> None:
    from safetensors.torch import save_file
    from torch import float16

    folder.mkdir()
    # in half precision, as published
    state = {f"layers.{name}": value.to(float16) for name, value in layers.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"mm_projector_type": kind, "model_type": "v2l_projector"}
    _write(folder / "config.json", {"architectures": ["MultimodalProjector"], **config})


def _top(projector: str, hidden: int) -> dict[str, Any]:
    return {
        "_name_or_path": "./vlm",
        "architectures": ["LlavaLlamaModel"],
        "hidden_size": hidden,
        "image_aspect_ratio": "resize",
        "interpolate_mode": "linear",
        "llm_cfg": {"_name_or_path": "./llm", "architectures": ["LlamaForCausalLM"]},
        "mm_hidden_size": WIDTH,
        "mm_projector_cfg": {"_name_or_path": "./mm_projector", "mm_projector_type": projector},
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "cls_patch",
        "mm_vision_select_layer": -2,
        "model_dtype": "torch.bfloat16",
        "model_type": "llava_llama",
        "num_video_frames": 8,
        "resume_path": "./vlm",
        "s2": False,
        "s2_max_split_size": 336,
        "s2_scales": "336,672,1008",
        "transformers_version": "4.36.2",
        "vision_resolution": -1,
        "vision_tower_cfg": {
            "_name_or_path": "./vision_tower",
            "model_type": "siglip_vision_model",
        },
    }


def _name(folder: Path, architecture: str, **changes: Any) -> None:
    """Write a part's config.json as older releases of transformers did."""
    config = json.loads((folder / "config.json").read_text())
    changed = {**config, "architectures": [architecture], **changes}
    kept = {name: value for name, value in changed.items() if name not in ("dtype",)}
    _write(folder / "config.json", {**kept, "torch_dtype": "float16"})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2))


def renamed(folder: Path, to: Path, name: str) -> Path:
    """Copy a checkpoint under another name."""
    return Path(copytree(folder, to / name))


def change(path: Path, **changes: Any) -> None:
    """Change settings of a JSON file."""
    _write(path, {**json.loads(path.read_text()), **changes})
