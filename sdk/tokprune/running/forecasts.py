"""What a request will cost, and what is learned from what it took."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from tokprune.budgets import Auto, Budget, Deadline
from tokprune.looking import Lazy, Looking
from tokprune.running.task import Task
from tokprune.stopwatch import Stopwatch
from tokprune.timing.latency import Latency
from tokprune.timing.plans import Clock, Timing, units_in_time
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


def planned(
    task: Task,
    way: str,
    looking: Looking,
    encoder: CachedEncoder,
    latency: Latency,
    watch: Stopwatch,
) -> tuple[Sizes, Clock | None, Looking]:
    """Return the request's sizes, its clock, and a way to look that minds it.

    Where more than one look is taken, sizes are those of the first; the clock follows the others.
    """
    timed = isinstance(task.budget, (Deadline, Auto))
    if way == "full" or not timed:
        sizes = request_sizes(task, encoder, task.media)
        return sizes, clock_of(task.budget, sizes, latency, watch, None), looking
    sizes = request_sizes(task, encoder, looking.first(task.asked).media)
    clock = clock_of(task.budget, sizes, latency, watch, encoder)
    if isinstance(looking, Lazy) and clock is not None:
        looking = replace(looking, room=partial(units_in_time, task.budget, clock))
    return sizes, clock, looking
