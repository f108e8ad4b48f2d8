import numpy as np
import pytest

from tokprune import KeepCount, KeepRatio, RequestInvalid
from tokprune.budgets import budget_of, parse_budget


@pytest.mark.parametrize(
    ("ratio", "total", "keep", "reason"),
    [
        (0.5, 196, 98, "ratio"),
        (0.125, 196, 25, "ratio"),
        (0.001, 196, 1, "ratio"),
        (1.0, 196, 196, "all"),
        (0.999, 100, 100, "all"),
        (0.07, 100, 7, "ratio"),  # 0.07 * 100 > 7 in binary
        (0.5, 1, 1, "all"),
    ],
)
def test_a_ratio_keeps_the_ceiling_of_its_share(
    ratio: float, total: int, keep: int, reason: str
) -> None:
    assert KeepRatio(ratio).plan(total)[::2] == (keep, reason)


@pytest.mark.parametrize(
    ("count", "keep", "reason"), [(64, 64, "count"), (196, 196, "all"), (500, 196, "all")]
)
def test_a_count_above_the_total_keeps_all_and_says_so(count: int, keep: int, reason: str) -> None:
    plan = KeepCount(count).plan(196)
    assert (plan.keep, plan.cap, plan.reason) == (keep, count, reason)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("0.5", KeepRatio(0.5)),
        ("1.0", KeepRatio(1.0)),
        ("1.", KeepRatio(1.0)),
        (".25", KeepRatio(0.25)),
        ("128", KeepCount(128)),
        ("1", KeepCount(1)),
    ],
)
def test_a_decimal_point_makes_a_share(text: str, budget: object) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "50%", "-1", "half", "1e-1", "0x10", "nan", "٣"])
def test_other_text_is_refused_with_both_spellings(text: str) -> None:
    with pytest.raises(RequestInvalid, match=r"decimal point.*number of vision tokens"):
        parse_budget(text)


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(RequestInvalid, match=r"above 0 and up to 1\.0"):
        KeepRatio(ratio)


def test_a_count_of_zero_is_refused() -> None:
    with pytest.raises(RequestInvalid, match="1 or more"):
        KeepCount(0)


def test_bare_numbers_are_budgets() -> None:
    assert budget_of(0.25) == KeepRatio(0.25)
    assert budget_of(np.float32(0.25)) == KeepRatio(0.25)
    assert budget_of(32) == KeepCount(32)
    assert budget_of(np.int64(32)) == KeepCount(32)


@pytest.mark.parametrize("value", [True, "0.5", None])
def test_other_values_are_no_budget(value: object) -> None:
    with pytest.raises(RequestInvalid, match="A budget is a share"):
        budget_of(value)
