"""What the training writes: its own state to go on from, and plain Hugging Face folders."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

MIN_PIXELS, MAX_PIXELS = 56 * 56, 560 * 560
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW


def save_state(
    path: Path,
    facts: Mapping[str, str],
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> None:
    """Write weights and optimiser state in one rename."""
    tensors = {f"model.{name}": p.detach().cpu() for name, p in parameters.items()}
    for name, parameter in parameters.items():
        for key, value in optimiser.state[parameter].items():
            tensors[f"{key}.{name}"] = value.detach().cpu()
    partial = path.with_suffix(".partial")
    save_file({name: t.contiguous() for name, t in tensors.items()}, partial, dict(facts))
    partial.replace(path)


def load_state(
    path: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimiser: torch.optim.Optimizer,
) -> dict[str, str]:
    """Read what `save_state` wrote; returns its facts."""
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"model.{name}"])
            optimiser.state[parameter] = {
                key: tensors[f"{key}.{name}"].to(parameter.device if key != "step" else "cpu")
                for key in MOMENTS
            }
    with safe_open(path, "pt") as file:
        return file.metadata()


def save_hf(
    folder: Path, model: Qwen2VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write a folder that stock `from_pretrained` and `AutoProcessor` load, in bfloat16."""
    fresh = Qwen2VLForConditionalGeneration(model.config)  # saves the names of real checkpoints
    fresh.load_state_dict(model.state_dict())
    fresh.generation_config.do_sample = False
    torch.nn.Module.to(fresh, torch.bfloat16)
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _simplify(folder / "tokenizer_config.json")
    images = Qwen2VLImageProcessorPil(min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    images.save_pretrained(folder)
    _write_video_processor(folder)


def _simplify(path: Path) -> None:
    """Drop what is not about the tokenizer, and name the class that every version knows."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "backend"):
        config.pop(key, None)
    special = config.pop("extra_special_tokens", None)
    if special:
        config["additional_special_tokens"] = special
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["processor_class"] = "Qwen2VLProcessor"
    _write_json(path, config)


def _write_video_processor(folder: Path) -> None:
    """The video processor cannot be built without torchvision; its file is the picture's."""
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["processor_class"] = "Qwen2VLProcessor"
    _write_json(path, config)
    config.pop("image_processor_type")
    config |= {"video_processor_type": "Qwen2VLVideoProcessor", "do_sample_frames": False}
    _write_json(folder / "video_preprocessor_config.json", config)


def _write_json(path: Path, config: object) -> None:
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
