"""What int8 and int4 do to linear weights of the LLM, and to the checkpoint as their oracle."""

from collections.abc import Mapping
from dataclasses import dataclass, field
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


def find_rounding(model: nn.Module, decoder: Decoder, precision: Precision) -> Rounding:
    """Return scales for the precisions that round weights, nothing for the others."""
    scales: dict[str, Tensor] = {}
    left: list[str] = []
    if precision == "int8":
        scales = int8.find_scales(decoder)
    elif precision == "int4":
        scales, left = quantize.find_scales(decoder)
    return Rounding(precision, scales, left, quantize.owners(model, decoder, scales))


def observe_rounded(
    model: Any, family: Family, device: str, rounding: Rounding
) -> list[Expected] | None:
    """Round the checkpoint's own weights, in place, and ask it again: None if nothing is rounded.

    In int8 its layers round their inputs too, so that what is left are other sums and values that
    fall to the other side of a level. The head is as it was, as it may be the table of embeddings.
    """
    if not rounding.scales:
        return None
    if rounding.precision == "int4":
        quantize.round_weights(rounding.owners, rounding.scales, quantize.quantised)
        return observe(model, family, device)
    quantize.round_weights(rounding.owners, rounding.scales, int8.quantised)
    rounded = {id(value) for value in rounding.owners.values()}
    linears = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and id(module.weight) in rounded
    ]
    with int8.rounded_inputs(linears) as cut:
        return observe(model, family, device, cut)
