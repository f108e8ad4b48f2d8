"""What `make gpu` makes of the times of slices, and of targets."""

from pathlib import Path
from typing import Any

import pytest
from slice_checkpoint import SLICES, flops
from slices import BUDGETS, Measured, Times, whole
from targets import Speed, judged, targets, told

SIZE = SLICES["7B"]
ROWS = {1.0: 1580.0, 0.5: 820.0, 0.25: 440.0, 0.1: 212.0}
FASTER = {1.0: 1.0, 0.5: 1.9, 0.25: 3.5, 0.1: 7.0}  # than unpruned


def measured(*, ahead_ms: float = 0.8, slower: float = 1.0) -> Measured:
    """A layer takes 2 ms at 100 %, the head 1 ms; what is pruned is slower by a factor."""

    def times(layers: int, budget: float) -> Times:
        factor = FASTER[budget] / (slower if budget < 1 else 1.0)
        return {
            "prefill_ms": (2.0 * layers + 1.0) / factor,
            "decode_token_ms": 0.5 * layers + 0.5,
            "ahead_of_llm_ms": ahead_ms if budget < 1 else 0.01,
            "vision_tokens": 1521,
            "rows": ROWS[budget],
        }

    return {layers: {budget: times(layers, budget) for budget in BUDGETS} for layers in (4, 8)}


THEIRS: dict[int, Times] = {
    layers: {"prefill_ms": 4.0 * layers + 2, "decode_token_ms": layers + 1.0} for layers in (4, 8)
}


def test_slices_are_extrapolated_to_all_layers_and_held_against_both_baselines() -> None:
    them, *ours = [row for row in whole("7B", measured(), THEIRS) if "target" not in row]
    assert (them["prefill_ms"], them["decode_token_ms"]) == (114, 29)
    assert [row["budget"] for row in ours] == list(BUDGETS)
    full, half = ours[:2]
    assert full["prefill_ms"] == 57
    assert full["llm_ttft_ms"] == 57.01
    assert full["ttft_against_transformers"] == 2.0
    assert half["prefill_speed_up"] == 1.9
    assert half["llm_ttft_ms"] == 30.8
    assert half["ttft_speed_up"] == round(57.01 / 30.8, 3)
    assert half["decode_against_transformers"] == 2.0
    assert half["flop_ratio"] == round(flops(SIZE, 1580) / flops(SIZE, 820), 3)


def test_without_transformers_the_rest_is_told() -> None:
    rows = list(whole("7B", measured(), {4: THEIRS[4]}))
    assert not any("transformers" in key for row in rows for key in row)
    assert sum("target" in row for row in rows) == 5


@pytest.mark.parametrize(
    ("ahead_ms", "slower", "met"),
    [
        (0.8, 1.0, [True] * 5),
        (1.2, 1.0, [False] * 3 + [True] * 2),
        (1.0, 1.3, [True] * 3 + [False] * 2),
    ],
)
def test_targets_are_met_or_missed(ahead_ms: float, slower: float, met: list[bool]) -> None:
    rows = whole("7B", measured(ahead_ms=ahead_ms, slower=slower), THEIRS)
    assert [row["met"] for row in rows if "target" in row] == met


def test_a_speed_up_may_fall_short_of_the_flops_by_15_percent_and_no_more() -> None:
    ahead = dict.fromkeys((0.5, 0.25, 0.1), 0.5)
    for speed_up, met in ((1.71, True), (1.69, False), (2.5, True)):
        speeds = {budget: Speed(speed_up, 2.0) for budget in (0.5, 0.25)}
        found = [row for row in targets("7B", 1521, ahead, speeds) if "flop_ratio" in row]
        assert [row["met"] for row in found] == [met, met]
        assert {row["least"] for row in found} == {1.7}


def test_targets_are_collected_with_their_engine_and_told_in_a_line() -> None:
    rows = list(whole("7B", measured(ahead_ms=1.2), THEIRS))
    parts: list[dict[str, Any]] = [
        {"engine": "tensorrt", "part": "slices", "rows": rows},
        {"engine": "cuda", "part": "slices", "rows": []},
    ]
    lines = [told(row) for row in judged(parts)]
    assert lines[0] == (
        "MISSED: first layer + scorer + selection at 50%: at most 1 ms: 1.2 "
        "(tensorrt, 7B, 1521 vision tokens)"
    )
    assert lines[3].startswith("met: prefill speed-up at 50%: within 15 % of the ratio of FLOPs")


@pytest.mark.torch
def test_transformers_is_timed_to_the_first_token_and_by_token(tmp_path: Path) -> None:
    from baseline import baseline
    from setting import Skipped
    from slice_checkpoint import write_slice
    from torch.cuda import is_available

    write_slice(tmp_path / "slice", SLICES["tiny"], 2)
    (row,) = baseline(tmp_path / "slice", 300, 5, 2, "cpu")
    assert row["rows"] == 300
    assert row["prefill_ms"] > 0
    assert row["decode_token_ms"] > 0
    if not is_available():
        with pytest.raises(Skipped, match="no CUDA device"):
            next(baseline(tmp_path / "slice", 300, 5, 2, "cuda"))
