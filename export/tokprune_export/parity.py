"""The gate: the files just written, run in ONNX Runtime, against what the HF module said."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch
from rich.box import SIMPLE
from rich.table import Table
from torch import nn

from tokprune.canvas import canvas
from tokprune.families import FAMILIES
from tokprune.graphs import VisionEncoder
from tokprune.manifest import Graphs, GraphSpec, LlmForm
from tokprune.types import Array, Region
from tokprune_export.errors import ParityFailed
from tokprune_export.oracle import Expected, Run
from tokprune_runtimes import Carry, Graph, load_graph

FORMS_TOLERANCE = 1e-5  # between two forms of the same weights


@dataclass(frozen=True)
class Row:
    """One comparison."""

    graph: str
    form: str
    case: str
    max_abs_diff: float
    max_abs: float  # of the oracle's values
    tolerance: float
    ok: bool
    ties: int = 0  # greedy tokens that differ where the oracle's two best are within the tolerance


@dataclass(frozen=True)
class Bench:
    """The files under test."""

    folder: Path
    graphs: Graphs
    family: str
    atol: float

    def open(self, spec: GraphSpec) -> Graph:
        """Load a graph as the device would."""
        return load_graph(self.folder / spec.file, "cpu")


def compare(graph: str, form: str, case: str, ours: Array, oracle: Array, atol: float) -> Row:
    """Hold `|ours - oracle| <= atol * max(1, max|oracle|)`; what is not a number never does."""
    if ours.shape != oracle.shape:
        shapes = f"shape {ours.shape}, the checkpoint gives {oracle.shape}"
        raise ParityFailed(f"{graph} {form} {case}: {shapes}")
    largest = float(np.abs(oracle).max(initial=0))
    worst = float(np.abs(ours - oracle).max(initial=0))
    tolerance = atol * max(1.0, largest)
    return Row(graph, form, case, worst, largest, tolerance, ok=bool(worst <= tolerance))


def check(bench: Bench, expected: Sequence[Expected], scorer: nn.Module) -> Iterator[Row]:
    """Yield a row for every graph, form and case."""
    yield from _positions(bench, expected)
    encoder = bench.open(bench.graphs.vision_encoder)
    vision = [VisionEncoder(encoder)(one.trial.media).embeds for one in expected]
    for one, tokens in zip(expected, vision, strict=True):
        yield compare("vision_encoder", "", one.trial.name, tokens, one.vision, bench.atol)
    del encoder
    yield from _first_layer(bench, expected)
    yield from _scorer(bench, scorer)
    alone: dict[str, Array] = {}
    for form in bench.graphs.llm:
        rows, alone[form.form] = _llm(bench, form, expected, vision)
        yield from rows
    if len(alone) > 1:
        ours, oracle = alone["ort"], alone["portable"]
        yield compare("llm", "ort", "against portable", ours, oracle, FORMS_TOLERANCE)


def run_llm(graph: Graph, form: LlmForm, run: Run, embeds: Array | None) -> Array:
    """Make the calls of a run on one form of the LLM, its cache where the engine keeps it."""
    assert embeds is not None
    loop = graph.loop(_carries(form, sum(run.lengths)))
    logits: list[Array] = []
    end = 0
    for length in run.lengths:
        start, end = end, end + length
        feeds = {
            "inputs_embeds": embeds[None, start:end],
            "position_ids": run.positions[:, None, start:end],
            "attention_bias": run.bias[None, :end],
        }
        if form.cache == "in_place":
            feeds["seqlens_k"] = np.asarray([end - 1], np.int32)
            feeds["total_sequence_length"] = np.asarray(end, np.int32)
        logits.append(loop.step(feeds)["logits"][0])
    return np.concatenate(logits)


def report(rows: Sequence[Row], atol: float) -> bytes:
    """Return reports/parity.json."""
    content = {
        "rule": "max|a - b| <= atol * max(1, max|b|), b from transformers in float32",
        "atol": atol,
        "ok": all(row.ok for row in rows),
        "rows": [asdict(row) for row in rows],
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"


def table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table for the terminal."""
    style = {"box": SIMPLE, "pad_edge": False, "padding": (0, 1, 0, 0)}  # to fit 80 columns
    shown = Table(title="Parity with the checkpoint, max |a - b|", title_justify="left", **style)
    for heading in ("graph", "form", "case", "diff", "limit", ""):
        right = heading in ("diff", "limit")
        shown.add_column(heading, no_wrap=True, justify="right" if right else "left")
    for row in rows:
        verdict = "ok" if row.ok else "[bold red]FAILED"
        if row.ties:
            verdict += f", {row.ties} tie{'s' if row.ties > 1 else ''}"
        figures = (f"{row.max_abs_diff:.1e}", f"{row.tolerance:.1e}")
        shown.add_row(row.graph, row.form, row.case, *figures, verdict)
    return shown


