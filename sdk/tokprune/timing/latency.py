"""How long a request will take, from what was measured of this device and of its last answers.

Each stage costs t(N) = a + b N + c N^2 (calibrations.py). Heat, power modes and other programs
change that, so three things are followed while answers are given:

    level   of each stage, against its curve: quick to rise and slow to fall
    surprise  of this very request: what its first stages took, against what they should have
    margin  between the expected time and the one that 95 of 100 requests meet: adaptive conformal
            inference (arXiv:2106.00170), whose share of misses tends to its aim whatever the noise
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log
from threading import Lock
from time import monotonic
from typing import NamedTuple

from tokprune.budgets import Auto, Budget, Deadline, Timed, floor_of
from tokprune.bundle import Bundle
from tokprune.errors import BudgetImpossible, NotCalibrated
from tokprune.timing.calibrations import (
    STAGES,
    Calibration,
    Curve,
    Stage,
    command_line,
    load_calibration,
    margin_of,
)
from tokprune.timing.request_sizes import Sizes, stage_size
from tokprune_runtimes import Backend

RISE, FALL = 0.5, 0.1  # share of a difference that a level takes over from one answer
LARGEST_STEP = log(2)  # of a difference: one hiccup is no change of the machine
LARGEST_LEVEL = log(16)
FADE_S = 30.0  # in which levels lose 63 % where no answer confirms them
# Share of requests that may take longer than their p95. Aimed at 5 %, every other stretch of a few
# hundred requests would have more.
MISSES = 0.03
# A miss adds 97 % of a step to the margin, a hit takes 3 % of it away. Steps are half the margin,
# so that one which was measured in bad times is soon forgotten, and no smaller than this.
LEAST_STEP = 0.1
LARGEST_MARGIN = log(4)
CACHED = 0.25  # a stage that took less than this share of its time did not run in full
QUICKER = 0.4  # share of good news of this request's first stages that is believed
HICCUP_MS = 3.0  # shorter stages tell little of how fast the machine is
_BEFORE: tuple[Stage, ...] = ("vision", "first_layer", "scorer")
_AFTER: tuple[Stage, ...] = ("select", "prefill")
_UNCHOSEN: tuple[Stage, ...] = ("vision", "prefill")  # all that runs where everything is kept
_NOTHING: Mapping[str, float] = {}


class Quantiles(NamedTuple):
    """An expected time, and the one that 95 of 100 requests meet."""

    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class Forecast:
    """What one request will take, as far as is known before it runs."""

    sizes: Sizes
    curves: Mapping[Stage, Curve]
    levels: Mapping[Stage, float]
    margin: float
    parts: Curve | None = None  # of the encoder's calls for parts of pictures; None: as for whole

    def stage_ms(self, stage: Stage, kept: int) -> float:
        """Return the expected time of one stage."""
        curve = self.curves[stage]
        if stage == "vision":
            plain = sum((curve.ms(patches) for patches in self.sizes.patches), 0.0)
            plain += sum(((self.parts or curve).ms(part) for part in self.sizes.parts), 0.0)
        else:
            plain = curve.ms(stage_size(stage, self.sizes, kept))
        return plain * exp(self.levels[stage])

    @property
    def before_ms(self) -> float:
        """The expected time of all stages before selection."""
        return sum(self.stage_ms(stage, 0) for stage in _BEFORE)

    def unit_ms(self, pixels: int) -> float:
        """Return the expected time of encoding one more tile, frame or cut of so many values."""
        return (self.parts or self.curves["vision"]).ms(pixels) * exp(self.levels["vision"])

    def prefill_ms(self, kept: int, so_far_ms: Mapping[str, float] = _NOTHING) -> Quantiles:
        """Return the time of the prefill alone.

        Args:
            kept: vision tokens that enter the LLM.
            so_far_ms: timings of this request's stages that have run.
        """
        expected = self.stage_ms("prefill", kept) * exp(self.surprise(so_far_ms))
        return Quantiles(expected, expected * exp(self.margin))

    def rest_ms(self, kept: int, so_far_ms: Mapping[str, float] = _NOTHING) -> Quantiles:
        """Return the time of selection and prefill, all that follows once scores are there."""
        plain = sum(self.stage_ms(stage, kept) for stage in _AFTER)
        expected = plain * exp(self.surprise(so_far_ms))
        return Quantiles(expected, expected * exp(self.margin))

    def surprise(self, so_far_ms: Mapping[str, float]) -> float:
        """Return how much slower this request runs than expected so far, as a logarithm."""
        took = expected = 0.0
        for stage in _BEFORE:
            own = self.stage_ms(stage, 0) if stage in so_far_ms else 0.0
            if own and so_far_ms[stage] >= CACHED * own:
                took, expected = took + so_far_ms[stage], expected + own
        if not expected:
            return 0.0
        found = log(took / expected) * expected / (expected + HICCUP_MS)
        return found if found > 0 else QUICKER * found

    def check(self, budget: Budget, elapsed_ms: float | int = 0.0) -> None:
        """Refuse what will not be met even with the fewest tokens, before anything runs.

        Raises:
            BudgetImpossible: the expected time exceeds the budget's, which is no best effort.
        """
        if not isinstance(budget, (Deadline, Auto)) or budget.best_effort:
            return
        total = self.sizes.vision_tokens
        floor = floor_of(budget, self.sizes.frames, total)
        cost = {stage: self.stage_ms(stage, floor) for stage in STAGES}
        if isinstance(budget, Deadline):  # which keeps all, and spends nothing on choosing
            whole = {stage: self.stage_ms(stage, total) for stage in _UNCHOSEN}
            if sum(whole.values()) < sum(cost.values()):
                floor, cost = total, whole
        if elapsed_ms + sum(cost.values()) > budget.ttft_ms:
            parts = ", ".join(f"{stage} {ms:.0f}" for stage, ms in cost.items())
            early = elapsed_ms + sum(cost.get(stage, 0.0) for stage in _BEFORE)
            after = sum(cost.get(stage, 0.0) for stage in _AFTER)
            rest = Quantiles(after, after * exp(self.margin))
            raise impossible(budget, floor, early, rest, f"({parts} ms)")

    def cap(
        self,
        ttft_ms: float | int,
        elapsed_ms: float | int,
        so_far_ms: Mapping[str, float],
        total: int,
    ) -> int:
        """Return the most tokens that can still be chosen and prefilled, 19 times in 20.

        Args:
            ttft_ms: from the call to the first token of the answer.
            elapsed_ms: since the call.
            so_far_ms: timings of this request's stages that have run.
            total: vision tokens that there are.
        """
        slower, room_ms = exp(self.surprise(so_far_ms) + self.margin), ttft_ms - elapsed_ms
        fits, exceeds = 0, total + 1
        while exceeds - fits > 1:
            middle = (fits + exceeds) // 2
            cost = sum(self.stage_ms(stage, middle) for stage in _AFTER) * slower
            fits, exceeds = (middle, exceeds) if cost <= room_ms else (fits, middle)
        return fits

    def fits_all(
        self, ttft_ms: float | int, elapsed_ms: float | int, so_far_ms: Mapping[str, float]
    ) -> bool:
        """Tell whether all tokens fit if nothing is chosen: no first layer, scorer or selector."""
        whole = self.prefill_ms(self.sizes.vision_tokens, so_far_ms)
        return elapsed_ms + whole.p95_ms <= ttft_ms


def impossible(
    budget: Timed, floor: int, elapsed_ms: float | int, rest: Quantiles, detail: str = ""
) -> BudgetImpossible:
    """Return the error for a floor that does not fit."""
    expected, safe = elapsed_ms + rest.p50_ms, elapsed_ms + rest.p95_ms
    return BudgetImpossible(
        f"{budget.ttft_ms:.0f} ms to the first token cannot be met: with {floor} vision tokens, "
        f"the fewest that may be kept, it comes after {expected:.0f} ms as a rule and after "
        f"{safe:.0f} ms at worst (p95) {detail}".rstrip()
        + f". Ask for {safe:.0f} ms or more, give fewer or smaller pictures, or set "
        "best_effort=True"
    )


class Latency:
    """The latency model of one loaded bundle. Safe to use from several threads."""

    def __init__(
        self,
        calibration: Calibration | None,
        missing: str = "",
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Start from a calibration.

        Args:
            calibration: of this device; None refuses every forecast.
            missing: what to tell then.
            clock: seconds that only grow.
        """
        self.calibration = calibration
        self._missing = missing or "This device has not been measured: run `tokprune calibrate`"
        self._clock = clock
        self._lock = Lock()
        self._levels: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._margin = margin_of(calibration.stages["prefill"]) if calibration else 0.0
        self._learnt_s = clock()

    def adopt(self, calibration: Calibration) -> None:
        """Start again from a calibration that was just made."""
        with self._lock:
            self.calibration = calibration
            self._levels = dict.fromkeys(STAGES, 0.0)
            self._margin = margin_of(calibration.stages["prefill"])
            self._learnt_s = self._clock()

    def forecast(self, sizes: Sizes) -> Forecast:
        """Return what is expected of a request now.

        Raises:
            NotCalibrated: there is no calibration; names the command.
        """
        if self.calibration is None:
            raise NotCalibrated(self._missing)
        with self._lock:
            return self._forecast(sizes, self.calibration)

    def learn(self, sizes: Sizes, kept: int, timings_ms: Mapping[str, float]) -> None:
        """Take over what an answer took, or what ran of one that was refused or cancelled.

        Args:
            sizes: of its request.
            kept: vision tokens that entered the LLM.
            timings_ms: by stage; what did not run is not there.
        """
        if self.calibration is None:
            return
        with self._lock:
            before = self._forecast(sizes, self.calibration)
            if "prefill" in timings_ms:
                expected = before.rest_ms(kept, timings_ms).p50_ms
                took = sum(timings_ms.get(stage, 0.0) for stage in _AFTER)
                missed = took > expected * exp(before.margin)
                step = max(LEAST_STEP, before.margin / 2)
                margin = before.margin + step * ((1.0 if missed else 0.0) - MISSES)
                self._margin = min(max(margin, 0.0), LARGEST_MARGIN)
            self._levels = _learnt(before, kept, timings_ms)
            self._learnt_s = self._clock()

    def _forecast(self, sizes: Sizes, calibration: Calibration) -> Forecast:
        """Return what is believed now: levels fade, as a refused request teaches nothing."""
        faded = exp(-max(0.0, self._clock() - self._learnt_s) / FADE_S)
        levels: dict[Stage, float] = {s: level * faded for s, level in self._levels.items()}
        return Forecast(sizes, calibration.stages, levels, self._margin, calibration.parts)


