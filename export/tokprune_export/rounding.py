"""What int8 and int4 do to linear weights, and to the checkpoint as their oracle."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from tokprune.manifest import Precision
from tokprune_export import int8, quantize
from tokprune_export.decoder import Decoder
from tokprune_export.families import Family
from tokprune_export.oracle import Expected, observe

ROUNDED: tuple[Precision, ...] = ("int8", "int4")


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded."""

    precision: Precision
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)  # linear layers that stay as they are
    owners: Mapping[str, nn.Parameter] = field(default_factory=dict)  # in the checkpoint's modules
    encoder: Mapping[str, Tensor] = field(default_factory=dict)  # scales of the vision encoder
    encoder_owners: Mapping[str, nn.Parameter] = field(default_factory=dict)


def find_rounding(
    model: nn.Module,
    decoder: Decoder,
    precision: Precision,
    encoder: nn.Module | None = None,
    encoder_scales: Mapping[str, Tensor] | None = None,
) -> Rounding:
    """Return scales for the precisions that round weights, nothing for the others.

    Args:
        model: the checkpoint.
        decoder: our LLM over its weights.
        precision: of the LLM.
        encoder: our vision encoder over its weights, where it takes 8 bits.
        encoder_scales: of these.
    """
    scales: dict[str, Tensor] = {}
    left: list[str] = []
    if precision == "int8":
        scales = int8.find_scales(decoder)
    elif precision == "int4":
        scales, left = quantize.find_scales(decoder)
    own = [name for name in scales if name.startswith("layers.")]  # the head may be the table too
    found = Rounding(precision, scales, left, quantize.owners(model, decoder, own))
    if encoder is None or encoder_scales is None:
        return found
    owners = quantize.owners(model, encoder, encoder_scales)
    return replace(found, encoder=encoder_scales, encoder_owners=owners)


def observe_rounded(
    model: Any, family: Family, device: str, rounding: Rounding, saliency_layers: int
) -> list[Expected] | None:
    """Round the checkpoint's own weights, in place, and ask it again: None if nothing is rounded.

    In int8 its layers round their inputs too, so that what is left are other sums and values that
    fall to the other side of a level. The head is as it was, as it may be the table of embeddings.
    """
    if not rounding.scales and not rounding.encoder:
        return None
    if rounding.precision == "int4":
        quantize.round_weights(rounding.owners, rounding.scales, quantize.quantised)
        return observe(model, family, device, saliency_layers=saliency_layers)
    quantize.round_weights(rounding.owners, rounding.scales, int8.quantised)
    quantize.round_weights(rounding.encoder_owners, rounding.encoder, int8.quantised)
    both = (*rounding.owners.values(), *rounding.encoder_owners.values())
    rounded = {id(value) for value in both}
    linears = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and id(module.weight) in rounded
    ]
    with int8.rounded_inputs(linears) as cut:
        return observe(model, family, device, cut, saliency_layers=saliency_layers)
