"""LLaVA-OneVision: the vision encoder as a graph, and random prompts for the parity gate.

Follows transformers' LlavaOnevisionModel (5.23).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional

from tokprune.families import Span, anyres
from tokprune.families.anyres import Hw, Tiler
from tokprune.families.llava_onevision import TileSettings, from_tiles
from tokprune.types import Array, Prepared
from tokprune_export.decoder import TextModel
from tokprune_export.errors import ExportRefused
from tokprune_export.families.family import Config, Family, Trial
from tokprune_export.families.text_settings import check_text
from tokprune_export.layers import Linear, frozen, like
from tokprune_export.loading import load_module
from tokprune_export.onnx import Input, Source
from tokprune_export.saliency import outputs
from tokprune_export.siglip import Siglip, layers_used, watched_layers

TOKEN_IDS = ("image_token_index", "video_token_index")
ENCODER, LLM = "siglip_vision_model", "qwen2"
MOST_TOKENS = (
    1700  # vision tokens of a trial: HF's attention maps of more would fill a small machine
)


def check(config: Config) -> None:
    """Refuse settings that the graphs would silently ignore."""
    missing = [name for name in TOKEN_IDS if not isinstance(config.get(name), int)]
    if missing:
        raise ExportRefused(f"config.json lacks {', '.join(missing)}")
    text, encoder = config.get("text_config") or {}, config.get("vision_config") or {}
    for half, kind, known in (("text", text, LLM), ("vision", encoder, ENCODER)):
        if kind.get("model_type", known) != known:
            raise ExportRefused(
                f"config.json has a {half}_config of model_type {kind['model_type']!r}: of "
                f"LLaVA-OneVision's parts only {known!r} can be exported"
            )
    check_text(text)
    _check_features(config, encoder.get("num_hidden_layers"))
    try:
        _tiler(config)
    except (ValueError, msgspec.ValidationError) as error:
        raise ExportRefused(f"config.json: {error}") from None


def _check_features(config: Config, count: int | None) -> None:
    if config.get("vision_feature_select_strategy", "full") != "full":
        raise ExportRefused(
            "config.json has vision_feature_select_strategy = "
            f"{config['vision_feature_select_strategy']!r}, which drops a tile's first token as a "
            "class token. SigLIP has none: expected 'full'"
        )
    layers = _layers(config.get("vision_feature_layer", -1))
    if count and not all(-count - 1 <= layer <= count for layer in layers):
        raise ExportRefused(
            f"config.json has vision_feature_layer = {config['vision_feature_layer']}, and the "
            f"vision encoder {count} layers"
        )


def _layers(setting: int | Sequence[int]) -> list[int]:
    return [setting] if isinstance(setting, int) else list(setting)


def load(folder: Path, layers: int | None) -> Any:
    """Return the HF module in float32, with its first `layers` decoder layers only, if given."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    config = LlavaOnevisionConfig.from_pretrained(folder)
    return load_module(LlavaOnevisionForConditionalGeneration, folder, config, layers)


def text(model: Any) -> TextModel:
    """Return the language half."""
    decoder = model.model.language_model
    config = decoder.config
    return TextModel(
        model=decoder,
        head=model.lm_head,
        mrope_section=None,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=decoder.layers[0].self_attn.head_dim,
    )


class VisionEncoder(nn.Module):
    """Tiles to vision tokens, those of a tile followed by the newline, for the host to place."""

    def __init__(self, model: Any, saliency_layers: int = 0) -> None:
        super().__init__()
        config, projector = model.config, model.model.multi_modal_projector
        used = _layers(config.vision_feature_layer)
        self.encoder = Siglip(model.model.vision_tower, used, saliency_layers)
        self.up, self.down = Linear(projector.linear_1), Linear(projector.linear_2)
        self.activation = projector.act
        self.newline = frozen(model.model.image_newline)

    def forward(self, pixel_values: Float[Tensor, "t 3 h w"]) -> Tensor | tuple[Tensor, Tensor]:
        """Encode each tile by itself: tokens [t, p, d], and saliency [t, p], 0 of newlines."""
        states, saliency = self.encoder(pixel_values)
        tokens = self.down(self.activation(self.up(states)))
        newline = like(self.newline, tokens).expand(tokens.shape[0], 1, -1)
        tokens = torch.cat((tokens, newline), dim=1)
        return tokens if saliency is None else (tokens, functional.pad(saliency, (0, 1)))


