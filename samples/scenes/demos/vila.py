"""The demo VILA1.5: every picture a square of 336 pixels, 12 x 12 tokens, down its columns."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from checkpoint import write_json
from network import initialise
from safetensors.torch import save_file
from sentencepiece import SentencePieceTrainer
from tokenizer import SYSTEM_PROMPTS, corpus
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from demos import siglip
from demos.demo import Card, Demo, Llm, Pictures, Pixels, Plan, Size, trainable
from tokprune.families import FAMILIES as PROCESSORS
from tokprune.families import Processor
from tokprune.types import Prepared, Prompt
from tokprune_export.families import FAMILIES
from tokprune_export.families.vila import IMAGE, Vila
from tokprune_export.families.vila_projector import Projector
from tokprune_export.vila_conversations import VICUNA

SQUARE_PX = 336
PROJECTOR = "mlp_downsample"
VOCABULARY = 752  # 3 control tokens, 256 bytes, characters and merges
LAYER = -2  # of the vision encoder's hidden states, as in VILA1.5: the last layer is not used
SIZES = {
    "cpu": Size(vision_layers=4, vision_width=96, layers=5, hidden=128, mlp=384),
    "gpu": Size(vision_layers=6, vision_width=192, layers=8, hidden=256, mlp=768),
}
_LARGE = ((8, 8), (8, 8), (8, 12), (12, 8), (10, 10), (14, 14), (14, 14), (14, 14))
PLAN = Plan(
    bands=(
        Pictures(((4, 4),), 32, 112),
        Pictures(((6, 6), (5, 7), (7, 5)), 24, 168),
        Pictures(((8, 8), (8, 8), (8, 12), (12, 8), (10, 10)), 16, 224),
        Pictures((*_LARGE, (12, 16), (16, 13)), 10),
        Pictures(((5, 5), (6, 6), (6, 8), (8, 6), (7, 7)), 12),
    ),
    vision=(0.2, 0.15, 0.25, 0.4, 0.0),
    schedule=(
        (0.0, (0.7, 0.3, 0.0, 0.0, 0.0)),
        (0.08, (0.4, 0.3, 0.2, 0.1, 0.0)),
        (0.25, (0.08, 0.07, 0.15, 0.7, 0.0)),
        (0.45, (0.0, 0.0, 0.1, 0.9, 0.0)),
    ),
    again=(
        (0.0, (0.03, 0.47, 0.3, 0.2, 0.0)),
        (0.4, (0.0, 0.15, 0.25, 0.6, 0.0)),
        (0.7, (0.0, 0.0, 0.1, 0.9, 0.0)),
    ),
    others=((0.0, (0.0, 0.05, 0.15, 0.3, 0.5)),),
    layouts={"talk": 0.06, "several": 0.2, "first": 0.05, "later": 0.04},
)


def make(size: Size, seed: int) -> Vila:
    """A model with initial weights that learn fast; the patch embedding comes later."""
    torch.manual_seed(seed)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            intermediate_size=size.mlp,
            num_hidden_layers=size.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 300.0},
            pad_token_id=0,
        )
    )
    settings = siglip.settings(size, SQUARE_PX, size.vision_layers + 1, 2)
    settings.pop("model_type")
    tower = SiglipVisionModel(SiglipVisionConfig(**settings))
    config = {
        "mm_projector_type": PROJECTOR,
        "mm_vision_select_layer": LAYER,
        "vision_config": settings,
    }
    projector = Projector(PROJECTOR, size.vision_width, size.hidden)
    model = Vila(config, tower, projector, llama)
    initialise(llm(model))
    siglip.initialise(tower.base_model, size.vision_layers)
    return model


def load(folder: Path) -> Vila:
    """Read a checkpoint."""
    model: Vila = FAMILIES["vila"].load(folder, None)
    trainable(model)
    return model


def save(folder: Path, model: Vila) -> None:
    """Write a folder in the layout of VILA1.5's checkpoints, in bfloat16."""
    parts = {name: folder / name for name in ("llm", "vision_tower", "mm_projector")}
    for part in parts.values():
        part.mkdir(parents=True, exist_ok=True)
    for part, module in (("llm", model.llm), ("vision_tower", model.tower)):
        fresh = type(module)(module.config)
        fresh.load_state_dict(module.state_dict())
        torch.nn.Module.to(fresh, torch.bfloat16)
        fresh.save_pretrained(parts[part])
    _write_tokenizer(parts["llm"])
    write_json(parts["llm"] / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    size = {"height": SQUARE_PX, "width": SQUARE_PX}
    settings = {"do_resize": True, "do_rescale": True, "do_normalize": True, **siglip.GREY}
    settings |= {"resample": 3, "rescale_factor": 1 / 255, "size": size}
    settings["image_processor_type"] = "SiglipImageProcessor"
    write_json(parts["vision_tower"] / "preprocessor_config.json", settings)
    state = {name: value.to(torch.bfloat16) for name, value in model.projector.state_dict().items()}
    save_file(state, parts["mm_projector"] / "model.safetensors", metadata={"format": "pt"})
    config = {"mm_projector_type": PROJECTOR, "model_type": "v2l_projector"}
    named = {"architectures": ["MultimodalProjector"], **config}
    write_json(parts["mm_projector"] / "config.json", named)
    write_json(folder / "config.json", _top(model))


def _top(model: Vila) -> dict[str, Any]:
    return {
        "architectures": ["LlavaLlamaModel"],
        "hidden_size": model.llm.config.hidden_size,
        "image_aspect_ratio": "resize",
        "llm_cfg": {"architectures": ["LlamaForCausalLM"]},
        "mm_hidden_size": model.tower.config.hidden_size,
        "mm_projector_cfg": {"mm_projector_type": PROJECTOR},
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "cls_patch",
        "mm_vision_select_layer": LAYER,
        "model_type": "llava_llama",
        "s2": False,
        "vision_tower_cfg": {"model_type": "siglip_vision_model"},
    }


def _write_tokenizer(llm: Path) -> None:
    """Train a sentencepiece model of Llama's kind; always the same."""
    if not (llm / "tokenizer.model").exists():
        text = llm / "corpus.txt"
        lines = [line for line in corpus(Random("tokenizer/vila")) if "\n" not in line]
        frame = [f"{VICUNA.head[0]}{VICUNA.system} {VICUNA.user}{VICUNA.reply}"] * 3000
        text.write_text("\n".join([*lines, *SYSTEM_PROMPTS, *frame]), encoding="utf-8")
        SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(llm / "tokenizer"),
            vocab_size=VOCABULARY,
            model_type="bpe",
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            num_threads=1,
            minloglevel=2,
        )
        text.unlink()
        (llm / "tokenizer.vocab").unlink()
    specials = ("<unk>", "<s>", "</s>")
    added = {str(i): {"content": token, "special": True} for i, token in enumerate(specials)}
    config = {"add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added}
    config |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    config |= {"legacy": False, "model_max_length": 4096, "tokenizer_class": "LlamaTokenizer"}
    write_json(llm / "tokenizer_config.json", config)


def llm(model: Vila) -> Llm:
    """The language half."""
    language: Any = model.llm.model
    return Llm(
        language.embed_tokens,
        language.layers,
        language.norm,
        language.rotary_emb,
        model.llm.lm_head,
    )


def pixels(prepared: Sequence[Prepared]) -> dict[str, Tensor]:
    """Squares [t, 3, px, px]."""
    return {
        "pixel_values": torch.cat([torch.from_numpy(p.calls[0]["pixel_values"]) for p in prepared])
    }


def encode(model: Vila, given: Pixels) -> Tensor:
    """Vision tokens [n, d]."""
    tower = model.tower.base_model
    layers = len(tower.encoder.layers) + 1 + LAYER
    return model.projector(siglip.forward(tower, given["pixel_values"], layers)).flatten(0, 1)


def set_patches(model: Vila, rows: Tensor) -> None:
    """Set the patch embedding."""
    weight = model.tower.base_model.embeddings.patch_embedding.weight
    with torch.no_grad():
        weight.copy_(rows.view_as(weight))


def scaled(texts: Path, side_px: int) -> Processor:
    """The processor of a checkpoint whose squares have another side, from the text files of one.

    What the training's encoder sees of these are the same positions, interpolated.
    """
    folder = texts / f"scaled-{side_px}"
    folder.mkdir(exist_ok=True)
    for name in ("config.json", "preprocessor_config.json"):
        config = json.loads((texts / name).read_text(encoding="utf-8"))
        if "vision_config" in config:
            config["vision_config"]["image_size"] = side_px
        else:
            config["size"] = {"height": side_px, "width": side_px}
        write_json(folder / name, config)
    return PROCESSORS["vila"].open(folder)


def generate(model: Vila, prompt: Prompt, prepared: Sequence[Prepared]) -> Tensor:
    """What SigLIP and Llama of transformers answer, greedily."""
    ids = prompt.ids.copy()
    ids[prompt.slots] = 0
    firsts = np.cumsum([0, *(len(each.where) for each in prepared[:-1])])
    ids[prompt.slots[firsts]] = IMAGE
    given = np.delete(ids, np.delete(prompt.slots, firsts))  # one id stands for a picture
    values = pixels(prepared)["pixel_values"]
    return model.generate(
        torch.from_numpy(given)[None], values, max_new_tokens=16, do_sample=False
    )[0]


CARD = Card(
    name="VILA1.5",
    architecture="`SiglipVisionModel`, `mlp_downsample` and `LlamaForCausalLM` in the layout of "
    "VILA1.5's checkpoints (`llm/`, `vision_tower/`, `mm_projector/`), SigLIP's features of layer "
    "-2; transformers has no class for the whole",
    tokenizer="sentencepiece BPE of Llama's kind, with VILA1.5's conversation",
    pictures="every picture is made a square of 336 x 336 px, 144 vision tokens. VILA takes the "
    "frames of a video as pictures; this one was not trained on videos",
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
    scaled=scaled,
)
