"""The graphs of a bundle: which module, which names and axes, which file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from tokprune.manifest import Engine, GraphSpec, LlmForm, Precision
from tokprune_export import int8, onnx, quantize, static_int8
from tokprune_export.decoder import Decoder, FirstLayer, TextModel
from tokprune_export.layers import InPrecision
from tokprune_export.llm_forms import OrtLlm, PortableLlm, TrtLlm, UnbiasedOrtLlm
from tokprune_export.narrow import DTYPES, narrow_weights
from tokprune_export.onnx import Input, Output, Source
from tokprune_export.parity_scorer import scorer_feeds, told
from tokprune_export.scorers import Size
from tokprune_export.static_scales import NOT_ROUNDED, Scales

FOLDER = "onnx"
LLM_DATA = "llm.onnx.data"  # of all forms
NEW, PAST, SEEN, CAPACITY = 5, 6, 13, 17  # sizes to trace the LLM with
TRT_OPSET = 24  # the first with TensorScatter
_MASK = (1, 1, "T", "S")
EVERYTHING: tuple[Engine, ...] = ("onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Target:
    """Where graphs go, and how their numbers are written."""

    bundle: Path
    opset: int
    max_kv_len: int  # rows of a cache whose length is fixed
    precision: Precision = "fp32"
    scales: Mapping[str, Tensor] = field(default_factory=dict)  # of the weights to quantise


def write(source: Source, target: Target, name: str, rounded: Scales = NOT_ROUNDED) -> GraphSpec:
    """Trace one graph and write it into the bundle; weights that have scales take 8 bits."""
    dtype, opset, prefix = DTYPES[target.precision], target.opset, ""
    if dtype != torch.float32:
        module = InPrecision(source.module, dtype)
        source = replace(source, module=module, listed=len(source.inputs))
        prefix = "module."
        opset = max(opset, static_int8.NARROW_OPSET) if rounded.inputs else opset

    def weights(model: ir.Model) -> None:
        if rounded.inputs:
            static_int8.insert(model, rounded, dtype, prefix)
        else:
            int8.insert(model, rounded.columns, prefix)
        narrow_weights(model)

    model = onnx.trace(source, opset, weights)
    file = f"{FOLDER}/{name}.onnx"
    onnx.save(model, target.bundle / file)
    return onnx.describe(model, file, opset)


def first_layer(text: TextModel) -> Source:
    """Return the first layer, to be traced with 6 text rows after 8 vision tokens."""
    width, axes = text.embeddings.shape[1], text.position_axes
    rows, columns = torch.arange(12, 18), torch.arange(3, 11)
    return Source(
        FirstLayer(text),
        inputs=(
            Input("inputs_embeds", torch.zeros(1, 20, width), (1, "s", width)),
            Input("position_ids", _positions(axes, 20), (axes, 1, "s")),
            Input("rows", rows, ("u",)),
            Input("columns", columns, ("n",)),
        ),
        outputs=(Output("attention", (text.heads, "u", "n")),),
    )


def scorer(network: nn.Module, size: Size) -> Source:
    """Return the scorer, to be traced with 5 text rows and pictures of 2 x 7 and 3 x 4."""
    grids = ((2, 7), (3, 4))
    arrays = scorer_feeds(np.random.default_rng(0), grids, size, 5, 2)
    axes = {
        "attention": (size.heads, "u", "n"),
        "question": ("u",),
        "index": ("r", "H", "W"),
        "cells": ("n",),
        "embeds": ("n", size.hidden),
        "words": ("u", size.hidden),
    }
    shapes = {"glance": (1,), "follows": ("r",)}
    for name, array in told(network, len(grids))[""].items():
        arrays[name], axes[name] = array, shapes[name]
    return Source(
        network,
        inputs=tuple(Input(k, torch.from_numpy(arrays[k]), axes[k]) for k in axes),
        outputs=(Output("relevance", ("n",)),),
    )


def portable_llm(text: TextModel, decoder: Decoder, target: Target) -> LlmForm:
    """Write the LLM in plain operators, and the weights that all forms share."""
    dtype = DTYPES[target.precision]
    opset = _opset(target)
    past, present = _cache(text, "P", PAST, dtype), _cache(text, "P+T", PAST + NEW, dtype)
    source = _llm(PortableLlm(decoder), text, (*_rows(text), _bias()), past, present)
    model = _traced(source, target, opset)
    file = f"{FOLDER}/llm.portable.onnx"
    onnx.save(model, target.bundle / file, data=LLM_DATA)
    return LlmForm(
        form="portable",
        cache="grows",
        serves=_serves(target.precision, EVERYTHING),
        graph=onnx.describe(model, file, opset),
    )


def ort_llm(text: TextModel, decoder: Decoder, target: Target) -> LlmForm:
    """Write the LLM for ONNX Runtime, over the weights that `portable_llm` has written.

    In int4 its head is its own, in 8 bits: for one row, it is most of what is read (20 ms a token
    instead of 41, measured at 0.5B parameters).
    """
    lengths = (
        Input("seqlens_k", torch.tensor([PAST + NEW - 1], dtype=torch.int32), (1,)),
        Input("total_sequence_length", torch.tensor(PAST + NEW, dtype=torch.int32), ()),
    )
    dtype = DTYPES[target.precision]
    cache = _cache(text, "C", CAPACITY, dtype)
    # CUDA's GroupQueryAttention has no float32 kernel, and is at its best without a bias
    gpu: list[Engine] = [] if dtype == torch.float32 else ["onnxruntime-cuda"]
    module, bias = (UnbiasedOrtLlm(decoder), ()) if gpu else (OrtLlm(decoder), (_bias(),))
    source = _llm(module, text, (*_rows(text), *bias, *lengths), cache, cache)
    return LlmForm(
        form="ort",
        cache="in_place",
        serves=_serves(target.precision, ("onnxruntime-cpu", *gpu)),
        graph=_sharing(source, target, "llm.ort.onnx", _opset(target)),
    )


def trt_llm(text: TextModel, decoder: Decoder, target: Target) -> LlmForm:
    """Write the LLM for TensorRT, over the weights that `portable_llm` has written.

    Not in float32, in which TensorRT has no kernel for `Attention`.
    """
    rows = (
        Input("attention_mask", torch.ones(1, 1, NEW, SEEN, dtype=torch.bool), _MASK),
        Input("write_indices", torch.tensor([PAST]), (1,)),
    )
    length = target.max_kv_len
    cache = _cache(text, length, length, DTYPES[target.precision])
    source = _llm(TrtLlm(decoder), text, (*_rows(text), *rows), cache, cache)
    return LlmForm(
        form="trt",
        cache="in_place",
        serves=["tensorrt", "tensorrt-rtx"],
        graph=_sharing(source, target, "llm.trt.onnx", TRT_OPSET),
    )


FORMS: dict[Precision, dict[str, Callable[[TextModel, Decoder, Target], LlmForm]]] = {
    "fp32": {"portable": portable_llm, "ort": ort_llm},
    "fp16": {"portable": portable_llm, "ort": ort_llm, "trt": trt_llm},
    "bf16": {"portable": portable_llm, "ort": ort_llm, "trt": trt_llm},
    "int8": {"portable": portable_llm, "ort": ort_llm},
    "int4": {"portable": portable_llm, "ort": ort_llm, "trt": trt_llm},
}


def _serves(precision: Precision, engines: Iterable[Engine]) -> list[Engine]:
    """Return those of some engines that run a precision."""
    if precision == "int8":
        return [engine for engine in engines if engine == "onnxruntime-cpu"]
    if precision == "bf16":  # ONNX Runtime's CPU has no products in it
        return [engine for engine in engines if engine != "onnxruntime-cpu"]
    return list(engines)


def _opset(target: Target) -> int:
    """Return the opset that the linear weights of the LLM need."""
    return max(target.opset, quantize.OPSET) if target.precision == "int4" else target.opset


def _traced(source: Source, target: Target, opset: int) -> ir.Model:
    def weights(model: ir.Model) -> None:
        if target.precision == "int8":
            int8.insert(model, target.scales)
        else:
            quantize.insert(model, target.scales)
        if target.precision == "int4" and isinstance(source.module, UnbiasedOrtLlm):
            int8.insert_head(model)
        narrow_weights(model)

    return onnx.trace(source, opset, weights)


def _sharing(source: Source, target: Target, name: str, opset: int) -> GraphSpec:
    """Write a form of the LLM that has its weights in the file of the portable one."""
    model, folder = _traced(source, target, opset), target.bundle / FOLDER
    weights = {name for name, _ in source.module.named_parameters()}
    scales = {f"{weight}{quantize.SCALE}" for weight in weights}
    onnx.share_weights(model, folder / "llm.portable.onnx", weights | scales)
    onnx.save(model, folder / name, data=None)
    return onnx.describe(model, f"{FOLDER}/{name}", opset)


def _rows(text: TextModel) -> tuple[Input, ...]:
    width, axes = text.embeddings.shape[1], text.position_axes
    return (
        Input("inputs_embeds", torch.zeros(1, NEW, width), (1, "T", width)),
        Input("position_ids", _positions(axes, NEW), (axes, 1, "T")),
    )


def _bias() -> Input:
    return Input("attention_bias", torch.zeros(1, PAST + NEW), (1, "P+T"))


def _llm(
    module: nn.Module,
    text: TextModel,
    first: tuple[Input, ...],
    past: list[Input],
    present: list[Input],
) -> Source:
    names = [each.name.replace("past_key_values", "present") for each in present]
    outputs = [Output(name, each.shape) for name, each in zip(names, present, strict=True)]
    return Source(
        module,
        inputs=(*first, *past),
        outputs=(Output("logits", (1, 1, text.head.out_features)), *outputs),
        listed=len(past),
    )


def _cache(text: TextModel, axis: str | int, size: int, dtype: torch.dtype) -> list[Input]:
    shape = (1, text.kv_heads, axis, text.cache_dim)
    return [
        Input(
            f"past_key_values.{layer}.{part}",
            torch.zeros(1, text.kv_heads, size, text.cache_dim, dtype=dtype),
            shape,
        )
        for layer in range(len(text.model.layers))
        for part in ("key", "value")
    ]


def _positions(axes: int, count: int) -> torch.Tensor:
    return torch.arange(axes * count).reshape(axes, 1, count)
