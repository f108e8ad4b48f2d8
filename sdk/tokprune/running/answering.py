"""One request on the worker: the flow, wrapped, and its tokens as text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from tokprune.budgets import Auto, Budget, Deadline, KeepCount, KeepRatio, floor_of
from tokprune.control import Control
from tokprune.errors import BudgetImpossible
from tokprune.graphs import FirstLayerGraph
from tokprune.guarding import GuardedGraph
from tokprune.kv import KvOwner, KvPool
from tokprune.llm import Access, check_length
from tokprune.manifest import Limits
from tokprune.model import MakeSelector, Model
from tokprune.pipeline import Llm, Pipeline, VisionGraph
from tokprune.running.request import Options
from tokprune.running.writing import write
from tokprune.selection import keep_all, select, select_each, unless_all
from tokprune.selectors import Inputs, Selector
from tokprune.stats import StatsRecorder
from tokprune.stopwatch import Stopwatch
from tokprune.text.choices import ChoiceTree
from tokprune.timing.latency import Latency
from tokprune.timing.plans import Clock, Timing
from tokprune.timing.request_sizes import Sizes, sizes_of
from tokprune.types import (
    Answer,
    First,
    FirstLayer,
    FrameStamp,
    Prepared,
    Prompt,
    Ranking,
    Selection,
    VisionTokens,
)
from tokprune.vision_cache import CachedEncoder, VisionCache

STAGES = ("wait", "preprocess", "vision", "first_layer", "scorer", "select", "prefill", "decode")


@dataclass(frozen=True)
class State:
    """What outlives a request."""

    vision_cache: VisionCache
    kv: KvPool
    latency: Latency
    stats: StatsRecorder


@dataclass(frozen=True)
class Task:
    """A checked request, its pictures cut and its prompt laid out."""

    prompt: Prompt
    media: tuple[Prepared, ...]
    budget: Budget
    selector_name: str
    make_selector: MakeSelector
    options: Options
    tree: ChoiceTree | None = None  # of the choices
    owner: KvOwner | None = None  # who will ask again about the same rows
    each_alone: bool = False  # the budget is for each picture, whatever is beside it
    seen: VisionTokens | None = None  # these media, encoded before
    pinned: Selection | None = None  # what was chosen of them before, by the same rule
    frames: tuple[FrameStamp, ...] = ()  # which pictures of cameras are among them


def check_fits(task: Task, limits: Limits) -> None:
    """Refuse what the LLM would refuse, as far as it is known before any graph runs.

    Raises:
        ContextOverflow: with the numbers.
    """
    total, budget = len(task.prompt.slots), task.budget
    if isinstance(budget, (KeepRatio, KeepCount)):
        alone = [len(shown.where) for shown in task.media] if task.each_alone else [total]
        kept = sum(budget.plan(count).keep for count in alone)
    else:
        frames = {(region.picture, region.frame) for m in task.media for region in m.regions}
        kept = floor_of(budget, len(frames), total)
    new = task.options.max_new_tokens if task.tree is None else max(task.tree.rows, 1)
    check_length(len(task.prompt.ids) - total + kept, new, limits)


def answer(
    model: Model,
    task: Task,
    state: State,
    control: Control,
    watch: Stopwatch,
    give: Callable[[str], None],
) -> tuple[Answer, VisionTokens]:
    """Answer, giving out pieces of text as they come; return the vision tokens too.

    Raises:
        Cancelled, DeadlineExceeded: the request was stopped before its first token.
        Closed: the VLM was closed.
        ContextOverflow, EngineTooSmall: it does not fit.
        OutOfMemory, EngineFailed: an engine gave up.
    """
    encoder = CachedEncoder(GuardedGraph(model.vision.graph, control), state.vision_cache)
    reused: list[int] = []
    llm = _llm(model, task, Access(control, state.kv, task.owner, reused.append))
    sizes = _sizes(task, encoder)
    clock = _clock(task.budget, sizes, state.latency, watch)
    pipeline = _pipeline(model, task, encoder, control, watch, llm, clock)
    try:
        flow = pipeline.answer(task.prompt, task.media, task.budget)
    except BudgetImpossible:  # what ran tells why
        state.latency.learn(sizes, 0, watch.timings_ms)
        raise
    written = write(flow, model.tokenizer, watch, task.options, give)
    state.latency.learn(sizes, flow.selection.kept, _learnable(watch.timings_ms, reused))
    selection, choice = flow.selection, written.choice
    texts = task.tree.texts if task.tree else ()
    made = Answer(
        text=written.text,
        finish_reason=written.finish_reason,
        selection=selection,
        regions=flow.vision.regions,
        where=flow.vision.where,
        selector=task.selector_name,
        timings_ms={stage: watch.timings_ms.get(stage, 0.0) for stage in STAGES},
        ttft_ms=written.ttft_ms,
        token_ids=written.token_ids,
        encoder_hits=encoder.hits,
        encoder_runs=encoder.runs,
        reused=sum(reused),
        prompt_tokens=len(task.prompt.ids) - selection.total + selection.kept,
        choice=choice and choice.text,
        probabilities=choice and dict(zip(texts, choice.probabilities, strict=True)),
        choice_mass=choice and choice.choice_mass,
        frames=task.frames,
        frame_age_s=max((stamp.age_s() for stamp in task.frames), default=None),
        spans=watch.spans,
        began_s=watch.began_s,
    )
    return made, flow.vision


def _pipeline(
    model: Model,
    task: Task,
    encoder: CachedEncoder,
    control: Control,
    watch: Stopwatch,
    llm: Llm,
    clock: Clock | None,
) -> Pipeline:
    scorer = replace(model.scorer, graph=GuardedGraph(model.scorer.graph, control))
    first = replace(model.first_layer, graph=GuardedGraph(model.first_layer.graph, control))
    chosen = task.make_selector(Inputs(watch.timed("scorer", scorer), model.llm.embed))
    vision: VisionGraph = replace(model.vision, graph=encoder)
    if task.seen is not None:
        vision = _same(task.seen)
    whole = Pipeline(
        vision_graph=watch.timed("vision", vision),
        first_layer=partial(_timed_first, first, watch),
        selector=watch.timed("select", unless_all(chosen, task.budget, clock)),
        select=watch.timed("select", partial(select, clock=clock)),
        llm=llm,
    )
    return _each_alone(whole, chosen, task, watch) if task.each_alone else whole


def _each_alone(whole: Pipeline, chosen: Selector, task: Task, watch: Stopwatch) -> Pipeline:
    """Return the flow where every picture is ranked without the others and the question."""

    def rank_later(prompt: Prompt, vision: VisionTokens, first: First) -> Ranking:
        del prompt, first
        return keep_all(len(vision.where))

    def rank(vision: VisionTokens) -> Ranking:
        return chosen(task.prompt, vision, _no_first)

    def select_alone(ranking: Ranking, vision: VisionTokens, budget: Budget) -> Selection:
        del ranking
        return task.pinned or select_each(rank, vision, budget)

    return replace(whole, selector=rank_later, select=watch.timed("select", select_alone))


def _no_first() -> FirstLayer:
    raise TypeError("A selector for pinned pictures must not read the first layer")


def _learnable(timings_ms: Mapping[str, float], reused: Sequence[int]) -> dict[str, float]:
    """Return the timings that the request's sizes explain."""
    whole = bool(reused) and not any(reused)  # the prefill ran, and over all of its rows
    return {stage: ms for stage, ms in timings_ms.items() if stage != "prefill" or whole}


