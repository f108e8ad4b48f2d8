"""What was hoped for on a GPU, and whether it was reached.

A target that is missed is no failure of the run, but stands in the results and in the summary.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Row = dict[str, Any]

AHEAD_MS = 1.0  # first layer, scorer and selection, together
AHEAD_BUDGETS = (0.5, 0.25, 0.1)  # with all tokens kept, nothing is selected
FLOPS_BUDGETS = (0.5, 0.25)
SHORT_OF_FLOPS = 0.15  # how much less than the ratio of FLOPs a speed-up may be; more is welcome


class Speed(NamedTuple):
    """The whole LLM at one budget, beside itself with all vision tokens."""

    speed_up: float
    flop_ratio: float


def targets(
    size: str, tokens: int, ahead_ms: Mapping[float, float], speeds: Mapping[float, Speed]
) -> Iterator[Row]:
    """Yield one row for each target and budget.

    Args:
        size: of the LLM; the targets are for 7B.
        tokens: vision tokens of the prompt; the targets are for 1,500 and more.
        ahead_ms: what runs between encoder and LLM, by budget.
        speeds: of the prefill, by budget.
    """
    about = {"size": size, "vision_tokens": tokens}
    for budget in AHEAD_BUDGETS:
        name = f"first layer + scorer + selection at {budget:.0%}: at most {AHEAD_MS:g} ms"
        took = ahead_ms[budget]
        yield {"target": name, **about, "measured_ms": took, "met": took <= AHEAD_MS}
    for budget in FLOPS_BUDGETS:
        speed_up, ratio = speeds[budget]
        least = (1 - SHORT_OF_FLOPS) * ratio
        yield {
            "target": f"prefill speed-up at {budget:.0%}: within 15 % of the ratio of FLOPs",
            **about,
            "measured": round(speed_up, 3),
            "flop_ratio": round(ratio, 3),
            "least": round(least, 3),
            "met": speed_up >= least,
        }


def judged(parts: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Collect the targets of all parts that were run, each with its engine."""
    return [
        {"engine": part["engine"], **row}
        for part in parts
        for row in part["rows"]
        if "target" in row
    ]


def told(row: Mapping[str, Any]) -> str:
    """Say in one line how a target was met or missed."""
    measured = row.get("measured_ms", row.get("measured"))
    verdict = "met" if row["met"] else "MISSED"
    about = f"{row['engine']}, {row['size']}, {row['vision_tokens']} vision tokens"
    return f"{verdict}: {row['target']}: {measured} ({about})"
