import numpy as np
import pytest

from tokprune import KeepCount, KeepRatio, RequestInvalid
from tokprune.budgets import (
    Auto,
    Deadline,
    KeepMass,
    budget_of,
    floor_of,
    frames_of,
    parse_budget,
)
from tokprune.types import Region, VisionTokens


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
        ("mass:0.9", KeepMass(0.9)),
        ("mass:1.0", KeepMass(1.0)),
        ("ttft:300ms", Deadline(300)),
        ("ttft:0.3s", Deadline(300)),
        ("ttft:2s", Deadline(2000)),
        ("ttft:99.5ms", Deadline(99.5)),
        ("auto:300ms", Auto(300)),
        ("auto:.5s", Auto(500)),
    ],
)
def test_text_says_a_share_a_count_a_mass_or_a_time(text: str, budget: object) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text",
    [
        *("", "50%", "-1", "half", "1e-1", "0x10", "nan", "٣", "9" * 19),
        *("mass:90", "mass:", "mass:0.9ms", "mass:.", "ttft:300", "ttft:ms", "ttft:-3ms"),
        *("ttft:1e3ms", "auto:0.9", "ratio:0.5", ":300ms", "ttft:300ms ", "ttft:3ms:", "ttft:٣ms"),
    ],
)
def test_other_text_is_refused_with_all_spellings(text: str) -> None:
    with pytest.raises(RequestInvalid, match=r"0\.5.*128.*mass:0\.9.*ttft:300ms.*auto:300ms"):
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
    assert budget_of("0.25") == KeepRatio(0.25)
    assert budget_of("auto:1s") == Auto(1000)


BUDGETS = [KeepRatio(0.5), KeepCount(3), KeepMass(0.9), Deadline(300), Auto(300)]


@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_are_budgets(budget: object) -> None:
    assert budget_of(budget) is budget


@pytest.mark.parametrize("value", [True, None, [1], b"0.5"])
def test_other_values_are_no_budget(value: object) -> None:
    with pytest.raises(RequestInvalid, match="A budget is a share"):
        budget_of(value)


@pytest.mark.parametrize("p", [0.0, -0.1, 1.01, float("nan")])
def test_a_mass_outside_its_range_is_refused(p: float) -> None:
    for make in (KeepMass, lambda p: Auto(300, p)):
        with pytest.raises(RequestInvalid, match=r"p above 0 and up to 1\.0"):
            make(p)


@pytest.mark.parametrize("ttft_ms", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_must_be_above_zero_and_finite(ttft_ms: float) -> None:
    for make in (Deadline, Auto):
        with pytest.raises(RequestInvalid, match="above 0 ms"):
            make(ttft_ms)


def test_floors_and_caps_must_make_sense() -> None:
    with pytest.raises(RequestInvalid, match="floor takes 1 or more"):
        KeepMass(0.9, floor=0)
    with pytest.raises(RequestInvalid, match="cap takes 1 or more"):
        KeepMass(0.9, cap=0)
    with pytest.raises(RequestInvalid, match="floor takes 1 or more"):
        Auto(300, floor=0)
    with pytest.raises(RequestInvalid, match="cap of at least the floor, got floor=9, cap=8"):
        KeepMass(0.9, floor=9, cap=8)


@pytest.mark.parametrize(
    ("budget", "frames", "total", "floor"),
    [
        (Deadline(300), 1, 196, 16),
        (Deadline(300), 8, 288, 32),
        (Deadline(300), 1, 9, 9),  # never more than there are
        (Auto(300), 5, 196, 20),
        (Auto(300, floor=2), 5, 196, 2),
        (KeepMass(0.9), 4, 196, 16),
        (KeepMass(0.9, floor=40), 4, 196, 40),
        (KeepMass(0.9, cap=10), 4, 196, 10),
    ],
)
def test_the_floor_is_sixteen_or_four_a_frame(
    budget: KeepMass | Deadline | Auto, frames: int, total: int, floor: int
) -> None:
    assert floor_of(budget, frames, total) == floor


def test_a_picture_is_one_frame_whatever_its_tiles() -> None:
    regions = (
        Region(0, 0, 0, 1, 1),
        Region(0, 0, 1, 1, 1),
        *(Region(1, f, 0, 1, 1) for f in (0, 1)),
    )
    where = np.zeros((4, 7), np.int32)
    where[:, :3] = [region[:3] for region in regions]
    assert frames_of(VisionTokens(np.zeros((4, 2), np.float32), where, regions)) == 3
