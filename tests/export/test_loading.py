from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokprune_export.families import FAMILIES
from tokprune_export.loading import load_module
from tokprune_export.weights import dtypes

CHECKPOINTS = Path(__file__).parents[2] / "samples" / "scenes" / "checkpoints"


def values(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def mapped(folder: Path) -> bool:
    """Tell whether this process still has a weight file of the folder in its memory map."""
    return str(folder / "model.safetensors") in Path("/proc/self/maps").read_text()


def stored_as(folder: Path, dtype: torch.dtype, *names: str) -> Path:
    """Write Qwen2-VL's demo checkpoint with these weights, or all, in another dtype."""
    source = CHECKPOINTS / "qwen2_vl"
    folder.mkdir()
    for path in source.glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(source / "model.safetensors")
    for name in names or weights:
        weights[name] = weights[name].to(dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision"])
def test_a_module_is_as_transformers_itself_loads_it_in_float32(family: str) -> None:
    import transformers

    folder = CHECKPOINTS / family
    assert dtypes(folder) == {"BF16"}
    ours = FAMILIES[family].load(folder, None)
    kind = getattr(transformers, type(ours).__name__)
    theirs = kind.from_pretrained(folder, dtype=torch.float32)
    expected = dict(values(theirs))
    found = dict(values(ours))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name
    tied = (theirs.lm_head.weight is theirs.get_input_embeddings().weight,)
    assert (ours.lm_head.weight is ours.get_input_embeddings().weight,) == tied
    assert ours.dtype == ours.config.dtype == ours.config.text_config.dtype == torch.float32
    assert not ours.training
    assert not mapped(folder)  # converted one after another, then let go


def test_weights_of_several_dtypes_lose_nothing(tmp_path: Path) -> None:
    name = "model.norm.weight"
    folder = stored_as(tmp_path / "mixed", torch.float32, name)
    weights = load_file(folder / "model.safetensors")
    weights[name] += 2.0**-20  # which bfloat16 has no room for
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert dtypes(folder) == {"BF16", "F32"}
    model = FAMILIES["qwen2_vl"].load(folder, None)
    assert torch.equal(model.model.language_model.norm.weight, weights[name])


def test_float32_weights_stay_in_their_file(tmp_path: Path) -> None:
    folder = stored_as(tmp_path / "wide", torch.float32)
    model = FAMILIES["qwen2_vl"].load(folder, None)
    assert mapped(folder)
    weights = load_file(folder / "model.safetensors")
    assert torch.equal(model.model.language_model.norm.weight, weights["model.norm.weight"])


def test_weights_that_share_memory_still_do(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    source: Any = LlamaForCausalLM(config)
    source.to(torch.float16).save_pretrained(tmp_path / "llama")
    model = load_module(LlamaForCausalLM, tmp_path / "llama", config)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.dtype == torch.float32
