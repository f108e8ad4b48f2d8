"""Time to first token of each selector and budget, by stage, in one process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from time import perf_counter
from typing import NamedTuple, TypeVar

import numpy as np

from tokprune.budgets import KeepRatio, parse_budget
from tokprune.errors import RequestInvalid
from tokprune.kv import KvPool
from tokprune.llm import Access
from tokprune.selection import keep_all, select, unless_all
from tokprune.types import FirstLayer, Medium, Prepared, Prompt, Scores, Selection, VisionTokens
from tokprune.vlm import VLM
from tokprune_export.evaluation.cells import DOWNSAMPLE, FULL, UNPRUNED, Cell
from tokprune_export.evaluation.downsampling import downsampled
from tokprune_export.evaluation.encoding import asked, row_of
from tokprune_export.evaluation.methods import build
from tokprune_export.evaluation.options import is_fixed
from tokprune_export.evaluation.suites import Task
from tokprune_export.media import Source, load

ENCODED = 3  # runs of the vision encoder a question
STAGES = ("vision", "first_layer", "scorer", "select", "prefill")
T = TypeVar("T")
Timings = dict[str, float]  # by stage, in milliseconds
Quantiles = dict[str, dict[str, float]]  # "p50", "p95" -> by stage, and "ttft" of them together


def timed_cells(
    selectors: Sequence[str], looked: Sequence[str], budgets: Sequence[str], *, downsample: bool
) -> list[Cell]:
    """Return the cells to be timed: fixed budgets."""
    pruned = [budget for budget in budgets if is_fixed(budget) and budget != UNPRUNED]
    names = (*selectors, *looked, *(DOWNSAMPLE,) * downsample)
    return [Cell(FULL, UNPRUNED), *(Cell(name, budget) for name in names for budget in pruned)]


def measure(
    vlm: VLM, tasks: Sequence[Task], cells: Sequence[Cell], advance: Callable[[], None]
) -> dict[str, Quantiles]:
    """Time every cell on every question: the cells take turns within each question.

    Nothing else should run meanwhile. A first round, of the first question, is not counted. The
    vision encoder runs a few times a question, and the median counts for all cells.
    """
    pool = vlm.model.llm.pool(1)
    found: dict[str, list[Timings]] = {cell.key: [] for cell in cells}
    for number, task in enumerate([tasks[0], *tasks]):
        shown = _encoded(vlm, task)
        for cell in cells:
            try:
                timings = _time(vlm, pool, shown, cell)
            except RequestInvalid:  # no crops, no frames
                continue
            if number:
                found[cell.key].append(timings)
        advance()
    return {key: _quantiles(rows) for key, rows in found.items() if rows}


class _Shown(NamedTuple):
    """A question, encoded, and how long that took."""

    media: list[Medium]
    question: str
    prompt: Prompt
    vision: VisionTokens
    vision_ms: float
    seen: Sequence[Source | Medium]  # of a stream, the pictures before


def _encoded(vlm: VLM, task: Task) -> _Shown:
    media = [load(medium) for medium in task.media]
    prompt, prepared = vlm.model.prepare(media, task.question)
    vision, vision_ms = _encode(vlm, prepared)
    return _Shown(media, task.question, prompt, vision, vision_ms, task.seen)


def _encode(vlm: VLM, prepared: Sequence[Prepared]) -> tuple[VisionTokens, float]:
    """Return the vision tokens, and the median time that it took."""
    times_ms: list[float] = []
    while True:
        began = perf_counter()
        vision = vlm.model.vision(prepared)
        times_ms.append(1000 * (perf_counter() - began))
        if len(times_ms) == ENCODED:
            return vision, median(times_ms)


def _quantiles(rows: Sequence[Timings]) -> Quantiles:
    """Return median and 95th percentile of each stage, and of their sum question by question."""
    stages = {stage: [row.get(stage, 0.0) for row in rows] for stage in STAGES}
    stages["ttft"] = [sum(row.values()) for row in rows]
    return {
        name: {stage: float(np.percentile(ms, q)) for stage, ms in stages.items()}
        for name, q in (("p50", 50), ("p95", 95))
    }


@dataclass(frozen=True)
class _Watch:
    """Stages of one request; what one of them calls is not counted twice."""

    timings_ms: Timings
    stack: list[str]

    def run(self, stage: str, step: Callable[[], T]) -> T:
        began = perf_counter()
        self.stack.append(stage)
        result = step()
        self.stack.pop()
        spent_ms = 1000 * (perf_counter() - began)
        self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + spent_ms
        if self.stack:
            outer = self.stack[-1]
            self.timings_ms[outer] = self.timings_ms.get(outer, 0.0) - spent_ms
        return result


def _time(vlm: VLM, pool: KvPool, shown: _Shown, cell: Cell) -> Timings:
    """Answer with one token, and return how long each stage took."""
    row = row_of(cell.name)
    if row is not None:
        budget = parse_budget(cell.budget)
        answer = asked(vlm, shown.media, shown.question, row, budget, 1, shown.seen)
        return {stage: answer.timings_ms[stage] for stage in STAGES}
    prompt, vision, vision_ms = shown.prompt, shown.vision, shown.vision_ms
    if cell.name == DOWNSAMPLE:
        k = select(keep_all(len(vision.embeds)), vision, parse_budget(cell.budget)).kept
        smaller = downsampled(vlm.model, shown.media, shown.question, k)
        prompt = smaller.prompt
        vision, vision_ms = _encode(vlm, smaller.prepared)
    watch = _Watch({"vision": vision_ms}, [])
    chosen = _selected(vlm, watch, prompt, vision, cell)
    access = Access(pool=pool)
    watch.run("prefill", lambda: vlm.model.llm.start(prompt, vision, chosen, 1, access).logits)
    return watch.timings_ms


def _selected(
    vlm: VLM, watch: _Watch, prompt: Prompt, vision: VisionTokens, cell: Cell
) -> Selection:
    if cell.name in (FULL, DOWNSAMPLE):
        return select(keep_all(len(vision.embeds)), vision, KeepRatio(1.0))
    model, budget = vlm.model, parse_budget(cell.budget)

    def score(vision: VisionTokens, first: FirstLayer) -> Scores:
        return watch.run("scorer", lambda: model.scorer(vision, first))

    def first() -> FirstLayer:
        return watch.run("first_layer", lambda: model.first_layer.run(prompt, vision))

    selector = unless_all(build(cell.name, model, score), budget)
    once = cache(first)
    return watch.run("select", lambda: select(selector(prompt, vision, once), vision, budget))
