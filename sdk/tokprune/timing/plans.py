"""Budgets that depend on scores or on time, applied to one question."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil, exp
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Int64

from tokprune.budgets import (
    Auto,
    Budget,
    Deadline,
    KeepCount,
    KeepMass,
    KeepRatio,
    Plan,
    Timed,
    floor_of,
    frames_of,
)
from tokprune.errors import NotCalibrated, RequestInvalid
from tokprune.timing.latency import Forecast, Quantiles, impossible
from tokprune.types import Array, Ranking, Scores, VisionTokens


class Timing(NamedTuple):
    """Where a request stands in time."""

    forecast: Forecast
    elapsed_ms: float | int  # since the call
    so_far_ms: Mapping[str, float]  # by stage; what a cache answered is left out


LEFT = 4  # of the tokens that were looked at, one in so many must be left time for
Clock: TypeAlias = Callable[[], Timing]  # read once, when the ranking is there
Keep: TypeAlias = Callable[[int], Int64[Array, " k"]]  # k -> the tokens that would be kept


class Fit(NamedTuple):
    """What time allows."""

    cap: int  # most tokens that fit 19 times in 20
    late: bool  # even the floor is not expected to fit


def keeps_all(budget: Budget, total: int, clock: Clock | None = None) -> bool:
    """Tell whether a budget keeps everything, so that no first layer or selector has to run.

    False where that depends on scores. Of a Deadline it is told by the clock: whether prefilling
    all tokens fits when nothing is spent on choosing.
    """
    match budget:
        case KeepRatio() | KeepCount():
            return budget.plan(total).keep == total
        case Deadline():
            now = _read(clock)
            return now.forecast.fits_all(budget.ttft_ms, now.elapsed_ms, now.so_far_ms)
        case KeepMass() | Auto():
            return False


def plan(
    budget: Budget, ranking: Ranking, vision: VisionTokens, keep: Keep, clock: Clock | None
) -> Plan:
    """Apply a budget to ranked tokens.

    Raises:
        BudgetImpossible: time is too short for the fewest tokens that may be kept.
        NotCalibrated: a budget in time without a clock.
        RequestInvalid: the budget needs scores, and the selector gives none.
    """
    total = len(vision.embeds)
    match budget:
        case KeepRatio() | KeepCount():
            return budget.plan(total)
        case Deadline() if ranking.unranked:  # `keeps_all` has found that all fit
            return Plan(total, total, "all")
        case Deadline():
            floor = floor_of(budget, frames_of(vision), total)
            return _within(total, floor, _fit(budget, floor, total, _read(clock)), need=None)
        case KeepMass():
            floor = floor_of(budget, frames_of(vision), total)
            need = needed(budget.p, _scores(ranking), keep)
            return _capped(total, floor, budget.cap, need)
        case Auto():
            floor = floor_of(budget, frames_of(vision), total)
            need = needed(budget.p, _scores(ranking), keep)
            return _within(total, floor, _fit(budget, floor, total, _read(clock)), need)


def needed(p: float | int, scores: Scores, keep: Keep) -> int:
    """Return the fewest tokens that hold share `p` of the scores.

    All of them where no token has a score: nothing tells then what may be dropped. Found by
    bisection, exactly where more tokens never hold less (nested orders without newlines); else
    the answer holds the share, and one token fewer does not.
    """
    values = np.maximum(scores.astype(np.float64), 0.0)
    wanted = p * float(values.sum()) * (1 - 1e-9)  # the share as written, sums in any order
    if not 0 < wanted < np.inf:
        return len(scores)
    highest = np.cumsum(np.sort(values)[::-1])
    lacks = int(np.searchsorted(highest, wanted))  # no choice of so few can hold it
    holds, step = lacks + 1, 1

    def held(k: int) -> bool:
        return k >= len(scores) or float(values[keep(k)].sum()) >= wanted

    while not held(holds):  # orders may be costly to make: no more is asked for than needed
        lacks, holds, step = holds, min(holds + step, len(scores)), 2 * step
    while holds - lacks > 1:
        middle = (lacks + holds) // 2
        lacks, holds = (lacks, middle) if held(middle) else (middle, holds)
    return holds


def units_in_time(
    budget: Budget, clock: Clock, pixels: int, tokens: int, seen: int, wanted: int
) -> int:
    """Return how many more tiles and frames there is time to encode.

    Time is left for first layer and scorer to run once more, and for a quarter of the tokens that
    will be there to be prefilled; what remains after that, `select` fills with more of them.

    Args:
        budget: a budget in time.
        clock: tells where the request stands.
        pixels: values that the encoder is fed of a tile or frame.
        tokens: that become of these.
        seen: tokens that are there already.
        wanted: tiles and frames that are wanted.
    """
    if not isinstance(budget, (Deadline, Auto)):
        return wanted
    forecast, elapsed_ms, so_far_ms = clock()
    again_ms = forecast.stage_ms("first_layer", 0) + forecast.stage_ms("scorer", 0)
    for count in range(wanted, 0, -1):
        rest = forecast.rest_ms((seen + count * tokens) // LEFT, so_far_ms)
        encode_ms = count * forecast.unit_ms(pixels)
        if elapsed_ms + again_ms + encode_ms + rest.p95_ms <= budget.ttft_ms:
            return count
    return 0


class Encoding(NamedTuple):
    """What it takes to encode some tokens of pictures in full."""

    pixels: int  # values that the encoder is fed of a token
    calls: int  # of the encoder: one for each frame
    times: float  # tokens that are encoded for each that is kept; more than one are ranked again


def tokens_in_time(
    budget: Budget, clock: Clock, encoding: Encoding, least: int, wanted: int
) -> int:
    """Return how many tokens there is time to encode in full, and to prefill those kept of.

    Args:
        budget: a budget in time.
        clock: tells where the request stands.
        encoding: what it takes.
        least: the fewest, whether there is time or not.
        wanted: the most.
    """
    if not isinstance(budget, (Deadline, Auto)):
        return wanted
    now = clock()
    fits, exceeds = min(least, wanted), wanted + 1
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        encode_ms, rest = encoded_ms(now.forecast, encoding, middle, now.so_far_ms)
        late = now.elapsed_ms + encode_ms + rest.p95_ms > budget.ttft_ms
        fits, exceeds = (fits, middle) if late else (middle, exceeds)
    return fits


def encoded_ms(
    forecast: Forecast, encoding: Encoding, tokens: int, so_far_ms: Mapping[str, float]
) -> tuple[float, Quantiles]:
    """Return what it takes to encode tokens, and what follows that.

    Args:
        forecast: of the request.
        encoding: what it takes.
        tokens: that are encoded.
        so_far_ms: timings of this request's stages that have run.
    """
    pixels = ceil(tokens / encoding.calls) * encoding.pixels
    encode_ms = encoding.calls * forecast.unit_ms(pixels)
    closer = replace(forecast, sizes=replace(forecast.sizes, vision_tokens=tokens))
    if encoding.times > 1:
        encode_ms += closer.stage_ms("first_layer", 0) + closer.stage_ms("scorer", 0)
    slower = exp(forecast.surprise(so_far_ms))  # which the first look's own sizes tell
    rest = closer.rest_ms(ceil(tokens / encoding.times))
    return encode_ms, Quantiles(rest.p50_ms * slower, rest.p95_ms * slower)


def _capped(total: int, floor: int, cap: int | None, need: int) -> Plan:
    """Keep what is needed between floor and cap."""
    keep = min(max(need, floor), total if cap is None else min(cap, total))
    if keep == total:
        reason = "all"
    elif keep < need:
        reason = "cap"
    else:
        reason = "mass" if keep == need else "floor"
    return Plan(keep, cap, reason, need)


def _within(total: int, floor: int, fit: Fit, need: int | None) -> Plan:
    """Keep what is needed (None: as many as can be) between floor and what time allows."""
    wanted = total if need is None else need
    if fit.late:
        return Plan(floor, fit.cap, "late", need)
    keep = min(max(wanted, floor), max(fit.cap, floor))
    if keep == total:
        reason = "all"
    elif keep == floor and (fit.cap < floor or wanted < floor):
        reason = "floor"
    else:
        reason = "deadline" if keep < wanted else "mass"
    return Plan(keep, fit.cap, reason, need)


def _fit(budget: Timed, floor: int, total: int, now: Timing) -> Fit:
    """Return how many tokens there is time for."""
    forecast, elapsed_ms, so_far_ms = now
    cap = forecast.cap(budget.ttft_ms, elapsed_ms, so_far_ms, total)
    if cap >= floor:
        return Fit(cap, late=False)
    rest = forecast.rest_ms(floor, so_far_ms)
    late = elapsed_ms + rest.p50_ms > budget.ttft_ms
    if late and not budget.best_effort:
        raise impossible(budget, floor, elapsed_ms, rest, f"({elapsed_ms:.0f} ms have passed)")
    return Fit(cap, late)


def _read(clock: Clock | None) -> Timing:
    if clock is None:
        raise NotCalibrated(
            "Deadline and Auto need to know how fast this device is: run `tokprune calibrate`, and "
            "give `select` a clock"
        )
    return clock()


def _scores(ranking: Ranking) -> Scores:
    if ranking.scores is None:
        raise RequestInvalid(
            "KeepMass and Auto need a selector that scores vision tokens, and this one only orders "
            "them: take relevance-spread, relevance-coverage, relevance-mmr, scope-relevance, "
            "relevance, attention-spread, attention-coverage or attention, or give a share, a "
            "count or a Deadline"
        )
    return ranking.scores