def attention_layers(config: Config) -> int:
    """Return the layers that vision tokens come from."""
    from transformers import LlavaOnevisionConfig

    whole: Any = LlavaOnevisionConfig.from_dict(dict(config))  # with the class's defaults
    return layers_used(_layers(whole.vision_feature_layer), whole.vision_config.num_hidden_layers)


def vision(model: Any, saliency_layers: int = 0) -> Source:
    """Return the vision encoder, to be traced with 3 tiles."""
    tiler = _tiler(model.config.to_dict())
    side = tiler.tile_px
    tokens = outputs(
        "tiles", tiler.newline + 1, model.config.text_config.hidden_size, layers=saliency_layers
    )
    pixels = Input("pixel_values", torch.zeros(3, 3, side, side), ("tiles", 3, side, side))
    return Source(VisionEncoder(model, saliency_layers), (pixels,), tokens)


def _tiler(config: Config) -> Tiler:
    return msgspec.convert(dict(config), TileSettings).tiler()


class Picture(NamedTuple):
    """A picture, its size in tiles."""

    height: float
    width: float


class Film(NamedTuple):
    """A video."""

    frames: int


# Sizes are odd, so that something of the crops is padding.
TRIALS: dict[str, tuple[Picture | Film, ...]] = {
    "2 tiles": (Picture(0.86, 0.97),),
    "3 tiles": (Picture(0.29, 1.93),),
    "5 tiles": (Picture(3.91, 0.24),),
    "10 tiles": (Picture(2.77, 2.93),),
    "17 tiles, scaled": (Picture(3.59, 3.97),),
    "2 pictures": (Picture(0.5, 1), Picture(1, 1)),
    "3 pictures": (Picture(1, 1), Picture(2, 1), Picture(1, 2)),
    "1 frame": (Film(1),),
    "3 frames": (Film(3),),
    "16 frames": (Film(16),),
    "picture and 2 videos": (Picture(0.97, 0.66), Film(2), Film(2)),
}


def trials(model: Any) -> Iterator[Trial]:
    """Yield prompts of sizes that were not traced, as long as they are not too long."""
    tiler = _tiler(model.config.to_dict())
    for seed, (name, shown) in enumerate(TRIALS.items()):
        random = torch.Generator().manual_seed(seed)
        pictures = sum(isinstance(each, Picture) for each in shown)
        media = [
            _film(tiler, index, each, random)
            if isinstance(each, Film)
            else _picture(tiler, index, each, random, alone=pictures == 1)
            for index, each in enumerate(shown)
        ]
        if sum(len(each.where) for each in media) <= MOST_TOKENS:
            yield _trial(model, name, media, random)


def _film(tiler: Tiler, index: int, film: Film, random: torch.Generator) -> Prepared:
    layout = anyres.film(tiler, index, film.frames)
    return from_tiles("video", _pixels(tiler, film.frames, random), layout, Hw(1, 1))


def _picture(
    tiler: Tiler, index: int, picture: Picture, random: torch.Generator, *, alone: bool
) -> Prepared:
    size = Hw(int(picture.height * tiler.tile_px), int(picture.width * tiler.tile_px))
    if not alone:
        pixels = _pixels(tiler, 1, random)
        return from_tiles("picture", pixels, anyres.among_others(tiler, index), size)
    crops = tiler.crops(size)
    pixels = _pixels(tiler, 1 + crops.height * crops.width, random)
    return from_tiles("picture", pixels, anyres.alone(tiler, index, size), size)


