"""What int8 and int4 do to linear weights, and to the checkpoint as their oracle."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from tokprune.manifest import Precision
from tokprune_export import int8, quantize, static_int8
from tokprune_export.decoder import Decoder
from tokprune_export.families import Family
from tokprune_export.oracle import Expected, observe, uncut
from tokprune_export.static_scales import NOT_ROUNDED, Scales

ROUNDED: tuple[Precision, ...] = ("int8", "int4")


@dataclass(frozen=True)
class Rounding:
    """How weights are rounded."""

    precision: Precision
    scales: Mapping[str, Tensor] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)  # linear layers that stay as they are
    owners: Mapping[str, nn.Parameter] = field(default_factory=dict)  # in the checkpoint's modules
    encoder: Scales = NOT_ROUNDED  # of the vision encoder; empty: as the rest
    encoder_owners: Mapping[str, nn.Parameter] = field(default_factory=dict)


def find_rounding(
    model: nn.Module,
    decoder: Decoder,
    precision: Precision,
    encoder: nn.Module | None = None,
    encoder_scales: Scales = NOT_ROUNDED,
) -> Rounding:
    """Return scales for the precisions that round weights, nothing for the others.

    Args:
        model: the checkpoint.
        decoder: our LLM over its weights.
        precision: of the LLM.
        encoder: our vision encoder over its weights.
        encoder_scales: of these, where it takes 8 bits.
    """
    scales: dict[str, Tensor] = {}
    left: list[str] = []
    if precision == "int8":
        scales = int8.find_scales(decoder)
    elif precision == "int4":
        scales, left = quantize.find_scales(decoder)
    own = [name for name in scales if name.startswith("layers.")]  # the head may be the table too
    found = Rounding(precision, scales, left, quantize.owners(model, decoder, own))
    if encoder is None:
        return found
    owners = quantize.owners(model, encoder, encoder_scales.columns)
    return replace(found, encoder=encoder_scales, encoder_owners=owners)


def observe_rounded(
    model: Any, family: Family, device: str, rounding: Rounding, saliency_layers: int
) -> list[Expected] | None:
    """Round the checkpoint's own weights, in place, and ask it again: None if nothing is rounded.

    In int8 its layers round their inputs too, so that what is left are other sums and values that
    fall to the other side of a level. So do those of a vision encoder in 8 bits. The head is as it
    was, as it may be the table of embeddings.
    """
    encoder = rounding.encoder
    if not rounding.scales and not encoder.columns:
        return None
    rounded = quantize.quantised if rounding.precision == "int4" else int8.quantised
    quantize.round_weights(rounding.owners, rounding.scales, rounded)
    quantize.round_weights(rounding.encoder_owners, encoder.columns, int8.quantised)
    linears = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Linear)}
    mine = {name: linears[id(value)] for name, value in rounding.encoder_owners.items()}
    dynamic = [] if encoder.inputs else list(mine.values())
    if rounding.precision == "int8":
        dynamic += [linears[id(value)] for value in rounding.owners.values()]
    fixed = [(mine[name], scale) for name, scale in encoder.inputs.items()]
    with ExitStack() as entered:
        cut = entered.enter_context(int8.rounded_inputs(dynamic)) if dynamic else uncut
        entered.enter_context(static_int8.fixed_inputs(fixed))
        return observe(model, family, device, cut, saliency_layers=saliency_layers)
