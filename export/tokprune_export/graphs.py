"""The graphs of a bundle: which module, which names and axes, which file."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from tokprune.manifest import GraphSpec, LlmForm
from tokprune_export import onnx
from tokprune_export.decoder import Decoder, FirstLayer, OrtLlm, PortableLlm, TextModel
from tokprune_export.onnx import Input, Output, Source
from tokprune_export.parity import scorer_feeds

FOLDER = "onnx"
LLM_DATA = "llm.onnx.data"  # of all forms
NEW, PAST, CAPACITY = 5, 6, 17  # sizes to trace the LLM with


def write(source: Source, bundle: Path, name: str, opset: int) -> GraphSpec:
    """Trace one graph and write it into the bundle."""
    model = onnx.trace(source, opset)
    file = f"{FOLDER}/{name}.onnx"
    onnx.save(model, bundle / file)
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


def scorer(network: nn.Module, heads: int) -> Source:
    """Return the scorer, to be traced with 5 text rows and pictures of 2 x 7 and 3 x 4."""
    grids = ((2, 7), (3, 4))
    arrays = scorer_feeds(np.random.default_rng(0), grids, heads, 5, 2)
    axes = {
        "attention": (heads, "u", "n"),
        "question": ("u",),
        "index": ("r", "H", "W"),
        "cells": ("n",),
    }
    return Source(
        network,
        inputs=tuple(Input(k, torch.from_numpy(arrays[k]), axes[k]) for k in axes),
        outputs=(Output("relevance", ("n",)),),
    )


def portable_llm(text: TextModel, decoder: Decoder, bundle: Path, opset: int) -> LlmForm:
    """Write the LLM in plain operators, and the weights that all forms share."""
    shared = _rows(text)
    past, present = _cache(text, "P", PAST), _cache(text, "P+T", PAST + NEW)
    source = _llm(PortableLlm(decoder), text, shared, past, present)
    model = onnx.trace(source, opset)
    file = f"{FOLDER}/llm.portable.onnx"
    onnx.save(model, bundle / file, data=LLM_DATA)
    return LlmForm(
        form="portable",
        cache="grows",
        serves=["onnxruntime-cpu", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"],
        graph=onnx.describe(model, file, opset),
    )


def ort_llm(text: TextModel, decoder: Decoder, bundle: Path, opset: int) -> LlmForm:
    """Write the LLM for ONNX Runtime, over the weights that `portable_llm` has written."""
    module = OrtLlm(decoder)
    lengths = (
        Input("seqlens_k", torch.tensor([PAST + NEW - 1], dtype=torch.int32), (1,)),
        Input("total_sequence_length", torch.tensor(PAST + NEW, dtype=torch.int32), ()),
    )
    cache = _cache(text, "C", CAPACITY)
    source = _llm(module, text, (*_rows(text), *lengths), cache, cache)
    model = onnx.trace(source, opset)
    weights = {name for name, _ in module.named_parameters()}
    onnx.share_weights(model, bundle / FOLDER / "llm.portable.onnx", weights)
    file = f"{FOLDER}/llm.ort.onnx"
    onnx.save(model, bundle / file, data=None)
    return LlmForm(
        form="ort",
        cache="in_place",
        serves=["onnxruntime-cpu"],
        graph=onnx.describe(model, file, opset),
    )


def _rows(text: TextModel) -> tuple[Input, ...]:
    width, axes = text.embeddings.shape[1], text.position_axes
    return (
        Input("inputs_embeds", torch.zeros(1, NEW, width), (1, "T", width)),
        Input("position_ids", _positions(axes, NEW), (axes, 1, "T")),
        Input("attention_bias", torch.zeros(1, PAST + NEW), (1, "P+T")),
    )


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


def _cache(text: TextModel, axis: str, size: int) -> list[Input]:
    shape = (1, text.kv_heads, axis, text.cache_dim)
    return [
        Input(
            f"past_key_values.{layer}.{part}",
            torch.zeros(1, text.kv_heads, size, text.cache_dim),
            shape,
        )
        for layer in range(len(text.model.layers))
        for part in ("key", "value")
    ]


def _positions(axes: int, count: int) -> torch.Tensor:
    return torch.arange(axes * count).reshape(axes, 1, count)
