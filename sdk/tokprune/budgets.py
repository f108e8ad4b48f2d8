"""How many vision tokens may enter the LLM."""

import re
from dataclasses import KW_ONLY, dataclass
from math import ceil, isfinite
from typing import NamedTuple, TypeAlias

import numpy as np

from tokprune.errors import RequestInvalid
from tokprune.types import VisionTokens

LEAST, LEAST_A_FRAME = 16, 4  # tokens below which no budget goes by itself


class Plan(NamedTuple):
    """A budget applied to a number of tokens."""

    keep: int
    cap: int | None  # what the budget allowed, where it bounds
    reason: str  # as `Selection.reason`
    need: int | None = None  # what the question needs, where the budget asks


@dataclass(frozen=True)
class KeepCount:
    """Keep at most `count` tokens; above the total, keep all and say so."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RequestInvalid(f"KeepCount takes 1 or more vision tokens, got {self.count}")

    def plan(self, total: int) -> Plan:
        """Apply to `total` tokens."""
        return Plan(min(self.count, total), self.count, "all" if self.count >= total else "count")


@dataclass(frozen=True)
class KeepRatio:
    """Keep a share of the tokens: K = ceil(ratio x n), 0 < ratio <= 1."""

    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise RequestInvalid(f"KeepRatio takes a share above 0 and up to 1.0, got {self.ratio}")

    def plan(self, total: int) -> Plan:
        """Apply to `total` tokens."""
        # The share as written: 0.07 of 100 is 7, though 0.07 * 100 > 7 in binary.
        keep = min(total, ceil(round(self.ratio * total, 9)))
        return Plan(keep, keep, "all" if keep == total else "ratio")


@dataclass(frozen=True)
class KeepMass:
    """Keep the fewest tokens that hold share `p` of the predicted relevance, 0 < p <= 1.

    Never fewer than `floor` (if not given: 16, or 4 a frame where that is more), nor more than
    `cap` (if not given: any number). Needs a selector that scores.
    """

    p: float | int
    floor: int | None = None
    cap: int | None = None

    def __post_init__(self) -> None:
        _check_share("KeepMass", self.p)
        _check_count("floor", self.floor)
        _check_count("cap", self.cap)
        if self.floor is not None and self.cap is not None and self.floor > self.cap:
            raise RequestInvalid(
                f"KeepMass takes a cap of at least the floor, got floor={self.floor}, "
                f"cap={self.cap}"
            )


@dataclass(frozen=True)
class Deadline:
    """Keep the most tokens whose first answer token is there within `ttft_ms`, 19 times in 20.

    The time counts from the call; the device must have been calibrated. Where even the floor (16
    tokens, or 4 a frame) does not fit, BudgetImpossible is raised; with `best_effort` the floor is
    kept and the answer is late.
    """

    ttft_ms: float | int
    _: KW_ONLY
    best_effort: bool = False

    def __post_init__(self) -> None:
        _check_time("Deadline", self.ttft_ms)


@dataclass(frozen=True)
class Auto:
    """Keep what the question needs, and no more than `Deadline` would.

    The need is that of `KeepMass(p)`, the floor (if not given: 16, or 4 a frame where that is more)
    the fewest. Needs a selector that scores, and a calibrated device.
    """

    ttft_ms: float | int
    p: float | int = 0.9
    floor: int | None = None
    _: KW_ONLY
    best_effort: bool = False

    def __post_init__(self) -> None:
        _check_time("Auto", self.ttft_ms)
        _check_share("Auto", self.p)
        _check_count("floor", self.floor)


Timed: TypeAlias = Deadline | Auto
Budget: TypeAlias = KeepRatio | KeepCount | KeepMass | Deadline | Auto
BudgetLike: TypeAlias = Budget | float | int | str  # what `budget_of` takes


def floor_of(budget: KeepMass | Timed, frames: int, total: int) -> int:
    """Return the fewest tokens that a budget keeps of `total`, which show so many frames."""
    asked = None if isinstance(budget, Deadline) else budget.floor
    floor = max(LEAST, LEAST_A_FRAME * frames) if asked is None else asked
    if isinstance(budget, KeepMass) and budget.cap is not None:
        floor = min(floor, budget.cap)
    return min(floor, total)


def frames_of(vision: VisionTokens) -> int:
    """Return the number of frames; a picture is one, whatever the number of its tiles."""
    return len({(region.picture, region.frame) for region in vision.regions})


def budget_of(value: object) -> Budget:
    """Accept a bare share (float), count (int) or text where a budget is wanted."""
    if isinstance(value, (KeepRatio, KeepCount, KeepMass, Deadline, Auto)):
        return value
    if isinstance(value, str):
        return parse_budget(value)
    number: object = value.item() if isinstance(value, (np.integer, np.floating)) else value
    if isinstance(number, int) and not isinstance(number, bool):
        return KeepCount(number)
    if isinstance(number, float):
        return KeepRatio(number)
    raise RequestInvalid(
        "A budget is a share (0.5), a number of vision tokens (128), text such as 'ttft:300ms', or "
        f"one of KeepRatio, KeepCount, KeepMass, Deadline and Auto; got {value!r}"
    )


def parse_budget(text: str) -> Budget:
    """Read a budget as scripts write it: `0.5`, `128`, `mass:0.9`, `ttft:300ms`, `auto:0.3s`."""
    kind, colon, value = text.partition(":")
    if not colon and re.fullmatch(r"[0-9]{1,18}", text):
        return KeepCount(int(text))
    if not colon and re.fullmatch(r"[0-9]*\.[0-9]+|[0-9]+\.", text):
        return KeepRatio(float(text))
    if kind == "mass" and re.fullmatch(r"[0-9]*\.[0-9]+|[0-9]+\.", value):
        return KeepMass(float(value))
    duration = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ms|s)", value)
    if duration and kind in ("ttft", "auto"):
        ttft_ms = float(duration[1]) * (1 if duration[2] == "ms" else 1000)
        return Deadline(ttft_ms) if kind == "ttft" else Auto(ttft_ms)
    raise RequestInvalid(
        f"Cannot read the budget {text!r:.100}. Give a share with a decimal point (0.5, 1.0), a "
        "number of vision tokens (128), a share of the predicted relevance (mass:0.9), a time to "
        "the first token (ttft:300ms, ttft:0.3s), or both together (auto:300ms)."
    )


def _check_share(kind: str, p: float | int) -> None:
    if not 0 < p <= 1:
        raise RequestInvalid(f"{kind} takes a share p above 0 and up to 1.0, got {p}")


def _check_count(name: str, count: int | None) -> None:
    if count is not None and count < 1:
        raise RequestInvalid(f"{name} takes 1 or more vision tokens, got {count}")


def _check_time(kind: str, ttft_ms: float | int) -> None:
    if not (isfinite(ttft_ms) and ttft_ms > 0):
        raise RequestInvalid(f"{kind} takes a time to the first token above 0 ms, got {ttft_ms}")