def _learnt(before: Forecast, kept: int, timings_ms: Mapping[str, float]) -> dict[Stage, float]:
    """Return the levels after a request.

    A stage that did not run goes along with those that did: all levels tell of one machine.
    """
    ran = _BEFORE if "prefill" not in timings_ms else STAGES  # a broken selection tells nothing
    own = {stage: before.stage_ms(stage, kept) for stage in ran if stage in timings_ms}
    whole = {stage: ms for stage, ms in own.items() if ms and timings_ms[stage] >= CACHED * ms}
    if not whole:
        return dict(before.levels)
    together = sum(timings_ms[stage] for stage in whole) / sum(whole.values())
    levels: dict[Stage, float] = {}
    for stage in STAGES:
        ratio = timings_ms[stage] / whole[stage] if stage in whole else together
        step = _bounded(log(ratio), LARGEST_STEP)
        level = before.levels[stage] + (RISE if step > 0 else FALL) * step
        levels[stage] = _bounded(level, LARGEST_LEVEL)
    return levels


def open_latency(bundle: Bundle, backend: Backend, threads: int | None) -> Latency:
    """Return the model of a bundle on this device; what is missing is said where it is asked."""
    try:
        calibration = load_calibration(bundle, backend, threads)
    except NotCalibrated as error:
        return Latency(None, str(error))
    line = command_line(bundle, backend, threads)
    return Latency(
        calibration,
        "A budget in time needs to know how fast this device is, and it has not been measured "
        f"with this bundle: run {line}",
    )


def _bounded(value: float, largest: float) -> float:
    return min(max(value, -largest), largest)
