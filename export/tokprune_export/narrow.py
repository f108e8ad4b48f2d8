"""Precisions of the graphs, and weights that become narrow while they are written.

Modules are traced over float32 weights and cast them to the precision that they compute in
(layers.py). Here each such cast becomes part of the weight: it is converted when it is its turn to
be written, so that no second copy of all weights is ever in memory.
"""

from typing import Any

import onnx_ir as ir
import torch

from tokprune.manifest import Precision

DTYPES: dict[Precision, torch.dtype] = {  # of activations and of the KV cache
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
    "int4": torch.float16,
}
_NARROW = {ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}


def narrow_weights(model: ir.Model) -> None:
    """Let weights that are only read through a cast to one narrow type have that type."""
    for value in list(model.graph.initializers.values()):
        casts = [use.node for use in value.uses()]
        kinds = {cast_type(node) for node in casts}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is None or kind not in _NARROW or value.const_value is None or value.shape is None:
            continue
        value.const_value = _converted(value.const_value, value.shape, kind)
        value.dtype = kind
        for node in casts:
            replace_node(model, node, value)


def cast_type(node: ir.Node) -> ir.DataType | None:
    """Return what a node casts to, if that is what it does."""
    return ir.DataType(node.attributes["to"].as_int()) if node.op_type == "Cast" else None


def replace_node(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    """Let what reads the only output of a node read a value instead."""
    ir.convenience.replace_all_uses_with(node.outputs[0], value)
    model.graph.remove(node, safe=True)


def raw(tensor: ir.TensorProtocol) -> torch.Tensor:
    """Return what torch holds of a weight, not a copy of it."""
    held: Any = tensor.raw
    return held if isinstance(held, torch.Tensor) else torch.from_numpy(tensor.numpy())


def _converted(tensor: ir.TensorProtocol, shape: ir.Shape, kind: ir.DataType) -> ir.LazyTensor:
    def convert() -> ir.TensorProtocol:
        return ir.tensor(raw(tensor).to(_NARROW[kind]).contiguous())

    return ir.LazyTensor(convert, dtype=kind, shape=shape, name=tensor.name)