def _sizes(task: Task, encoder: CachedEncoder) -> Sizes:
    """Return what the request's cost depends on, without what need not be encoded."""
    sizes = sizes_of(task.prompt, task.media)
    if task.seen is not None:
        return replace(sizes, patches=())
    calls = [call for shown in task.media for call in shown.calls]
    new = [size for size, call in zip(sizes.patches, calls, strict=True) if not encoder.has(call)]
    return replace(sizes, patches=tuple(new))


def _clock(budget: Budget, sizes: Sizes, latency: Latency, watch: Stopwatch) -> Clock | None:
    """Return what tells a budget in time where the request stands; refuse what cannot be met."""
    if not isinstance(budget, (Deadline, Auto)):
        return None
    forecast = latency.forecast(sizes)
    forecast.check(budget, watch.elapsed_ms())
    return lambda: Timing(forecast, watch.elapsed_ms(), dict(watch.timings_ms))


def _llm(model: Model, task: Task, access: Access) -> Llm:
    if task.tree is not None:
        return partial(model.llm.choose, tree=task.tree, access=access)
    return partial(model.llm.generate, generation=task.options.generation, access=access)


def _same(vision: VisionTokens) -> VisionGraph:
    return lambda _: vision


def _timed_first(
    graph: FirstLayerGraph, watch: Stopwatch, prompt: Prompt, vision: VisionTokens
) -> First:
    return cache(watch.timed("first_layer", partial(graph.run, prompt, vision)))
