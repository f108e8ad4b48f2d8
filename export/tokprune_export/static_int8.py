"""Linear weights and their inputs in 8 bits with scales that are fixed: for TensorRT too.

In the graph they are `QuantizeLinear` and `DequantizeLinear` before `MatMul` (QDQ): signed, zero
points of zero, a scale for each column of a weight and one for each input, as TensorRT wants it.
`quantize_static` of onnxruntime.quantization writes the same (tests compare the two), but holds a
whole model; here each weight is rounded when it is its turn to be written.

All else stays as it is: norms, softmax and activations, the products of attention (a tenth of the
sums of an encoder at 729 patches, which engines fuse in floating point) and the first product of
pixels (a thousandth of them).
"""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from tokprune_export.int8 import add_initializer, levels_tensor
from tokprune_export.narrow import cast_type, replace_node
from tokprune_export.quantize import SCALE
from tokprune_export.static_scales import Scales, fixed

NARROW_OPSET = 19  # the first whose QuantizeLinear takes other than float32; TensorRT 10.0 reads 20
ZERO = "zero_point"
_KINDS = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
}


def insert(model: ir.Model, scales: Scales, dtype: torch.dtype, prefix: str = "") -> None:
    """Let the products with these weights read both sides from 8 bits.

    Products of one input round it once.
    """
    kind = _KINDS[dtype]
    zero = add_initializer(model, ZERO, ir.tensor(np.zeros((), np.int8)))
    rounded: dict[str, ir.Value] = {}
    for name, columns in scales.columns.items():
        weight = model.graph.initializers[f"{prefix}{name}"]
        product = _dequantise_weight(model, weight, columns.to(dtype), kind)
        x = product.inputs[0]
        assert x is not None
        assert x.name is not None
        if x.name not in rounded:
            scale = torch.tensor(scales.inputs[name], dtype=dtype)
            rounded[x.name] = _round(model, product, x, scale, zero)
        product.replace_input_with(0, rounded[x.name])


@contextmanager
def fixed_inputs(scales: Iterable[tuple[nn.Module, float]]) -> Generator[None]:
    """Let layers of the checkpoint round their inputs as the graph does."""

    def hook(scale: float) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
        return lambda _, inputs: (fixed(inputs[0], scale),)

    handles = [linear.register_forward_pre_hook(hook(scale)) for linear, scale in scales]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _dequantise_weight(
    model: ir.Model, weight: ir.Value, columns: Tensor, kind: ir.DataType
) -> ir.Node:
    """Store a weight in 8 bits and return the product that reads it."""
    narrow = kind != ir.DataType.FLOAT
    (read,) = [use.node for use in weight.uses()]
    (product,) = [use.node for use in read.outputs[0].uses()] if narrow else [read]
    if product.op_type != "MatMul" or (narrow and cast_type(read) != kind):
        raise ValueError(f"{weight.name} is read in another way than by one linear layer")
    scale = add_initializer(model, f"{weight.name}{SCALE}", ir.tensor(columns))
    node = ir.node("DequantizeLinear", [weight, scale], attributes={"axis": 1})
    output = node.outputs[0]
    output.name, output.shape, output.dtype = f"{weight.name}_dequantised", weight.shape, kind
    model.graph.insert_before(read, node)
    if narrow:
        replace_node(model, read, output)
    else:
        product.replace_input_with(1, output)
    weight.const_value = levels_tensor(weight, columns.float())
    weight.dtype = ir.DataType.INT8
    return product


def _round(model: ir.Model, product: ir.Node, x: ir.Value, by: Tensor, zero: ir.Value) -> ir.Value:
    """Return `x` rounded by a scale, just before a product."""
    scale = add_initializer(model, f"{x.name}{SCALE}", ir.tensor(by))
    levels = ir.node("QuantizeLinear", [x, scale, zero])
    back = ir.node("DequantizeLinear", [levels.outputs[0], scale, zero])
    kind = _KINDS[by.dtype]
    for node, what, dtype in ((levels, "levels", ir.DataType.INT8), (back, "rounded", kind)):
        node.outputs[0].name = f"{x.name}_{what}"
        node.outputs[0].shape, node.outputs[0].dtype = x.shape, dtype
    model.graph.insert_before(product, [levels, back])
    return back.outputs[0]
