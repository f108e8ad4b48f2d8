"""Linear weights in 4 bits: symmetric, in blocks of 128 along the inputs, with float16 scales.

In the graph they are `DequantizeLinear` (opset 21) before `MatMul`: the form that ONNX Runtime
fuses and that TensorRT takes (it wants no zero points and blocks of 128). Values are rounded to the
nearest of 16 levels; the scale of a block is the one, of a few, that leaves the least squared error
(clipping the largest values can pay: arXiv:1902.06822 section 3).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, Float16, Int8
from torch import Tensor, nn

from tokprune_export.decoder import Decoder
from tokprune_export.layers import Linear
from tokprune_export.narrow import cast_type, raw, replace_node

BLOCK = 128
OPSET = 21  # the first whose DequantizeLinear has blocks and 4 bits
LOWEST, HIGHEST = -8, 7
SCALE = "_scale"  # after the name of a weight, in the graph
# What the largest value of a block is divided by: 7 clips nothing, more clip more.
DIVISORS = (7.0, 7.5, 8.0, 8.5, 9.0, 10.0)
_PART = 1024  # columns at once, so that the search needs little memory


def linears(decoder: Decoder) -> Iterator[tuple[str, Linear]]:
    """Yield the linear layers that may be quantised, as they are called: not the head."""
    for name, module in decoder.layers.named_modules(prefix="layers"):
        if isinstance(module, Linear):
            yield name, module


def find_scales(decoder: Decoder) -> tuple[dict[str, Tensor], list[str]]:
    """Return the scales of each weight, and the layers that no whole blocks fit into."""
    scales: dict[str, Tensor] = {}
    left: list[str] = []
    for name, linear in linears(decoder):
        if linear.weight.shape[0] % BLOCK:
            left.append(name)
        else:
            scales[f"{name}.weight"] = scales_of(linear.weight)
    return scales, left


def scales_of(weight: Float[Tensor, "k n"]) -> Float16[Tensor, "b n"]:
    """Return the scale of each block and column that leaves the least squared error."""
    return torch.cat([_scales(part) for part in weight.split(_PART, dim=1)], dim=1)


def levels_of(weight: Float[Tensor, "k n"], scales: Float16[Tensor, "b n"]) -> Int8[Tensor, "k n"]:
    """Round to the nearest level."""
    blocks = weight.float().unflatten(0, (-1, BLOCK))
    levels = (blocks / scales.float()[:, None]).round().clamp(LOWEST, HIGHEST)
    return levels.to(torch.int8).flatten(0, 1)


def quantised(weight: Float[Tensor, "k n"], scales: Float16[Tensor, "b n"]) -> Float[Tensor, "k n"]:
    """Return the values that a graph makes of the levels."""
    blocks = levels_of(weight, scales).float().unflatten(0, (-1, BLOCK))
    return (blocks * scales.float()[:, None]).flatten(0, 1)


def owners(model: nn.Module, ours: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the checkpoint's own parameters whose storage weights of our module share."""
    found = {value.data_ptr(): value for value in model.parameters()}
    weights = dict(ours.named_parameters())
    return {name: found[weights[name].data_ptr()] for name in names}


def round_weights(
    owners: Mapping[str, nn.Parameter],
    scales: Mapping[str, Tensor],
    rounded: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Give the checkpoint's own modules the rounded weights, in place, as an oracle of the graph.

    It then tells faults of the graph from what rounding does to answers.
    """
    for name, value in owners.items():
        value.data.copy_(rounded(value.data.t(), scales[name].to(value.device)).t())


def insert(model: ir.Model, scales: Mapping[str, Tensor]) -> None:
    """Let the graph read its weights from 4 bits, where there are scales for them."""
    for name, found in scales.items():
        value = model.graph.initializers[f"decoder.{name}"]
        casts = [use.node for use in value.uses()]
        kinds = {cast_type(node) for node in casts}
        if kinds != {ir.DataType.FLOAT16} or value.const_value is None:
            raise ValueError(f"{name} is read in another way than by one linear layer")
        scale = ir.Value(
            name=f"{value.name}{SCALE}",
            shape=ir.Shape(found.shape),
            type=ir.TensorType(ir.DataType.FLOAT16),
            const_value=ir.tensor(found.numpy(), name=f"{value.name}{SCALE}"),
        )
        model.graph.register_initializer(scale)
        for node in casts:
            _dequantise(model, node, value, scale)
        value.const_value = _packed(value, found)
        value.dtype = ir.DataType.INT4


def _dequantise(model: ir.Model, cast: ir.Node, weight: ir.Value, scale: ir.Value) -> None:
    attributes = {"axis": 0, "block_size": BLOCK}
    node = ir.node("DequantizeLinear", [weight, scale], attributes=attributes)
    output = node.outputs[0]
    output.name, output.shape = f"{weight.name}_dequantised", weight.shape
    output.dtype = ir.DataType.FLOAT16
    model.graph.insert_before(cast, node)
    replace_node(model, cast, output)


def _packed(value: ir.Value, scales: Tensor) -> ir.LazyTensor:
    tensor, shape = value.const_value, value.shape
    assert tensor is not None
    assert shape is not None

    def pack() -> ir.TensorProtocol:
        levels = levels_of(raw(tensor), scales).numpy()
        return ir.Tensor(levels.astype(ir.DataType.INT4.numpy()), dtype=ir.DataType.INT4)

    return ir.LazyTensor(pack, dtype=ir.DataType.INT4, shape=shape, name=tensor.name)


def _scales(weight: Float[Tensor, "k n"]) -> Float16[Tensor, "b n"]:
    blocks = weight.float().unflatten(0, (-1, BLOCK))
    largest = blocks.abs().amax(dim=1)
    smallest = float(np.finfo(np.float16).smallest_normal)  # TensorRT wants positive scales
    best = torch.zeros_like(largest)
    least = torch.full_like(largest, torch.inf)
    for divisor in DIVISORS:
        scale = (largest / divisor).clamp(min=smallest).half().float()
        levels = (blocks / scale[:, None]).round().clamp(LOWEST, HIGHEST)
        error = (levels * scale[:, None] - blocks).square().sum(dim=1)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best.half()
