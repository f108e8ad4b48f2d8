"""One request on the worker: the flow, wrapped, and its tokens as text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np

from tokprune.budgets import Auto, Budget, Deadline, KeepCount, KeepRatio, floor_of
from tokprune.control import Control
from tokprune.errors import BudgetImpossible
from tokprune.graphs import FirstLayerGraph
from tokprune.guarding import GuardedGraph
from tokprune.kv import KvOwner, KvPool
from tokprune.llm import Access, check_length
from tokprune.looking import (
    FULL,
    Asked,
    Lazy,
    Look,
    Looking,
    Small,
    first_media,
    looking_of,
    way_of,
)
from tokprune.manifest import Limits
from tokprune.model import MakeSelector, Model
from tokprune.pipeline import Llm, Pipeline, Rank, VisionGraph
from tokprune.running.request import Options
from tokprune.running.writing import write
from tokprune.selection import keep_all, select, select_each, unless_all
from tokprune.selectors import SCORING, Inputs, Selector
from tokprune.stats import StatsRecorder
from tokprune.stopwatch import Stopwatch
from tokprune.text.choices import ChoiceTree
from tokprune.timing.latency import Latency
from tokprune.timing.plans import Clock, Timing, units_in_time
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
    small: Callable[[], Small] | None = None  # the same at half their size, where the family can

    @property
    def asked(self) -> Asked:
        """What is to be looked at."""
        return Asked(self.prompt, self.media, self.budget)


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
    way, looking = _looking(model, task)
    whole = way == "full"
    sizes = _sizes(task, encoder, task.media if whole else first_media(looking, task.asked))
    clock = _clock(task.budget, sizes, state.latency, watch, None if whole else encoder)
    if isinstance(looking, Lazy) and clock is not None:
        looking = replace(looking, room=partial(units_in_time, task.budget, clock))
    pipeline = _pipeline(model, task, encoder, control, watch, llm, clock)
    try:
        flow = replace(pipeline, looking=_Timed(looking, watch)).answer(task.asked)
    except BudgetImpossible:  # what ran tells why
        state.latency.learn(sizes, 0, watch.timings_ms)
        raise
    written = write(flow, model.tokenizer, watch, task.options, give)
    ran, kept = _learnable(watch.timings_ms, reused), flow.selection.kept
    if not whole:  # the curves of first layer and scorer are of one run over everything
        sizes = replace(sizes, patches=tuple(encoder.ran))
        ran = {stage: ran[stage] for stage in ("vision", "select", "prefill") if stage in ran}
    state.latency.learn(sizes, kept, ran)
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
        encode=way,
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
        rank=watch.timed("select", _ranked(chosen, clock)),
        select=watch.timed("select", partial(select, clock=clock)),
        llm=llm,
    )
    return _each_alone(whole, chosen, task, watch) if task.each_alone else whole


def _ranked(selector: Selector, clock: Clock | None) -> Rank:
    """Return what ranks the tokens of a look, if any may be dropped or more is to be looked at."""

    def rank(look: Look, vision: VisionTokens, first: First) -> Ranking:
        chosen = unless_all(selector, look.budget, clock) if look.last else selector
        return chosen(look.prompt, vision, first)

    return rank


def _looking(model: Model, task: Task) -> tuple[str, Looking]:
    """Return how the pictures are looked at."""
    if task.seen is not None or task.each_alone or not task.media:
        return "full", FULL
    way, scores = way_of(task.options.encode), task.selector_name in SCORING
    return looking_of(way, model.processor.ways, task.small, task.asked, scores=scores)


@dataclass(frozen=True)
class _Timed:
    """Times what a way to look does on the host."""

    looking: Looking
    watch: Stopwatch

    def first(self, asked: Asked) -> Look:
        with self.watch.stage("preprocess"):
            return self.looking.first(asked)

    def next(
        self, asked: Asked, looks: Sequence[Look], vision: VisionTokens, ranking: Ranking
    ) -> Look | None:
        with self.watch.stage("select"):
            return self.looking.next(asked, looks, vision, ranking)


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


def _learnable(timings_ms: Mapping[str, float], reused: Sequence[int]) -> dict[str, float]:
    """Return the timings that the request's sizes explain."""
    whole = bool(reused) and not any(reused)  # the prefill ran, and over all of its rows
    return {stage: ms for stage, ms in timings_ms.items() if stage != "prefill" or whole}


def _sizes(task: Task, encoder: CachedEncoder, media: Sequence[Prepared]) -> Sizes:
    """Return what the request's cost depends on, without what need not be encoded.

    Args:
        task: the request.
        encoder: knows what was encoded.
        media: what is to be encoded first.
    """
    sizes = replace(sizes_of(task.prompt, task.media), patches=sizes_of(task.prompt, media).patches)
    if task.seen is not None:
        return replace(sizes, patches=())
    calls = [call for shown in media for call in shown.calls]
    new = [size for size, call in zip(sizes.patches, calls, strict=True) if not encoder.has(call)]
    return replace(sizes, patches=tuple(new))


def _clock(
    budget: Budget,
    sizes: Sizes,
    latency: Latency,
    watch: Stopwatch,
    encoder: CachedEncoder | None,
) -> Clock | None:
    """Return what tells a budget in time where the request stands; refuse what cannot be met.

    Args:
        budget: what is asked for.
        sizes: of the request, as far as it is known what will run.
        latency: how fast this device is.
        watch: knows what time it is.
        encoder: knows what it ran, where that is decided on the way.
    """
    if not isinstance(budget, (Deadline, Auto)):
        return None
    forecast = latency.forecast(sizes)
    forecast.check(budget, watch.elapsed_ms())

    def now() -> Timing:
        known = sizes if encoder is None else replace(sizes, patches=tuple(encoder.ran))
        return Timing(replace(forecast, sizes=known), watch.elapsed_ms(), dict(watch.timings_ms))

    return now


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
