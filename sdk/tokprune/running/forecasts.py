"""What a request will cost, and what is learned from what it took."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from typing import NamedTuple

from tokprune.budgets import Auto, Budget, Deadline, Timed, floor_of
from tokprune.looking import FULL, Asked, Coarse, Full, Lazy, Look, Looking, frames_in, way_of
from tokprune.running.task import Task
from tokprune.stopwatch import Stopwatch
from tokprune.timing.latency import Forecast, Latency, impossible
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
    sizes = replace(sizes_of(task.prompt, task.media), patches=(), parts=())
    if task.seen is not None:
        return sizes
    new = [
        replace(shown, calls=tuple(call for call in shown.calls if not encoder.has(call)))
        for shown in media
    ]
    encoded = sizes_of(task.prompt, new)
    return replace(sizes, patches=encoded.patches, parts=encoded.parts)


def ran_sizes(sizes: Sizes, encoder: CachedEncoder) -> Sizes:
    """Return the sizes of a request with what the encoder ran of it."""
    return replace(sizes, patches=tuple(encoder.ran), parts=tuple(encoder.ran_parts))


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
        known = sizes if encoder is None else ran_sizes(sizes, encoder)
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
    whole, floor = latency.forecast(sizes), floor_of(budget, sizes.frames, asked.total)

    def most() -> int:
        """Return how many tokens there is time to keep, if all is encoded from now on."""
        before_ms = watch.elapsed_ms() + whole.before_ms
        return whole.cap(budget.ttft_ms, before_ms, {}, asked.total)

    def at_once(way: str, looking: Looking, begun: Look | None = None) -> Planned:
        clock = clock_of(budget, sizes, latency, watch, None)
        return Planned(way, looking, sizes, clock, begun)

    if way_of(task.options.encode).name == "auto" and most() >= floor:  # it looks twice if it must
        return at_once("full", FULL)
    first = _first(task, looking, watch)  # cutting the small pictures has taken time
    if first.last:  # too small to be looked at twice
        return at_once(way, looking, first)
    small = sizes_of(first.prompt, first.media)
    twice = _Twice(budget, looking, _encoding(asked, looking), latency.forecast(small), watch)
    if (kept := most()) >= floor and kept * looking.times >= twice.fits(asked):
        return at_once(way, Full("there is time to look at everything"))
    twice.check(asked, floor)

    def clock() -> Timing:
        known = replace(twice.forecast, sizes=ran_sizes(small, encoder))
        return Timing(known, watch.elapsed_ms(), dict(watch.timings_ms))

    looking = replace(looking, room=partial(twice.room, clock))
    return Planned(way, looking, small, clock, first)


def _encoding(asked: Asked, looking: Coarse) -> Encoding:
    """Return what it takes to encode some tokens of what was asked about."""
    pixels = sum(call["pixel_values"].size for shown in asked.media for call in shown.calls)
    return Encoding(ceil(pixels / asked.total), len(frames_in(asked)), looking.times)


class _Twice(NamedTuple):
    """What two looks take, the first being cut."""

    budget: Timed
    looking: Coarse
    encoding: Encoding
    forecast: Forecast  # of the first look
    watch: Stopwatch

    def room(self, clock: Clock, fewest: int, wanted: int) -> int:
        """Return how many tokens there is time to encode in full."""
        return tokens_in_time(self.budget, clock, self.encoding, fewest, wanted)

    def before(self) -> Timing:
        """Return where the request will stand after the first look."""
        return Timing(self.forecast, self.watch.elapsed_ms() + self.forecast.before_ms, {})

    def fits(self, asked: Asked) -> int:
        """Return how many tokens there will be time to encode in full."""
        return self.room(self.before, self.looking.fewest(asked), asked.total)

    def check(self, asked: Asked, floor: int) -> None:
        """Refuse what the fewest tokens miss.

        Raises:
            BudgetImpossible: as it says.
        """
        fewest, before_ms = self.looking.fewest(asked), self.before().elapsed_ms
        encode_ms, rest = encoded_ms(self.forecast, self.encoding, fewest, {})
        expected_ms = before_ms + encode_ms + rest.p50_ms
        if expected_ms > self.budget.ttft_ms and not self.budget.best_effort:
            raise impossible(self.budget, floor, before_ms + encode_ms, rest)
