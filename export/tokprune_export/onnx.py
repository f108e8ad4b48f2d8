"""Modules to ONNX files: traced with every dynamic axis at a size of its own, weights beside."""

import logging
import re
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from tokprune.manifest import GraphSpec, Tensor

IR_VERSION = 10  # read by TensorRT 10.3 and ONNX Runtime 1.23
INLINE_BYTES = 1 << 20  # smaller weights stay in the graph's own file
EXTERNAL_BYTES = 256  # constants below this stay in the graph's own file whatever happens
_EXPORTER = r"(torch|onnxscript|copyreg)\b"  # modules that warn of themselves


@dataclass(frozen=True)
class Input:
    """One input: an example to trace with, and its axes (numbers, or names where dynamic)."""

    name: str
    example: torch.Tensor
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Output:
    """One output and its axes."""

    name: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Source:
    """A module and the interface that its graph is to have."""

    module: nn.Module
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    listed: int = 0  # that many last inputs reach the module as one list

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for given in self.inputs:
            for axis, size in zip(given.shape, given.example.shape, strict=True):
                if isinstance(axis, int):
                    if axis != size:
                        raise ValueError(f"{given.name}: example has {size} where {axis} is fixed")
                elif sizes.setdefault(axis, size) != size:
                    raise ValueError(f"{given.name}: axis {axis!r} is {size} and {sizes[axis]}")
        if min(sizes.values()) < 2 or len(set(sizes.values())) < len(sizes):
            # a size of 1 is silently frozen; equal sizes are silently taken for one axis
            raise ValueError(f"Trace with distinct sizes of at least 2, got {sizes}")


def trace(
    source: Source, opset: int, weights: Callable[[ir.Model], None] | None = None
) -> ir.Model:
    """Export the module. Weights are shared with it, not copied.

    Args:
        source: what to export.
        opset: of the graph.
        weights: changes how they are stored, before the optimiser would fold what reads small ones.
    """
    examples = [given.example for given in source.inputs]
    shapes = [_dynamic(given.shape) for given in source.inputs]
    split = len(examples) - source.listed
    arguments, axes = tuple(examples[:split]), tuple(shapes[:split])
    if source.listed:
        arguments, axes = (*arguments, examples[split:]), (*axes, shapes[split:])
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            source.module.eval(),
            arguments,
            dynamo=True,
            opset_version=opset,
            input_names=[given.name for given in source.inputs],
            output_names=[output.name for output in source.outputs],
            dynamic_shapes=axes,
            optimize=weights is None,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        if weights is not None:
            weights(program.model)
            program.optimize()
    return _tidy(program.model, source)


def save(model: ir.Model, path: Path, *, data: str | None = None) -> None:
    """Write the graph. Weights go to `data` beside it, or, if None, inline or to `<name>.data`.

    Those that lie in another graph's file stay there.
    """
    if data is None and _weight_bytes(model) >= INLINE_BYTES:
        data = f"{path.name}.data"
    if data is not None and _shares(model):
        _add_data(model, path.parent, data)
        data = None
    ir.save(model, path, external_data=data, size_threshold_bytes=EXTERNAL_BYTES)


def _add_data(model: ir.Model, folder: Path, data: str) -> None:
    """Write the weights that are in no file yet; `ir.save` would copy the others beside them."""
    values = [value for value in model.graph.initializers.values() if _is_new(value.const_value)]
    tensors = [value.const_value for value in values if value.const_value is not None]
    moved = ir.external_data.convert_tensors_to_external(tensors, folder, data)
    for value, tensor in zip(values, moved, strict=True):
        value.const_value = tensor


def share_weights(model: ir.Model, written: Path, names: set[str]) -> None:
    """Let the initializers called `names` point into the data file of a graph already written.

    Raises:
        ValueError: the other graph has no such weight, or of another shape.
    """
    there = ir.load(written).graph.initializers
    for name, value in model.graph.initializers.items():
        if name not in names:
            continue
        tensor = there[name].const_value if name in there else None
        if tensor is None or tensor.shape != value.shape or tensor.dtype != value.dtype:
            raise ValueError(f"{written.name} holds no weight {name!r} of shape {value.shape}")
        value.const_value = tensor


def describe(model: ir.Model, file: str, opset: int) -> GraphSpec:
    """Return the interface as the manifest tells it."""
    return GraphSpec(
        file=file,
        opset=opset,
        inputs=[_tensor(value) for value in model.graph.inputs],
        outputs=[_tensor(value) for value in model.graph.outputs],
    )


def _dynamic(shape: tuple[int | str, ...]) -> dict[int, Any]:
    """Return torch.export's word for each named axis: `q`, `4*q`, or one that follows others."""
    axes: dict[int, Any] = {}
    for place, axis in enumerate(shape):
        if isinstance(axis, int):
            continue
        multiple = re.fullmatch(r"(?:(\d+)\*)?([A-Za-z]\w*)", axis)
        if multiple is None:
            axes[place] = torch.export.Dim.DYNAMIC
        else:
            name = torch.export.Dim(multiple[2])
            axes[place] = name if multiple[1] is None else int(multiple[1]) * name
    return axes


@contextmanager
def _quiet() -> Generator[None]:
    """Silence what the exporter says about its own insides, and about names that we set anyway."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)  # it misses torchvision, which no graph of ours needs
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
            for category in (DeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=category, module=_EXPORTER)
            yield
    finally:
        registry.setLevel(level)


def _tidy(model: ir.Model, source: Source) -> ir.Model:
    """Drop inputs that nothing reads and traces of this machine; write the axes as declared."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "tokprune", None
    model.doc_string = None
    model.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    declared: Mapping[str, Input | Output] = {
        port.name: port for port in (*source.inputs, *source.outputs)
    }
    for value in [value for value in model.graph.inputs if not value.uses()]:
        model.graph.inputs.remove(value)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(declared[str(value.name)].shape)
        value.metadata_props.clear()
    return model


def _shares(model: ir.Model) -> bool:
    """Tell whether weights lie in another graph's file."""
    values = model.graph.initializers.values()
    return any(isinstance(value.const_value, ir.ExternalTensor) for value in values)


def _is_new(tensor: ir.TensorProtocol | None) -> bool:
    """Tell whether a weight is in no file yet, and large enough for one beside the graph."""
    if tensor is None or isinstance(tensor, ir.ExternalTensor):
        return False
    return tensor.nbytes >= EXTERNAL_BYTES


def _weight_bytes(model: ir.Model) -> int:
    """Count weights that are in no file yet."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(t.nbytes for t in tensors if t is not None and not isinstance(t, ir.ExternalTensor))


def _tensor(value: ir.Value) -> Tensor:
    assert value.name is not None
    assert value.shape is not None
    assert value.dtype is not None
    axes = [axis if isinstance(axis, int) else str(axis.value) for axis in value.shape]
    return Tensor(name=value.name, dtype=value.dtype.numpy().name, shape=axes)
