"""Fixed budgets to compare an adaptive one with: of the same mean, and of the same p95."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from tokprune.budgets import KeepRatio
from tokprune.types import Array
from tokprune_export.evaluation.cells import AGREEMENT, Cell, row_name
from tokprune_export.evaluation.options import is_fixed, spelled
from tokprune_export.evaluation.record import Record

STEPS = 10_000  # shares are found to that fraction


def matched(
    keys: Sequence[str], records: Mapping[str, Record], cells: Sequence[Cell]
) -> dict[str, dict[str, Any]]:
    """Return, by cell key, what an adaptive budget kept and the fixed shares that keep as much.

    Cells that were refused somewhere are left out.
    """
    totals = np.asarray([records[key].total for key in keys])
    found: dict[str, dict[str, Any]] = {}
    for cell in cells:
        if is_fixed(cell.budget) or cell.budget == AGREEMENT:
            continue
        given = [records[key].cells[cell.key] for key in keys]
        if any(one.refused for one in given):
            continue
        name = row_name(cell.name)  # the seeds of `random` keep as many
        kept = np.asarray([one.kept for one in given], np.float64)
        found[f"{name}@{cell.budget}"] = {
            "name": name,
            "budget": cell.budget,
            "kept": {"mean": _mean(kept), "p95": _p95(kept)},
            "equal_mean": share_of(totals, _mean(kept), _mean),
            "equal_p95": share_of(totals, _p95(kept), _p95),
        }
    return found


def share_of(
    totals: Int64[Array, " m"], wanted: float, figure: Callable[[Float[Array, " m"]], float]
) -> str:
    """Return the smallest share, as text, whose kept tokens have at least the wanted figure."""
    low, high = 0, STEPS
    while high - low > 1:
        middle = (low + high) // 2
        enough = figure(_kept(totals, middle / STEPS)) >= wanted
        low, high = (low, middle) if enough else (middle, high)
    return spelled(KeepRatio(high / STEPS))


def _kept(totals: Int64[Array, " m"], share: float) -> Float[Array, " m"]:
    budget = KeepRatio(share)
    return np.asarray([budget.plan(int(total)).keep for total in totals], np.float64)


def _mean(kept: Float[Array, " m"]) -> float:
    return float(kept.mean())


def _p95(kept: Float[Array, " m"]) -> float:
    return float(np.percentile(kept, 95))