def _pixels(tiler: Tiler, tiles: int, random: torch.Generator) -> Float32[Array, "t 3 _ _"]:
    return torch.randn(tiles, 3, tiler.tile_px, tiler.tile_px, generator=random).numpy()


def _trial(
    model: Any,
    name: str,
    media: Sequence[Prepared],
    random: torch.Generator,
) -> Trial:
    words = _words(model.config, random, len(media))
    ids = [*next(words)]
    spans, slots = [Span(len(ids))], list[int]()
    for each in media:
        count, said = len(each.where), next(words)
        slots += range(len(ids), len(ids) + count)
        placeholder = "video_token_index" if each.kind == "video" else "image_token_index"
        ids += [getattr(model.config, placeholder)] * count + said
        spans += [Span(count, each.regions), Span(len(said))]
    return Trial(
        name=name,
        ids=torch.tensor(ids),
        slots=torch.tensor(slots),
        spans=tuple(spans),
        positions=torch.arange(len(ids))[None, None],
        next_position=len(ids),
        media=tuple(media),
        inputs=_hf_inputs(ids, media),
    )


def _words(config: Any, random: torch.Generator, media: int) -> Iterator[list[int]]:
    """Yield random text: before everything shown, and after each part of it."""
    special = {getattr(config, name) for name in TOKEN_IDS}
    plain = torch.tensor([i for i in range(config.text_config.vocab_size) if i not in special])
    for length in (4, *[3] * (media - 1), 11):
        yield plain[torch.randint(len(plain), (length,), generator=random)].tolist()


def _hf_inputs(ids: Sequence[int], media: Sequence[Prepared]) -> dict[str, Tensor]:
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
    }
    stills = [each for each in media if each.kind == "picture"]
    videos = [_tiles(each) for each in media if each.kind == "video"]
    if stills:
        inputs["pixel_values"] = torch.stack([_tiles(each) for each in stills])
        inputs["image_sizes"] = torch.tensor([each.size_hw for each in stills])
        inputs["batch_num_images"] = torch.tensor([len(stills)])
    if videos:
        inputs["pixel_values_videos"] = torch.stack(videos)
    return inputs


def _tiles(shown: Prepared) -> Float[Tensor, "t 3 _ _"]:
    return torch.from_numpy(np.concatenate([call["pixel_values"] for call in shown.calls]))


def encode(model: Any, inputs: Mapping[str, Tensor]) -> Float[Tensor, "n d"]:
    """Run HF's own vision encoder, projector and packing."""
    shown: list[Tensor] = []
    if "pixel_values" in inputs:
        names = ("pixel_values", "image_sizes", "batch_num_images")
        pictures = model.model.get_image_features(**{name: inputs[name] for name in names})
        shown += pictures.pooler_output
    if "pixel_values_videos" in inputs:
        videos = model.model.get_video_features(inputs["pixel_values_videos"])
        shown += videos.pooler_output
    return torch.cat(shown)


def saliency(model: Any, inputs: Mapping[str, Tensor], layers: int) -> Float[Tensor, " n"]:
    """Run HF's own vision encoder, watch its last layers, and pack with HF's own packing.

    What was watched takes the place of the projector's output: pictures first, then videos.
    """
    inner, newline = model.model, model.model.image_newline
    used = _layers(model.config.vision_feature_layer)
    with watched_layers(inner.vision_tower, used, layers) as total:

        def replaced(module: nn.Module, given: Any, output: Tensor) -> Tensor:
            del module, given
            return total().unflatten(0, output.shape[:2])[..., None]

        hook = inner.multi_modal_projector.register_forward_hook(replaced)
        inner.image_newline = nn.Parameter(torch.zeros_like(newline[:1]))
        try:
            return encode(model, inputs)[:, 0]
        finally:
            inner.image_newline = newline
            hook.remove()


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
