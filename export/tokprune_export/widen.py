"""Bfloat16 graphs as float32 ones, for ONNX Runtime's CPU, which has no bfloat16 products.

The gate runs them in place of what was written. Their weights are the written ones, without loss,
and what a graph casts to bfloat16 is rounded to it; products and sums are not, so what an engine's
own rounding does is not seen.
"""

from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from tokprune.manifest import LlmForm, Tensor
from tokprune_export.onnx import EXTERNAL_BYTES

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT


def widen(source: Path, folder: Path) -> Path:
    """Write a graph into a folder again, wherever it says bfloat16 in float32."""
    model = ir.load(source)
    graph = model.graph
    for value in graph.initializers.values():
        if value.dtype == _NARROW and value.const_value is not None and value.shape is not None:
            value.const_value = _widened(value.const_value, value.shape)
    narrow: list[ir.Value] = []  # between a cast to bfloat16 and the one back
    for node in list(graph.all_nodes()):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _NARROW:
                tensor = ir.tensor(attribute.as_tensor().numpy().astype(np.float32))
                node.attributes[name] = ir.AttrTensor(name, tensor)
        if node.op_type == "Cast" and node.attributes["to"].as_int() == _NARROW:
            narrow.append(_cast_back(node))
    values = [output for node in graph.all_nodes() for output in node.outputs]
    for value in (*graph.inputs, *graph.initializers.values(), *values):
        if value.dtype == _NARROW and value not in narrow:
            value.dtype = _WIDE
    target = folder / source.name
    ir.save(model, target, external_data=f"{source.name}.data", size_threshold_bytes=EXTERNAL_BYTES)
    return target


def widened_form(form: LlmForm) -> LlmForm:
    """Return a form of the LLM as its widened graph is fed."""
    graph = form.graph
    wide = msgspec.structs.replace(
        graph, inputs=_tensors(graph.inputs), outputs=_tensors(graph.outputs)
    )
    return msgspec.structs.replace(form, graph=wide)


def _tensors(tensors: list[Tensor]) -> list[Tensor]:
    return [
        msgspec.structs.replace(each, dtype="float32") if each.dtype == "bfloat16" else each
        for each in tensors
    ]


def _cast_back(node: ir.Node) -> ir.Value:
    """Put a cast to float32 after one to bfloat16, whose result is returned."""
    narrow = node.outputs[0]
    back = ir.node("Cast", [narrow], attributes={"to": _WIDE})
    wide = back.outputs[0]
    wide.shape, wide.dtype = narrow.shape, _WIDE
    graph = node.graph
    assert graph is not None
    graph.insert_after(node, back)
    for use in list(narrow.uses()):
        if use.node is not back:
            use.node.replace_input_with(use.idx, wide)
    name, narrow.name = narrow.name, f"{narrow.name}_narrow"
    wide.name = name
    for place, output in enumerate(graph.outputs):
        if output is narrow:
            graph.outputs[place] = wide
    return narrow


def _widened(tensor: ir.TensorProtocol, shape: ir.Shape) -> ir.LazyTensor:
    def convert() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(np.float32))

    return ir.LazyTensor(convert, dtype=_WIDE, shape=shape, name=tensor.name)
