"""The gate: the files just written, run in ONNX Runtime, against what the HF module said."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from tokprune.canvas import canvas
from tokprune.families import FAMILIES
from tokprune.graphs import VisionEncoder
from tokprune.llm import Call, cache_length, feeds_of, takes_bias
from tokprune.manifest import EncoderPrecision, Graphs, GraphSpec, LlmForm, Precision
from tokprune.types import Array, Region
from tokprune_export.errors import ParityFailed
from tokprune_export.oracle import Expected, Run
from tokprune_export.parity_report import (
    EXACT,
    PICTURES,
    ROUNDING,
    RULES,
    STATIC,
    Row,
    Rule,
    compare,
    with_ties,
)
from tokprune_export.scorers import Size, TwoLooks
from tokprune_export.static_scales import Probe
from tokprune_export.widen import widen, widened_form
from tokprune_runtimes import Carry, Graph, load_graph

FORMS_RULE = Rule(1e-5)  # between two forms of the same weights, in float32
SPARE = 5  # rows of an in-place cache that nothing is written to


@dataclass(frozen=True)
class Bench:
    """The files under test, and what they are held to."""

    folder: Path
    graphs: Graphs
    family: str
    precision: Precision = "fp32"
    atol: float | None = None  # None: the precision's own
    rounded: Sequence[Expected] | None = (
        None  # what graphs are compared with whose weights have fewer bits
    )
    encoder_precision: EncoderPrecision | None = None  # None: as the rest
    probes: Sequence[Probe] = ()  # what the encoder says of pictures before it is rounded

    @property
    def encoder(self) -> Rule:
        """What the vision encoder is held to."""
        match self.encoder_precision:
            case "int8":
                return self._at(RULES["int8"])
            case "int8-static":
                return self._at(STATIC)
            case None:
                return self.beside

    @property
    def whole(self) -> Rule:
        """What answers from pixels on are held to."""
        return self.rule if self.encoder_precision is None else self._at(RULES["int8"])

    @property
    def beside(self) -> Rule:
        """What the first layer is held to, and a vision encoder that has not its own precision."""
        return RULES["fp32"] if self.precision == "int8" else self.rule

    @property
    def rule(self) -> Rule:
        """What the LLM is held to, and what is as narrow."""
        return self._at(RULES[self.precision])

    def _at(self, rule: Rule) -> Rule:
        return rule if self.atol is None else replace(rule, atol=self.atol)

    @property
    def forms(self) -> list[LlmForm]:
        """The LLM's forms, as they are fed here."""
        narrow = self.precision == "bf16"
        return [widened_form(form) if narrow else form for form in self.graphs.llm]

    def open(self, spec: GraphSpec) -> Graph:
        """Load a graph as the device would; in bfloat16 one that says the same in float32."""
        if self.precision != "bf16" or spec == self.graphs.scorer:
            return load_graph(self.folder / spec.file, "cpu")
        # beside the bundle's own files, where preflight has asked for the room
        with TemporaryDirectory(dir=self.folder) as folder:
            return load_graph(widen(self.folder / spec.file, Path(folder)), "cpu")


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
    yield from _scorer(bench, scorer)
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


def _scorer(bench: Bench, network: nn.Module) -> Iterator[Row]:
    """Compare the scorer with its own network, on grids and rows that were not traced."""
    spec = bench.graphs.scorer
    graph = bench.open(spec)
    names = [tensor.name for tensor in spec.inputs]
    shapes = {tensor.name: tensor.shape for tensor in spec.inputs}
    hidden = shapes["embeds"][1] if "embeds" in shapes else 1
    size = Size(int(shapes["attention"][0]), int(hidden))
    random = np.random.default_rng(0)
    rule = RULES["fp32"]  # it stays float32: its weights are small, and scores are for ranking
    rule = bench.rule if bench.precision == "fp32" else rule
    for grids, rows, asked in (((1, 1),), 1, 0), (((8, 3),), 9, 4), (((5, 7), (2, 9)), 31, 12):
        feeds = scorer_feeds(random, grids, size, rows, asked)
        case = f"{' and '.join(f'{h}x{w}' for h, w in grids)}, {asked}/{rows} rows"
        for look, told in _looks(network).items():
            given = {**feeds, **told}
            with torch.no_grad():
                oracle = network(**{name: torch.from_numpy(given[name]) for name in given}).numpy()
            ours = graph.run({name: given[name] for name in names})["relevance"]
            yield compare("scorer", "", case + look, ours, oracle, rule)


def _looks(network: nn.Module) -> dict[str, dict[str, Array]]:
    """Return what a network is told of looks; nothing, where one scores all."""
    if not isinstance(network, TwoLooks):
        return {"": {}}
    return {
        "": {"glance": np.zeros(1, np.float32)},
        ", first look": {"glance": np.ones(1, np.float32)},
    }


def scorer_feeds(
    random: np.random.Generator,
    grids: Iterable[tuple[int, int]],
    size: Size,
    rows: int,
    asked: int,
) -> dict[str, Array]:
    """Return random attention over pictures of these grids, the last rows marked as asked."""
    regions = tuple(Region(index, 0, 0, h, w) for index, (h, w) in enumerate(grids))
    where = np.zeros((sum(region.rows * region.columns for region in regions), 7), np.int32)
    where[:, 0] = np.repeat([r.picture for r in regions], [r.rows * r.columns for r in regions])
    where[:, 3:5] = np.concatenate(
        [np.indices((r.rows, r.columns)).reshape(2, -1).T for r in regions]
    )
    index, cells = canvas(where, regions)
    attention = random.dirichlet(np.ones(len(where) + 1), size=(size.heads, rows))[:, :, :-1]
    question = np.arange(rows) >= rows - asked
    return {
        "attention": attention.astype(np.float32),
        "question": question,
        "index": index,
        "cells": cells,
        "embeds": random.standard_normal((len(where), size.hidden), np.float32),
        "words": random.standard_normal((rows, size.hidden), np.float32),
    }


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