def _positions(bench: Bench, expected: Sequence[Expected]) -> Iterator[Row]:
    """Compare the numpy half's position ids, which must be equal."""
    processor = FAMILIES[bench.family].open(bench.folder)
    for one in expected:
        ours, following = processor.positions(one.trial.spans)
        oracle = one.trial.positions[:, 0].numpy()
        row = compare("positions", "", one.trial.name, ours, oracle, 0.0)
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
        yield compare("first_layer", "", one.trial.name, ours, one.attention, bench.atol)


def _scorer(bench: Bench, network: nn.Module) -> Iterator[Row]:
    """Compare the scorer with its own network, on grids and rows that were not traced."""
    spec = bench.graphs.scorer
    graph = bench.open(spec)
    names = [tensor.name for tensor in spec.inputs]
    heads = int(spec.inputs[names.index("attention")].shape[0])
    random = np.random.default_rng(0)
    for grids, rows, asked in (((1, 1),), 1, 0), (((8, 3),), 9, 4), (((5, 7), (2, 9)), 31, 12):
        feeds = scorer_feeds(random, grids, heads, rows, asked)
        with torch.no_grad():
            oracle = network(**{name: torch.from_numpy(feeds[name]) for name in feeds}).numpy()
        ours = graph.run({name: feeds[name] for name in names})["relevance"]
        case = f"{' and '.join(f'{h}x{w}' for h, w in grids)}, {asked}/{rows} rows"
        yield compare("scorer", "", case, ours, oracle, bench.atol)


def scorer_feeds(
    random: np.random.Generator,
    grids: Iterable[tuple[int, int]],
    heads: int,
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
    attention = random.dirichlet(np.ones(len(where) + 1), size=(heads, rows))[:, :, :-1]
    question = np.arange(rows) >= rows - asked
    return {
        "attention": attention.astype(np.float32),
        "question": question,
        "index": index,
        "cells": cells,
    }


def _llm(
    bench: Bench, form: LlmForm, expected: Sequence[Expected], vision: Sequence[Array]
) -> tuple[list[Row], Array]:
    """Compare one form, and return its logits too. Its engine is gone before the next one opens."""
    graph = bench.open(form.graph)
    calls = [call for one in expected for call in one.calls]
    logits = [run_llm(graph, form, call, call.embeds) for call in calls]
    rows = [
        compare("llm", form.form, call.name, ours, call.logits, bench.atol)
        for call, ours in zip(calls, logits, strict=True)
    ]
    return rows + list(_end_to_end(bench, graph, form, expected, vision)), np.concatenate(logits)


def _end_to_end(
    bench: Bench,
    graph: Graph,
    form: LlmForm,
    expected: Sequence[Expected],
    vision: Sequence[Array],
) -> Iterator[Row]:
    """From pixels and ids to logits, unpruned as generate gives them and pruned."""
    embed_tokens = np.load(bench.folder / "embed_tokens.npy", mmap_mode="r", allow_pickle=False)
    for one, tokens in zip(expected, vision, strict=True):
        prompt = np.array(embed_tokens[one.trial.ids.numpy()])
        slots = one.trial.slots.numpy()
        prompt[slots] = tokens
        embeds = np.concatenate([prompt, embed_tokens[one.tokens[:-1]]])
        dropped = np.delete(slots, one.keep)
        for name, run, rows in (
            ("end to end", one.answer, embeds),
            ("pruned", one.pruned, np.delete(embeds, dropped, axis=0)),
        ):
            ours = run_llm(graph, form, run, rows)
            yield with_ties(
                compare(name, form.form, one.trial.name, ours, run.logits, bench.atol),
                ours,
                run.logits,
            )


def with_ties(row: Row, ours: Array, oracle: Array) -> Row:
    """Count greedy tokens that differ where the oracle itself is undecided."""
    best = np.sort(oracle, axis=1)[:, -2:]
    differ = ours.argmax(axis=1) != oracle.argmax(axis=1)
    undecided = best[:, 1] - best[:, 0] < 2 * row.tolerance
    return replace(row, ties=int((differ & undecided).sum()))


def _carries(form: LlmForm, capacity: int) -> list[Carry]:
    in_place = form.cache == "in_place"
    return [
        Carry(
            output=tensor.name.replace("past_key_values", "present"),
            input=tensor.name,
            shape=(1, int(tensor.shape[1]), capacity if in_place else 0, int(tensor.shape[3])),
            axis=2,
            in_place=in_place,
        )
        for tensor in form.graph.inputs
        if tensor.name.startswith("past_key_values.")
    ]
