"""How many vision tokens may enter the LLM."""

import re
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, TypeAlias

import numpy as np

from tokprune.errors import RequestInvalid


class Plan(NamedTuple):
    """A budget applied to a number of tokens."""

    keep: int
    cap: int
    reason: str  # "ratio", "count"; "all" where nothing had to be dropped


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


Budget: TypeAlias = KeepRatio | KeepCount


def budget_of(value: object) -> Budget:
    """Accept a bare share (float) or count (int) where a budget is wanted."""
    if isinstance(value, (KeepRatio, KeepCount)):
        return value
    number: object = value.item() if isinstance(value, (np.integer, np.floating)) else value
    if isinstance(number, int) and not isinstance(number, bool):
        return KeepCount(number)
    if isinstance(number, float):
        return KeepRatio(number)
    raise RequestInvalid(
        f"A budget is a share (0.5), a number of vision tokens (128), KeepRatio or KeepCount; "
        f"got {value!r}"
    )


def parse_budget(text: str) -> Budget:
    """Read a budget as scripts write it: `0.5` is a share, `128` is a count."""
    if re.fullmatch(r"[0-9]+", text):
        return KeepCount(int(text))
    if re.fullmatch(r"[0-9]*\.[0-9]+|[0-9]+\.", text):
        return KeepRatio(float(text))
    raise RequestInvalid(
        f"Cannot read the budget {text!r}. Give a share with a decimal point (0.5, 1.0) "
        "or a number of vision tokens (128)."
    )
