"""What a request will cost, and what is learned from what it took."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from typing import NamedTuple

from tokprune.budgets import Auto, Budget, Deadline, floor_of
from tokprune.looking import FULL, Coarse, Full, Lazy, Look, Looking, frames_in, way_of
from tokprune.running.task import Task
from tokprune.stopwatch import Stopwatch
from tokprune.timing.latency import Latency, impossible
from tokprune.timing.plans import (
    Clock,
    Encoding,
    Timing,
    encoded_ms,
    tokens_in_time,
    units_in_time,
)
from tokprune.timing.request_sizes import Sizes, sizes_of
from tokprune.types import Prepared
from tokprune.vision_cache import CachedEncoder


def request_sizes(task: Task, encoder: CachedEncoder, media: Sequence[Prepared]) -> Sizes:
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


def clock_of(
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


def learnable(timings_ms: Mapping[str, float], reused: Sequence[int]) -> dict[str, float]:
    """Return the timings that the request's sizes explain."""
    whole = bool(reused) and not any(reused)  # the prefill ran, and over all of its rows
    return {stage: ms for stage, ms in timings_ms.items() if stage != "prefill" or whole}


class Planned(NamedTuple):
    """How a request will be looked at, and what is known of its cost."""

    way: str
    looking: Looking
    sizes: Sizes  # where more than one look is taken, those of the first
    clock: Clock | None  # which follows the others
    begun: Look | None = None  # the first look, where its cost had to be known


def planned(
    task: Task,
    way: str,
    looking: Looking,
    encoder: CachedEncoder,
    latency: Latency,
    watch: Stopwatch,
) -> Planned:
    """Plan a request whose budget may be one in time.

    Raises:
        BudgetImpossible: time is too short, whatever is left out.
        NotCalibrated: nobody measured how fast this device is.
    """
    timed = isinstance(task.budget, (Deadline, Auto))
    if isinstance(looking, Coarse) and timed:
        return _coarse(task, way, looking, encoder, latency, watch)
    if way != "full" and not timed:  # what is encoded, and its hashes, shows as it is encoded
        return Planned(way, looking, sizes_of(task.prompt, task.media), None)
    if way == "full":
        sizes = request_sizes(task, encoder, task.media)
        return Planned(way, looking, sizes, clock_of(task.budget, sizes, latency, watch, None))
    first = _first(task, looking, watch)
    sizes = request_sizes(task, encoder, first.media)
    clock = clock_of(task.budget, sizes, latency, watch, encoder)
    if isinstance(looking, Lazy) and clock is not None:
        looking = replace(looking, room=partial(units_in_time, task.budget, clock))
    return Planned(way, looking, sizes, clock, first)


def _first(task: Task, looking: Looking, watch: Stopwatch) -> Look:
    """Return the first look. To cut and compare pictures takes time, which is preprocessing."""
    with watch.stage("preprocess"):
        return looking.first(task.asked)


def _coarse(
    task: Task,
    way: str,
    looking: Coarse,
    encoder: CachedEncoder,
    latency: Latency,
    watch: Stopwatch,
) -> Planned:
    """Look at everything where that leaves time to keep as many, else at half the size first."""
    budget, asked = task.budget, task.asked
    assert isinstance(budget, (Deadline, Auto))
    sizes = request_sizes(task, encoder, task.media)
    elapsed_ms = watch.elapsed_ms()
    whole = latency.forecast(sizes)
    total, floor = asked.total, floor_of(budget, sizes.frames, asked.total)
    kept = whole.cap(budget.ttft_ms, elapsed_ms + whole.before_ms, {}, total)
    if kept >= floor and way_of(task.options.encode).name == "auto":  # it looks twice if it must
        return Planned("full", FULL, sizes, clock_of(budget, sizes, latency, watch, None))
    first = _first(task, looking, watch)
    if first.last:  # too small to be looked at twice
        clock = clock_of(budget, sizes, latency, watch, None)
        return Planned(way, looking, sizes, clock, first)
    small = sizes_of(first.prompt, first.media)
    coarse = latency.forecast(small)
    pixels = sum(call["pixel_values"].size for shown in asked.media for call in shown.calls)
    encoding = Encoding(ceil(pixels / total), len(frames_in(asked)), looking.times)

    def room(clock: Clock, fewest: int, wanted: int) -> int:
        return tokens_in_time(budget, clock, encoding, fewest, wanted)

    before_ms = elapsed_ms + coarse.before_ms
    fewest = looking.fewest(asked)
    fits = room(lambda: Timing(coarse, before_ms, {}), fewest, total)
    if kept >= floor and kept * looking.times >= fits:
        clock = clock_of(budget, sizes, latency, watch, None)
        return Planned(way, Full("there is time to look at everything"), sizes, clock)
    encode_ms, rest = encoded_ms(coarse, encoding, fewest, {})
    if before_ms + encode_ms + rest.p50_ms > budget.ttft_ms and not budget.best_effort:
        raise impossible(budget, floor, before_ms + encode_ms, rest)

    def clock_now() -> Timing:
        known = replace(small, patches=tuple(encoder.ran))
        return Timing(replace(coarse, sizes=known), watch.elapsed_ms(), dict(watch.timings_ms))

    looking = replace(looking, room=partial(room, clock_now))
    return Planned(way, looking, small, clock_now, first)
