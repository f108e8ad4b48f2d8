"""VILA1.5: SigLIP, a projector and Llama as one model, its vision half as a graph, random prompts.

transformers has no class for it; the parts are HF's. Follows MultimodalProjector, DownSampleBlock
and prepare_inputs_labels_for_multimodal of NVlabs/VILA.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from tokprune.families import Span
from tokprune.families.vila import ARRANGEMENTS, PADDED, RESIZED, Grid, from_pixels, grid_of
from tokprune.types import Prepared
from tokprune_export.decoder import TextModel
from tokprune_export.errors import ExportRefused
from tokprune_export.families.family import Config, Family, Trial
from tokprune_export.families.text_settings import check_text
from tokprune_export.families.vila_projector import PackedMean, Projector
from tokprune_export.layers import LayerNorm, Linear
from tokprune_export.loading import load_module, load_weights
from tokprune_export.onnx import Input, Source
from tokprune_export.saliency import outputs
from tokprune_export.siglip import Siglip, layers_used, watched_layers
from tokprune_export.vila_checkpoint import LLM, PROJECTOR, TOWER, read_config

IMAGE = -200  # stands for a picture in the ids that VILA's model takes
SEVERAL_SCALES = ("s2", "dynamic_s2", "ps3")


def check(config: Config) -> None:
    """Refuse settings that the graphs would silently ignore."""
    projector, aspect = config.get("mm_projector_type"), config.get("image_aspect_ratio")
    if projector not in ARRANGEMENTS:
        raise ExportRefused(
            f"mm_projector/config.json has mm_projector_type {projector!r}. Can be exported: "
            f"{', '.join(ARRANGEMENTS)}"
        )
    for name in SEVERAL_SCALES:
        if config.get(name):
            raise ExportRefused(
                f"config.json has {name} = true: the vision encoder reads pictures at one scale. "
                "Only checkpoints without S2 can be exported, such as VILA1.5-3b for VILA1.5-3b-s2"
            )
    if aspect not in (RESIZED, PADDED, None):
        raise ExportRefused(
            f"config.json has image_aspect_ratio {aspect!r}. Can be exported: {RESIZED}, {PADDED}"
        )
    if config.get("mm_use_im_start_end"):
        raise ExportRefused("config.json has mm_use_im_start_end = true: no such tokens are put")
    _check_tower(config)
    check_text(config["text_config"])


def _check_tower(config: Config) -> None:
    feature, layer = config.get("mm_vision_select_feature"), config.get("mm_vision_select_layer")
    if feature != "cls_patch":
        raise ExportRefused(
            f"config.json has mm_vision_select_feature {feature!r}: SigLIP has no class token, and "
            "'patch' would drop a patch in its place. Can be exported: 'cls_patch' (all of them)"
        )
    depth = config["vision_config"].get("num_hidden_layers")
    known = range(-depth - 1, depth + 1) if isinstance(depth, int) else ()
    if layer not in known:
        raise ExportRefused(
            f"config.json has mm_vision_select_layer {layer!r}; the vision encoder has {depth} "
            "layers"
        )


class Vila(nn.Module):
    """HF's modules in VILA's arrangement: what the graphs are compared with."""

    def __init__(self, config: Config, tower: Any, projector: nn.Module, llm: Any) -> None:
        super().__init__()
        self.config = config
        self.tower, self.projector, self.llm = tower, projector, llm

    @property
    def generation_config(self) -> Any:
        """Llama's."""
        return self.llm.generation_config

    @generation_config.setter
    def generation_config(self, value: Any) -> None:
        self.llm.generation_config = value

    def set_attn_implementation(self, name: str) -> None:
        """Choose how Llama attends."""
        self.llm.set_attn_implementation(name)

    def encode(self, pixel_values: Float[Tensor, "t 3 s s"]) -> Float[Tensor, "t n d"]:
        """Return the vision tokens of each picture."""
        states = self.tower(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        return self.projector(states[self.config["mm_vision_select_layer"]])

    def generate(
        self,
        input_ids: Int64[Tensor, "1 s"],
        pixel_values: Float[Tensor, "t 3 s s"],
        **options: Any,
    ) -> Any:
        """Answer, with each `IMAGE` replaced by the vision tokens of a picture."""
        table, pictures = self.llm.get_input_embeddings(), iter(self.encode(pixel_values))
        rows = [next(pictures) if token == IMAGE else table(token[None]) for token in input_ids[0]]
        embeds = torch.cat(rows)[None]
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
        return self.llm.generate(inputs_embeds=embeds, attention_mask=mask, **options)


def load(folder: Path, layers: int | None) -> Vila:
    """Return the parts in float32, Llama with its first `layers` layers only, if given."""
    from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

    config = read_config(folder)
    text_config: Any = LlamaConfig.from_pretrained(folder / LLM)
    if layers is not None:
        text_config.num_hidden_layers = layers
    tower_config: Any = SiglipVisionConfig.from_pretrained(folder / TOWER)
    tower = load_module(SiglipVisionModel, folder / TOWER, tower_config)
    llm = load_module(LlamaForCausalLM, folder / LLM, text_config)
    with torch.device("meta"):
        projector = Projector(
            config["mm_projector_type"], tower_config.hidden_size, text_config.hidden_size
        )
    load_weights(projector, folder / PROJECTOR)
    return Vila(config, tower, projector, llm)


def text(model: Vila) -> TextModel:
    """Return the language half."""
    config = model.llm.config
    return TextModel(
        model=model.llm.model,
        head=model.llm.lm_head,
        mrope_section=None,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
    )


class VisionEncoder(nn.Module):
    """Pictures to vision tokens, in the projector's order."""

    def __init__(self, model: Vila, saliency_layers: int = 0) -> None:
        super().__init__()
        used = [model.config["mm_vision_select_layer"]]
        self.tower = Siglip(model.tower, used, saliency_layers)
        given: Any = model.projector.layers
        layers = list(given) if isinstance(given, nn.Sequential) else [given]
        self.projector = nn.Sequential(*map(_ours, layers))
        self.mean = PackedMean(model.config["mm_projector_type"])

    def forward(self, pixel_values: Float[Tensor, "t 3 s s"]) -> Tensor | tuple[Tensor, Tensor]:
        """Encode each picture by itself: vision tokens [t, n, d], and their saliency [t, n]."""
        states, saliency = self.tower(pixel_values)
        tokens = self.projector(states)
        return tokens if saliency is None else (tokens, self.mean(saliency))


def _ours(layer: nn.Module) -> nn.Module:
    """Return the layer as one that computes in the precision of its input."""
    if isinstance(layer, nn.Linear):
        return Linear(layer)
    return LayerNorm(layer) if isinstance(layer, nn.LayerNorm) else layer


def attention_layers(config: Config) -> int:
    """Return the layers that vision tokens come from."""
    depth = config["vision_config"]["num_hidden_layers"]
    return layers_used([config["mm_vision_select_layer"]], depth)


def vision(model: Vila, saliency_layers: int = 0) -> Source:
    """Return the vision encoder, to be traced with 3 pictures."""
    side, width = model.config["vision_config"]["image_size"], model.llm.config.hidden_size
    pixels = Input("pixel_values", torch.zeros(3, 3, side, side), ("tiles", 3, side, side))
    tokens = outputs("tiles", _grid(model).side ** 2, width, layers=saliency_layers)
    return Source(VisionEncoder(model, saliency_layers), (pixels,), tokens)


def _grid(model: Vila) -> Grid:
    tower = model.config["vision_config"]
    patches = tower["image_size"] // tower["patch_size"]
    return grid_of(patches, model.config["mm_projector_type"])


TRIALS: dict[str, tuple[int, ...]] = {  # frames of each: 1 is a picture
    "1 picture": (1,),
    "2 pictures": (1, 1),
    "3 pictures": (1, 1, 1),
    "4 frames": (4,),
    "1 picture, 2 frames": (1, 2),
}


def trials(model: Vila) -> Iterator[Trial]:
    """Yield prompts of other numbers of pictures than were traced."""
    for seed, (name, frames) in enumerate(TRIALS.items()):
        yield _trial(model, name, frames, torch.Generator().manual_seed(seed))


def _trial(model: Vila, name: str, frames: Sequence[int], random: torch.Generator) -> Trial:
    media = tuple(
        _random(model, index, frame, random)
        for index, count in enumerate(frames)
        for frame in range(count)
    )
    given = ids = _words(model, random, 4)
    slots, spans = [], [Span(len(ids))]
    for number, shown in enumerate(media):
        words = _words(model, random, 2 if number < len(media) - 1 else 9)
        count = len(shown.where)
        slots += range(len(ids), len(ids) + count)
        ids = [*ids, *[0] * count, *words]  # vision tokens take the place of the zeros
        given = [*given, IMAGE, *words]
        spans += [Span(count, shown.regions), Span(len(words))]
    pixels = torch.cat([torch.from_numpy(shown.calls[0]["pixel_values"]) for shown in media])
    return Trial(
        name=name,
        ids=torch.tensor(ids),
        slots=torch.tensor(slots),
        spans=tuple(spans),
        positions=torch.arange(len(ids))[None, None],
        next_position=len(ids),
        media=media,
        inputs={"input_ids": torch.tensor([given]), "pixel_values": pixels},
    )


def _words(model: Vila, random: torch.Generator, count: int) -> list[int]:
    return torch.randint(model.llm.config.vocab_size, (count,), generator=random).tolist()


def _random(model: Vila, index: int, frame: int, random: torch.Generator) -> Prepared:
    side = model.config["vision_config"]["image_size"]
    pixels = torch.randn(1, 3, side, side, generator=random).numpy()
    return from_pixels(_grid(model), index, frame, pixels, size_hw=(1, 1))


def encode(model: Vila, inputs: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
    """Run HF's own vision encoder and the projector."""
    return model.encode(inputs["pixel_values"]).flatten(0, 1)


def saliency(model: Vila, inputs: Mapping[str, Tensor], layers: int) -> Float[Tensor, " n"]:
    """Run HF's own vision encoder, and watch its last layers that are used."""
    used = [model.config["mm_vision_select_layer"]]
    with watched_layers(model.tower, used, layers) as total:
        encode(model, inputs)
        shares = total().unflatten(0, (len(inputs["pixel_values"]), -1))
    return PackedMean(model.config["mm_projector_type"])(shares).flatten()


FAMILY = Family(
    check=check,
    load=load,
    text=text,
    vision=vision,
    attention_layers=attention_layers,
    trials=trials,
    encode=encode,
    saliency=saliency,
)
