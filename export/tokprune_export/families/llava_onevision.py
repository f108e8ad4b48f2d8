"""LLaVA-OneVision: the vision encoder as a graph.

Follows transformers' LlavaOnevisionModel (5.23).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from tokprune_export.decoder import TextModel
from tokprune_export.errors import ExportRefused
from tokprune_export.families.family import Config, Family
from tokprune_export.families.llava_onevision_trials import TOKEN_IDS, tiler_of, trials
from tokprune_export.families.text_settings import check_text
from tokprune_export.layers import Linear, frozen, like
from tokprune_export.loading import load_module
from tokprune_export.onnx import Input, Source
from tokprune_export.saliency import outputs
from tokprune_export.siglip import Siglip, layers_used, watched_layers

ENCODER, LLM = "siglip_vision_model", "qwen2"


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
        tiler_of(config)
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
    tiler = tiler_of(model.config.to_dict())
    side = tiler.tile_px
    tokens = outputs(
        "tiles", tiler.newline + 1, model.config.text_config.hidden_size, layers=saliency_layers
    )
    pixels = Input("pixel_values", torch.zeros(3, 3, side, side), ("tiles", 3, side, side))
    return Source(VisionEncoder(model, saliency_layers), (pixels,), tokens)


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
