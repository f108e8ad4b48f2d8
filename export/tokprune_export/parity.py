"""The gate: the files just written, run in ONNX Runtime, against what the HF module said."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from torch import nn

from tokprune.families import FAMILIES
from tokprune.graphs import VisionEncoder
from tokprune.llm_calls import Call, cache_length, feeds_of, takes_bias
from tokprune.manifest import LlmForm
from tokprune.types import Array
from tokprune_export.errors import ParityFailed
from tokprune_export.oracle import Expected, Run
from tokprune_export.parity_bench import Bench
from tokprune_export.parity_report import EXACT, PICTURES, ROUNDING, Row, Rule, compare, with_ties
from tokprune_export.parity_scorer import scorer_rows
from tokprune_runtimes import Carry, Graph

FORMS_RULE = Rule(1e-5)  # between two forms of the same weights, in float32
SPARE = 5  # rows of an in-place cache that nothing is written to


def check(bench: Bench, expected: Sequence[Expected], scorer: nn.Module) -> Iterator[Row]:
    """Yield a row for every graph, form and case."""
    yield from _positions(bench, expected)
    encoder = bench.open(bench.graphs.vision_encoder)
    seen = [VisionEncoder(encoder)(one.trial.media) for one in expected]
    rounded = bench.rounded if bench.encoder_precision and bench.rounded else expected
    for one, tokens in zip(rounded, seen, strict=True):
        yield compare(
            "vision_encoder", "", one.trial.name, tokens.embeds, one.vision, bench.encoder
        )
        yield from _saliency(bench, one, tokens.saliency)
    if bench.encoder_precision == "int8":
        for one, tokens in zip(expected, seen, strict=True):
            name, ours = one.trial.name, tokens.embeds
            yield compare("rounding", "vision_encoder", name, ours, one.vision, ROUNDING)
    for probe in bench.probes:
        given = [encoder.run(feeds)["vision_tokens"] for feeds in probe.calls]
        ours, oracle = (np.concatenate(each, axis=None) for each in (given, probe.tokens))
        yield compare("rounding", "vision_encoder", probe.name, ours, oracle, PICTURES)
    vision = [tokens.embeds for tokens in seen]
    del encoder
    yield from _first_layer(bench, expected)
    yield from scorer_rows(bench, scorer)
    alone: dict[str, dict[str, Array]] = {}
    for form in bench.forms:
        if not unrunnable(form):
            rows, alone[form.form] = _llm(bench, form, bench.rounded or expected, vision)
            yield from rows
    rule = FORMS_RULE if bench.precision == "fp32" else bench.rule
    for form, logits in alone.items():
        if form != "portable":
            ours = np.concatenate(list(logits.values()))
            oracle = np.concatenate([alone["portable"][call] for call in logits])
            yield compare("llm", form, "against portable", ours, oracle, rule)
    if bench.rounded is not None:
        yield from _rounding(bench, expected, vision)


def _saliency(bench: Bench, one: Expected, ours: Array | None) -> Iterator[Row]:
    """Compare saliency as multiples of its mean: shares of many patches are small numbers."""
    if (ours is None) != (one.saliency is None):
        raise ParityFailed("vision_encoder has saliency that was not asked for, or lacks it")
    if ours is not None and one.saliency is not None:
        mean = one.saliency.mean()
        given = (ours / mean, one.saliency / mean)
        yield compare("saliency", "", one.trial.name, *given, bench.encoder)


def unrunnable(form: LlmForm) -> str | None:
    """Return why this ONNX Runtime cannot run a form, if so."""
    if form.form != "trt":
        return None
    state: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")  # untyped
    if any(kernel.op_name == "TensorScatter" for kernel in state.get_all_opkernel_def()):
        return None
    there: Any = import_module("onnxruntime")
    return f"llm {form.form}: onnxruntime {there.__version__} here has no TensorScatter (opset 24)"


def run_llm(graph: Graph, form: LlmForm, run: Run, embeds: Array | None) -> Array:
    """Make the calls of a run on one form of the LLM, its cache where the engine keeps it."""
    assert embeds is not None
    capacity = sum(run.lengths) + SPARE
    loop = graph.loop(carries(form, capacity))
    logits: list[Array] = []
    end = 0
    for length in run.lengths:
        start, end = end, end + length
        call = Call(
            embeds[None, start:end], run.positions[:, None, start:end], run.bias[None, :end]
        )
        logits.append(loop.step(feeds_of(form, call))["logits"][0])
    return np.concatenate(logits)


def _positions(bench: Bench, expected: Sequence[Expected]) -> Iterator[Row]:
    """Compare the numpy half's position ids, which must be equal."""
    processor = FAMILIES[bench.family].open(bench.folder)
    for one in expected:
        ours, following = processor.positions(one.trial.spans)
        oracle = one.trial.positions[:, 0].numpy()
        row = compare("positions", "", one.trial.name, ours, oracle, EXACT)
        yield row if following == one.trial.next_position else replace(row, ok=False)


