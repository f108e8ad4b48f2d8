"""One request on the worker: the flow, wrapped, and its tokens as text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from tokprune.budgets import Budget
from tokprune.control import Control
from tokprune.errors import BudgetImpossible
from tokprune.graphs import FirstLayerGraph, VisionEncoder
from tokprune.guarding import GuardedGraph
from tokprune.kv import KvPool
from tokprune.llm import Access
from tokprune.looking import Look
from tokprune.model import Model
from tokprune.pipeline import Llm, Pipeline, VisionGraph
from tokprune.running.forecasts import Planned, learnable, planned, ran_sizes
from tokprune.running.looks import TimedLooking, looking_for, ranked
from tokprune.running.task import Task
from tokprune.running.writing import write
from tokprune.selection import keep_all, select, select_each
from tokprune.selectors import Inputs, Selector
from tokprune.stats import StatsRecorder
from tokprune.stopwatch import Stopwatch
from tokprune.timing.latency import Latency
from tokprune.timing.plans import Clock
from tokprune.types import (
    Answer,
    First,
    FirstLayer,
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
    plan = planned(task, *looking_for(model, task), encoder, state.latency, watch)
    pipeline = _pipeline(model, task, encoder, control, watch, llm, plan.clock)
    try:
        looking = TimedLooking(plan.looking, watch, plan.begun)
        flow = replace(pipeline, looking=looking).answer(task.asked)
    except BudgetImpossible:  # what ran tells why
        _learn(state.latency, plan, 0, watch.timings_ms, encoder)
        raise
    encoder.forget()
    written = write(flow, model.tokenizer, watch, task.options, give)
    ran = learnable(watch.timings_ms, reused)
    _learn(state.latency, plan, flow.selection.kept, ran, encoder)
    selection, choice = flow.looks[-1].lifted(flow.selection, task.asked), written.choice
    texts = task.tree.texts if task.tree else ()
    made = Answer(
        text=written.text,
        finish_reason=written.finish_reason,
        selection=selection,
        regions=tuple(region for shown in task.media for region in shown.regions),
        where=np.concatenate([np.zeros((0, 7), np.int32), *(shown.where for shown in task.media)]),
        selector=task.selector_name,
        timings_ms={stage: watch.timings_ms.get(stage, 0.0) for stage in STAGES},
        ttft_ms=written.ttft_ms,
        token_ids=written.token_ids,
        encoder_hits=encoder.hits,
        encoder_runs=encoder.runs,
        encode=plan.way,
        encoded=0 if task.seen is not None else sum(look.encoded for look in flow.looks),
        encode_reason=flow.looks[-1].reason,
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


def _learn(
    latency: Latency,
    plan: Planned,
    kept: int,
    ran: Mapping[str, float],
    encoder: CachedEncoder,
) -> None:
    """Learn from what an answer took, or a refusal: what the looks encoded, not what was planned.

    Args:
        latency: learns.
        plan: of the request.
        kept: vision tokens that entered the LLM.
        ran: timings by stage that the request's sizes explain.
        encoder: knows what it ran.
    """
    sizes = plan.sizes
    if plan.way != "full":  # the curves of first layer and scorer are of one run over everything
        sizes = ran_sizes(sizes, encoder)
        ran = {stage: ran[stage] for stage in ("vision", "select", "prefill") if stage in ran}
    latency.learn(sizes, kept, ran)


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
    vision: VisionGraph = partial(_encoded, replace(model.vision, graph=encoder), encoder)
    if task.seen is not None:
        vision = _same(task.seen)
    whole = Pipeline(
        vision_graph=watch.timed("vision", vision),
        first_layer=partial(_timed_first, first, watch),
        rank=watch.timed("select", ranked(chosen, clock)),
        select=watch.timed("select", partial(select, clock=clock)),
        llm=llm,
    )
    return _each_alone(whole, chosen, task, watch) if task.each_alone else whole


def _each_alone(whole: Pipeline, chosen: Selector, task: Task, watch: Stopwatch) -> Pipeline:
    """Return the flow where every picture is ranked without the others and the question."""

    def rank_later(look: Look, vision: VisionTokens, first: First) -> Ranking:
        del look, first
        return keep_all(len(vision.where))

    def rank(vision: VisionTokens) -> Ranking:
        return chosen(task.prompt, vision, _no_first)

    def select_alone(ranking: Ranking, vision: VisionTokens, budget: Budget) -> Selection:
        del ranking
        return task.pinned or select_each(rank, vision, budget)

    return replace(whole, rank=rank_later, select=watch.timed("select", select_alone))


def _no_first() -> FirstLayer:
    raise TypeError("A selector for pinned pictures must not read the first layer")


def _llm(model: Model, task: Task, access: Access) -> Llm:
    if task.tree is not None:
        return partial(model.llm.choose, tree=task.tree, access=access)
    return partial(model.llm.generate, generation=task.options.generation, access=access)


def _encoded(
    vision: VisionEncoder, encoder: CachedEncoder, media: Sequence[Prepared]
) -> VisionTokens:
    encoder.expect(media)
    return vision(media)


def _same(vision: VisionTokens) -> VisionGraph:
    return lambda _: vision


def _timed_first(
    graph: FirstLayerGraph, watch: Stopwatch, prompt: Prompt, vision: VisionTokens
) -> First:
    return cache(watch.timed("first_layer", partial(graph.run, prompt, vision)))
