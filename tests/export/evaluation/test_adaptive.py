"""Fixed budgets that an adaptive one is compared with."""

import numpy as np

from tokprune_export.evaluation.adaptive import matched, share_of
from tokprune_export.evaluation.cells import WITHOUT_PRUNING, Cell
from tokprune_export.evaluation.record import Given, Record

OURS = "relevance"


def test_fixed_shares_keep_as_many_as_an_adaptive_budget() -> None:
    totals = np.asarray([100] * 19 + [400])
    assert share_of(totals, 23.0, lambda kept: float(kept.mean())) == "0.1976"
    cell = Cell(OURS, "mass:0.9")
    records = {
        str(place): Record(str(place), 100, {cell.key: Given("red", 10 + place)})
        for place in range(21)
    }
    found = matched(list(records), records, [cell, WITHOUT_PRUNING])
    (each,) = found.values()
    assert each["kept"] == {"mean": 20.0, "p95": 29.0}
    assert (each["equal_mean"], each["equal_p95"]) == ("0.1901", "0.2801")


def test_an_adaptive_budget_that_was_refused_is_matched_with_nothing() -> None:
    cell = Cell("uniform", "mass:0.9")
    records = {"0": Record("0", 100, {cell.key: Given("", 0, refused="no scores")})}
    assert matched(["0"], records, [cell]) == {}
