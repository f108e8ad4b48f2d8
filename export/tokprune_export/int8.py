"""Linear weights in 8 bits, made by onnxruntime.quantization: for ONNX Runtime alone.

`insert` is dynamic int8: a scale for each column of a weight, and one for all inputs of a product,
found while it runs. In the graph they are `DynamicQuantizeLinear` and `MatMulInteger`, as
`quantize_dynamic` writes them, which ONNX Runtime's CPU fuses. `quantize_dynamic` itself holds a
whole model; here each weight is rounded when it is its turn to be written.

The vision encoder can have it too (`--encoder-precision`).

`insert_head` is for a head before which all else has 4 bits: the head would be most of what a step
reads, and takes 8 bits in blocks without harm (`com.microsoft.MatMulNBits`).
"""

import logging
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, Float16, Float32, Int8, UInt8
from onnx import TensorProto
from torch import Tensor, nn

from tokprune.types import Array
from tokprune_export.decoder import Decoder
from tokprune_export.layers import Linear
from tokprune_export.narrow import cast_type, raw
from tokprune_export.oracle import Cut
from tokprune_export.quantize import SCALE, linears

LEVELS = 127  # to both sides of zero
BLOCK = 128  # of the head, along its inputs
ACCURACY_LEVEL = 4  # what the head is multiplied by is rounded to 8 bits too; others are 20x slower
HEAD = "decoder.head.weight"
BLOCKS = "_blocks"  # after the name of the head's weight, in the graph
_COLUMNS = 4096  # of a weight at once, so that no second copy of it is in memory


def find_scales(decoder: Decoder) -> dict[str, Tensor]:
    """Return a scale for each column of each weight, the head's too."""
    found = {f"{name}.weight": scales_of(linear.weight) for name, linear in linears(decoder)}
    return {**found, "head.weight": scales_of(decoder.head.weight)}


def encoder_columns(encoder: nn.Module) -> dict[str, Tensor]:
    """Return the same of a vision encoder."""
    return {
        f"{name}.weight": scales_of(module.weight)
        for name, module in encoder.named_modules()
        if isinstance(module, Linear)
    }


def scales_of(weight: Float[Tensor, "k n"]) -> Float32[Tensor, " n"]:
    """Return what `quant_utils.compute_scale_zp` finds column by column, for all at once."""
    least, most = torch.aminmax(weight.float(), dim=0)
    largest = torch.maximum(-least, most)
    scales = (largest.double() / LEVELS).float()
    tiny = scales < torch.finfo(torch.float32).tiny
    return torch.where(tiny, torch.ones_like(scales), scales)