def _first_layer(bench: Bench, expected: Sequence[Expected]) -> Iterator[Row]:
    graph = bench.open(bench.graphs.first_layer)
    for one in expected:
        feeds = {
            "inputs_embeds": one.prompt[None],
            "position_ids": one.trial.positions.numpy(),
            "rows": one.rows,
            "columns": one.trial.slots.numpy(),
        }
        ours = graph.run(feeds)["attention"]
        yield compare("first_layer", "", one.trial.name, ours, one.attention, bench.beside)


def _llm(
    bench: Bench, form: LlmForm, expected: Sequence[Expected], vision: Sequence[Array]
) -> tuple[list[Row], dict[str, Array]]:
    """Compare one form, and return its logits too. Its engine is gone before the next one opens."""
    graph = bench.open(form.graph)
    calls = [call for one in expected for call in one.calls]
    if not takes_bias(form):
        calls = [call for call in calls if not call.bias.any()]
    logits = {call.name: run_llm(graph, form, call, call.embeds) for call in calls}
    rows = [
        compare("llm", form.form, call.name, logits[call.name], call.logits, bench.rule)
        for call in calls
    ]
    return rows + list(_end_to_end(bench, graph, form, expected, vision)), logits


def _end_to_end(
    bench: Bench,
    graph: Graph,
    form: LlmForm,
    expected: Sequence[Expected],
    vision: Sequence[Array],
) -> Iterator[Row]:
    """From pixels and ids to logits, unpruned as generate gives them and pruned."""
    for one, tokens in zip(expected, vision, strict=True):
        embeds = _rows(bench, one, tokens)
        dropped = np.delete(one.trial.slots.numpy(), one.keep)
        for name, run, rows in (
            ("end to end", one.answer, embeds),
            ("pruned", one.pruned, np.delete(embeds, dropped, axis=0)),
        ):
            ours = run_llm(graph, form, run, rows)
            row = compare(name, form.form, one.trial.name, ours, run.logits, bench.whole)
            yield with_ties(row, ours, run.logits)


def _rounding(bench: Bench, expected: Sequence[Expected], vision: Sequence[Array]) -> Iterator[Row]:
    """Compare answers of the first form with those of the weights before they were rounded."""
    form = bench.graphs.llm[0]
    graph = bench.open(form.graph)
    for one, tokens in zip(expected, vision, strict=True):
        ours = run_llm(graph, form, one.answer, _rows(bench, one, tokens))
        yield compare("rounding", form.form, one.trial.name, ours, one.answer.logits, ROUNDING)


def _rows(bench: Bench, one: Expected, tokens: Array) -> Array:
    """Return a prompt with its vision tokens, and the answer that follows."""
    embed_tokens = np.load(bench.folder / "embed_tokens.npy", mmap_mode="r", allow_pickle=False)
    ids = np.concatenate([one.trial.ids.numpy(), one.tokens[:-1]])
    embeds = np.asarray(embed_tokens[ids], np.float32)
    embeds[one.trial.slots.numpy()] = tokens
    return embeds


def carries(form: LlmForm, capacity: int) -> list[Carry]:
    """Return what a form carries from call to call."""
    in_place, length = form.cache == "in_place", cache_length(form, capacity)
    return [
        Carry(
            output=tensor.name.replace("past_key_values", "present"),
            input=tensor.name,
            shape=(1, int(tensor.shape[1]), length if in_place else 0, int(tensor.shape[3])),
            axis=2,
            in_place=in_place,
            dtype=tensor.dtype,
        )
        for tensor in form.graph.inputs
        if tensor.name.startswith("past_key_values.")
    ]
