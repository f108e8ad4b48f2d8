"""Whether a manifest fits what the host feeds: numbers, and names and shapes of the four graphs."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from tokprune.errors import BundleInvalid
from tokprune.manifest import CACHE_DTYPES, Chat, GraphSpec, LlmForm, Manifest, Tensor

_LARGEST = 2**31 - 1
_MOST_LAYERS = 1024
_ANY = -1  # a number or a name
_FREE = 0  # must be a name: the host feeds every length, so a frozen axis is an export fault


class Shape(NamedTuple):
    """What a tensor must be. A number above 0 fits itself and a name."""

    dtype: str
    axes: tuple[int, ...]


Shapes: TypeAlias = Mapping[str, Shape]


def check_interface(manifest: Manifest) -> None:
    """Refuse a manifest whose numbers make no sense or whose graphs the host cannot feed.

    Raises:
        BundleInvalid: `bundle_invalid.numbers` or `.graph`.
    """
    for problem in _numbers(manifest):
        raise BundleInvalid("numbers", f"manifest.json: {problem}. Export the bundle again.")
    forms = [form.form for form in manifest.graphs.llm]
    if not forms or len(set(forms)) != len(forms):
        message = "manifest.json lists no form of the LLM, or one twice. Export the bundle again."
        raise BundleInvalid("graph", message)
    for problem in _interfaces(manifest):
        raise BundleInvalid(
            "graph",
            f"manifest.json: {problem}. This tokprune cannot feed that; export the bundle again "
            "with the tokprune that runs it.",
        )


def graph_specs(manifest: Manifest) -> dict[str, GraphSpec]:
    """Return every graph under the name that `inspect` shows."""
    graphs = manifest.graphs
    return {
        "vision_encoder": graphs.vision_encoder,
        "first_layer": graphs.first_layer,
        "scorer": graphs.scorer,
        **{f"llm.{form.form}": form.graph for form in graphs.llm},
    }


def _numbers(manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with sizes, limits and token ids."""
    llm, limits, tokens = manifest.llm, manifest.limits, manifest.tokens
    sizes = {
        **{f"llm.{name}": getattr(llm, name) for name in llm.__struct_fields__},
        **{f"limits.{name}": getattr(limits, name) for name in limits.__struct_fields__},
        **{f"{name}.opset": spec.opset for name, spec in graph_specs(manifest).items()},
    }
    for name, size in sizes.items():
        if not 0 < size <= _LARGEST:
            yield f"{name} is {size!r:.60}, expected 1 to {_LARGEST}"
    if llm.layers > _MOST_LAYERS:
        yield f"llm.layers is {llm.layers!r:.60}, expected at most {_MOST_LAYERS}"
    if llm.heads % llm.kv_heads:
        yield f"{llm.heads} heads cannot share {llm.kv_heads} kv_heads"
    if not 0 <= manifest.saliency_layers <= _MOST_LAYERS:
        yield f"saliency_layers is {manifest.saliency_layers!r:.60}, expected 0 to {_MOST_LAYERS}"
    if limits.max_input_len > limits.max_kv_len:
        yield "limits.max_input_len is above limits.max_kv_len"
    ids = [
        tokens.image,
        *_known(tokens.video),
        *tokens.eos,
        *tokens.control,
        *_chat_ids(manifest.chat),
    ]
    for number in ids:
        if not 0 <= number < llm.vocab_size:
            yield f"the token id {number!r:.60} is outside the vocabulary of {llm.vocab_size}"
    if not tokens.eos:
        yield "tokens.eos is empty, so no answer would end"
    if manifest.chat.picture.count(tokens.image) != 1:
        yield f"chat.picture must hold the image token {tokens.image} once"
    video = manifest.chat.video
    given = [] if video is None else [item for item in video if item == tokens.video]
    if (video is None) != (tokens.video is None) or len(given) != (video is not None):
        yield "chat.video and tokens.video must both be there, the token once, or neither"
    if manifest.chat.head_system is not None and len(manifest.chat.head_system) != 2:
        yield "chat.head_system must have two pieces, before and after the system message"


def _known(token: int | None) -> list[int]:
    return [] if token is None else [token]


def _chat_ids(chat: Chat) -> Iterator[int]:
    pieces = [chat.head, chat.reply, chat.next_user, chat.generation, chat.picture, chat.words]
    for piece in [*pieces, chat.video or [], *(chat.head_system or [])]:
        yield from (item for item in piece if isinstance(item, int))