def levels_of(weight: Float[Tensor, "k n"], scales: Float32[Tensor, " n"]) -> Int8[Array, "k n"]:
    """Round to the nearest level."""
    quantize = quantization("quant_utils").quantize_nparray
    levels = np.empty(tuple(weight.shape), np.int8)
    for start in range(0, levels.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        values = weight[:, part].detach().float().cpu().numpy()
        levels[:, part] = quantize(TensorProto.INT8, values, scales[part].cpu().numpy(), 0)
    return levels


def quantised(weight: Float[Tensor, "k n"], scales: Float32[Tensor, " n"]) -> Float[Tensor, "k n"]:
    """Return the values that a graph makes of the levels."""
    return torch.from_numpy(levels_of(weight, scales)).float() * scales.cpu()


@contextmanager
def rounded_inputs(linears: Iterable[nn.Linear]) -> Generator[Cut]:
    """Let layers of the checkpoint round their inputs as `DynamicQuantizeLinear` does.

    All rows of a graph's call share one scale, so the result must be told of calls that a pass is
    to be cut into.
    """
    cuts: list[Sequence[int]] = []

    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        parts = x.split(list(cuts[-1]), dim=-2) if cuts else (x,)
        return (torch.cat([round_rows(part) for part in parts], dim=-2),)

    @contextmanager
    def cut(lengths: Sequence[int]) -> Generator[None]:
        cuts.append(lengths)
        try:
            yield
        finally:
            cuts.pop()

    handles = [linear.register_forward_pre_hook(hook) for linear in linears]
    try:
        yield cut
    finally:
        for handle in handles:
            handle.remove()


def round_rows(x: Float[Tensor, "*b t k"]) -> Float[Tensor, "*b t k"]:
    """Return rows as 256 levels between the least and the largest value, zero being one of them."""
    least, largest = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (largest - least) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (-least / scale).round().clamp(0, 255)
    return (((x / scale).round() + zero).clamp(0, 255) - zero) * scale


def insert(model: ir.Model, scales: Mapping[str, Tensor], prefix: str = "decoder.") -> None:
    """Let the products with these weights be those of 8 bits. Those of one input round it once."""
    rounded: dict[str, ir.Node] = {}
    for name, found in scales.items():
        weight = model.graph.initializers[f"{prefix}{name}"]
        products = [use.node for use in weight.uses()]
        if {node.op_type for node in products} != {"MatMul"} or weight.const_value is None:
            raise ValueError(f"{name} is read in another way than by one linear layer")
        scale = add_initializer(model, f"{weight.name}{SCALE}", ir.tensor(found.numpy()))
        for product in products:
            _replace(model, product, rounded, scale)
        weight.const_value = levels_tensor(weight, found)
        weight.dtype = ir.DataType.INT8


def insert_head(model: ir.Model) -> None:
    """Let a float16 graph read its head from 8 bits, if its inputs fill whole blocks."""
    head = model.graph.initializers[HEAD]
    (cast,) = [use.node for use in head.uses()]
    assert head.const_value is not None
    weight = raw(head.const_value)
    if cast_type(cast) != ir.DataType.FLOAT16 or weight.shape[0] % BLOCK:
        return
    (product,) = [use.node for use in cast.outputs[0].uses()]
    blocks, scales = blocks_of(weight)
    inputs = [
        product.inputs[0],
        add_initializer(model, f"{HEAD}{BLOCKS}", ir.tensor(blocks)),
        add_initializer(model, f"{HEAD}{BLOCKS}{SCALE}", ir.tensor(scales)),
    ]
    attributes = {
        "K": weight.shape[0],
        "N": weight.shape[1],
        "bits": 8,
        "block_size": BLOCK,
        "accuracy_level": ACCURACY_LEVEL,
    }
    node = ir.node("MatMulNBits", inputs, domain="com.microsoft", attributes=attributes)
    model.opset_imports["com.microsoft"] = 1
    _take_place(model, product, [node])
    model.graph.remove(cast, safe=True)
    del model.graph.initializers[HEAD]


def blocks_of(
    weight: Float[Tensor, "k n"],
) -> tuple[UInt8[Array, "n b size"], Float16[Array, "n b"]]:
    """Return levels around 128, and the scale of each block."""
    parts = list(_blocks(weight))
    scales = np.concatenate([scales for _, scales in parts])
    return np.concatenate([levels for levels, _ in parts]), scales.astype(np.float16)


def _blocks(weight: Float[Tensor, "k n"]) -> Iterator[tuple[Array, Array]]:
    weight_only = quantization("matmul_nbits_quantizer")
    config = weight_only.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=8)
    quantizer = weight_only.DefaultWeightOnlyQuantizer(config)
    for part in weight.split(_COLUMNS, dim=1):
        values = np.ascontiguousarray(part.detach().float().cpu().numpy())
        levels, scales, _ = quantizer.qbits_block_quant(values)
        yield levels.reshape(part.shape[1], -1, BLOCK), scales.reshape(part.shape[1], -1)


def quantization(module: str) -> Any:
    """Return a module of onnxruntime.quantization; importing it sets up logging for everyone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        return import_module(f"onnxruntime.quantization.{module}")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def add_initializer(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Give a graph a constant of its own."""
    value = ir.Value(
        name=name,
        shape=ir.Shape(tensor.numpy().shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    model.graph.register_initializer(value)
    return value


def _replace(
    model: ir.Model, product: ir.Node, rounded: dict[str, ir.Node], scale: ir.Value
) -> None:
    """Write `x W` as `(levels of x) (levels of W) (scale of x) (scale of W)`."""
    x, weight = product.inputs
    assert x is not None
    assert x.name is not None
    if x.name not in rounded:
        rounded[x.name] = ir.node("DynamicQuantizeLinear", [x], num_outputs=3)
        _name(rounded[x.name], f"{x.name}_rounded")
        model.graph.insert_before(product, rounded[x.name])
    levels, unit, zero = rounded[x.name].outputs
    sums = ir.node("MatMulInteger", [levels, weight, zero])
    wide = ir.node("Cast", sums.outputs, attributes={"to": ir.DataType.FLOAT})
    units = ir.node("Mul", [unit, scale])
    result = ir.node("Mul", [wide.outputs[0], units.outputs[0]])
    for node, what in ((sums, "sums"), (wide, "wide"), (units, "units")):
        _name(node, f"{product.outputs[0].name}_{what}")
    _take_place(model, product, [sums, wide, units, result])


def _name(node: ir.Node, name: str) -> None:
    for index, output in enumerate(node.outputs):
        output.name = name if len(node.outputs) == 1 else f"{name}_{index}"


def _take_place(model: ir.Model, old: ir.Node, new: list[ir.Node]) -> None:
    """Let the last of some nodes give what another gave, under its name."""
    (before,), (after,) = old.outputs, new[-1].outputs
    name, after.shape, after.type = before.name, before.shape, before.type
    model.graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    model.graph.remove(old, safe=True)
    before.name, after.name = None, name


def levels_tensor(value: ir.Value, scales: Tensor) -> ir.LazyTensor:
    """Return a weight's levels, which are made when it is its turn to be written."""
    tensor, shape = value.const_value, value.shape
    assert tensor is not None
    assert shape is not None

    def pack() -> ir.TensorProtocol:
        return ir.tensor(levels_of(raw(tensor), scales))

    return ir.LazyTensor(pack, dtype=ir.DataType.INT8, shape=shape, name=tensor.name)