def _interfaces(manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the declared inputs and outputs."""
    llm, graphs = manifest.llm, manifest.graphs
    f32, heads, hidden = "float32", llm.heads, llm.hidden_size
    attention = {"attention": Shape(f32, (heads, _FREE, _FREE))}
    rows = {
        "inputs_embeds": Shape(f32, (1, _FREE, hidden)),
        "position_ids": Shape("int64", (_ANY, 1, _FREE)),
    }
    first = {**rows, "rows": Shape("int64", (_FREE,)), "columns": Shape("int64", (_FREE,))}
    scorer = {
        **attention,
        "question": Shape("bool", (_FREE,)),
        "index": Shape("int64", (_FREE, _FREE, _FREE)),
        "cells": Shape("int64", (_FREE,)),
        "embeds": Shape(f32, (_FREE, hidden)),
        "words": Shape(f32, (_FREE, hidden)),
        "follows": Shape(f32, (_FREE,)),
        "glance": Shape(f32, (1,)),
    }
    yield from _vision_outputs(manifest)
    yield from _fits("first_layer", graphs.first_layer.inputs, first)
    yield from _fits("first_layer", graphs.first_layer.outputs, attention)
    used = {tensor.name for tensor in graphs.scorer.inputs}  # a scorer may ignore some
    yield from _fits(
        "scorer",
        graphs.scorer.inputs,
        {name: shape for name, shape in scorer.items() if name in used or name == "attention"},
    )
    yield from _fits("scorer", graphs.scorer.outputs, {"relevance": Shape(f32, (_FREE,))})
    for form in graphs.llm:
        if form.form == "trt" and form.cache == "grows":
            yield "llm.trt has a cache that grows, expected in_place"
        yield from _llm_form(form, manifest, rows)


def _vision_outputs(manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with vision tokens and, where the manifest promises it, saliency."""
    outputs = manifest.graphs.vision_encoder.outputs
    expected = {"vision_tokens": Shape("float32", (_ANY, _ANY, manifest.llm.hidden_size))}
    if manifest.saliency_layers:
        expected["saliency"] = Shape("float32", (_ANY, _ANY))
    problems = list(_fits("vision_encoder", outputs, expected))
    yield from problems
    axes = [tensor.shape[:2] for tensor in outputs]
    if not problems and axes[0] != axes[-1]:
        yield f"vision_encoder gives saliency to other tokens than it makes: {axes!r:.200}"


def _llm_form(form: LlmForm, manifest: Manifest, rows: Shapes) -> Iterator[str]:
    """Yield what is wrong with one form of the LLM."""
    llm, limits, dtype = manifest.llm, manifest.limits, CACHE_DTYPES[manifest.precision]
    # TensorRT's cache has one length, that of the longest request
    length = limits.max_kv_len if form.form == "trt" else _FREE
    kv = Shape(dtype, (1, llm.kv_heads, length, llm.head_dim))
    halves = [f"{layer}.{half}" for layer in range(llm.layers) for half in ("key", "value")]
    biased = {"attention_bias": Shape("float32", (1, _FREE))}
    lengths = {
        "seqlens_k": Shape("int32", (1,)),
        "total_sequence_length": Shape("int32", ()),
    }
    masked = {
        "attention_mask": Shape("bool", (1, 1, _FREE, _FREE)),
        "write_indices": Shape("int64", (1,)),
    }
    inputs = {
        **rows,
        **(masked if form.form == "trt" else {}),
        **(biased if form.form == "portable" or dtype == "float32" else {}),
        **(lengths if form.form != "trt" and form.cache == "in_place" else {}),
        **{f"past_key_values.{half}": kv for half in halves},
    }
    logits = Shape("float32", (1, 1, llm.vocab_size))
    outputs = {"logits": logits, **{f"present.{half}": kv for half in halves}}
    yield from _fits(f"llm.{form.form}", form.graph.inputs, inputs)
    yield from _fits(f"llm.{form.form}", form.graph.outputs, outputs)


def _fits(graph: str, given: list[Tensor], expected: Shapes) -> Iterator[str]:
    """Yield how the declared tensors differ from the expected ones."""
    names = [tensor.name for tensor in given]
    if sorted(names) != sorted(expected):
        missing, extra = sorted(set(expected) - set(names)), sorted(set(names) - set(expected))
        yield f"{graph} lacks {missing!r:.200} and has {extra!r:.200}, or one name twice"
        return
    for tensor in given:
        dtype, axes = expected[tensor.name]
        alike = len(axes) == len(tensor.shape) and all(map(_axis_fits, tensor.shape, axes))
        if tensor.dtype != dtype or not alike:
            wanted = [axis if axis > 0 else "name" for axis in axes]
            yield (
                f"{graph} declares {tensor.name} as {tensor.dtype!r:.60} {tensor.shape!r:.200}, "
                f"expected {dtype} {wanted}"
            )


def _axis_fits(given: int | str, expected: int) -> bool:
    if isinstance(given, str):
        return True
    return 0 < given <= _LARGEST if expected == _ANY else given == expected
