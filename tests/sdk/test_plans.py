import re
from dataclasses import replace

import numpy as np
import pytest
from grids import first_layer, inputs, prompt_for, shown_to, tiled_vision, vision_tokens
from timed_machine import Machine, calibration, true_ms

from tokprune import Ranking, RequestInvalid
from tokprune.budgets import Auto, Budget, Deadline, KeepCount, KeepMass, KeepRatio
from tokprune.errors import BudgetImpossible, NotCalibrated
from tokprune.selection import keep_all, select, unless_all, with_newlines
from tokprune.selectors import SELECTORS
from tokprune.timing.latency import Latency
from tokprune.timing.plans import Timing, keeps_all, needed, units_in_time
from tokprune.timing.request_sizes import Sizes
from tokprune.types import FirstLayer, Prompt, Scores, VisionTokens

VISION = vision_tokens((10, 20))
TOTAL = 200
SIZES = Sizes(patches=(100_000,), vision_tokens=TOTAL, text_rows=30, frames=1)
BEFORE = sum(true_ms(stage, SIZES, 0) for stage in ("vision", "first_layer", "scorer"))


def ranked(scores: np.ndarray) -> Ranking:
    order = np.argsort(-scores, kind="stable")
    return Ranking(lambda k: order[:k], scores.astype(np.float32))


def falling(total: int = TOTAL, power: float = 1.0) -> np.ndarray:
    """Scores of a shuffled picture, which sum to 1."""
    weights = 1 / (1 + np.arange(total)) ** power
    return np.random.default_rng(0).permutation(weights / weights.sum()).astype(np.float32)


SCORES = falling()
RANKING = ranked(SCORES)


def timing(
    elapsed_ms: float = BEFORE, *, spread: float = 1.1, vision: VisionTokens = VISION
) -> Timing:
    sizes = Sizes((100_000,), len(vision.embeds), 30, 1)
    return Timing(Latency(calibration(spread)).forecast(sizes), elapsed_ms, {})


def after(k: int) -> float:
    """What selection and prefill take as a rule."""
    return true_ms("select", SIZES, k) + true_ms("prefill", SIZES, k)


def fewest(scores: np.ndarray, keep: list[np.ndarray], p: float) -> int:
    """The definition: try every number of tokens."""
    wanted = p * scores.astype(np.float64).sum() * (1 - 1e-9)
    return next(k for k in range(1, len(keep)) if scores[keep[k]].astype(float).sum() >= wanted)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 3.0])
def test_the_need_is_the_fewest_tokens_that_hold_the_share(p: float, power: float) -> None:
    scores = falling(power=power)
    order = np.random.default_rng(1).permutation(TOTAL)  # not the order of the scores
    for kept in (order, np.argsort(-scores, kind="stable")):
        every = [np.sort(kept[:k]) for k in range(TOTAL + 1)]
        assert needed(p, scores, lambda k, every=every: every[k]) == fewest(scores, every, p)


@pytest.mark.parametrize("seed", range(20))
def test_with_newlines_the_need_holds_the_share_and_one_token_fewer_does_not(seed: int) -> None:
    vision = tiled_vision()
    total = len(vision.embeds)
    random = np.random.default_rng(seed)
    scores = (random.random(total) ** 4).astype(np.float32)
    order = random.permutation(total)
    every = [with_newlines(lambda k: order[:k], vision.where, k) for k in range(total + 1)]
    for p in (0.2, 0.5, 0.8, 0.95):
        found = needed(p, scores, lambda k: every[k])
        held = [scores[every[k]].astype(float).sum() for k in (found - 1, found)]
        assert held[0] < p * scores.astype(float).sum() <= held[1]
        assert found >= fewest(scores, every, p)


def test_no_more_of_an_order_is_made_than_twice_the_need() -> None:
    asked: list[int] = []
    order = np.argsort(-SCORES, kind="stable")

    def take(k: int) -> np.ndarray:
        asked.append(k)
        return order[:k]

    found = needed(0.3, SCORES, take)
    assert found < 20
    assert max(asked) <= 2 * found


@pytest.mark.parametrize("scores", [np.zeros(TOTAL), np.full(TOTAL, -1.0), np.full(TOTAL, np.nan)])
def test_where_nothing_has_a_score_all_is_needed(scores: np.ndarray) -> None:
    assert needed(0.1, scores.astype(np.float32), lambda k: np.arange(k)) == TOTAL


def test_a_mass_keeps_what_is_needed() -> None:
    selection = select(RANKING, VISION, KeepMass(0.8))
    assert selection.reason == "mass"
    assert selection.kept == selection.need
    assert selection.cap is None
    assert SCORES[selection.keep].sum() >= 0.8 * SCORES.sum()
    assert SCORES[RANKING.take(selection.kept - 1)].sum() < 0.8 * SCORES.sum()


@pytest.mark.parametrize(
    ("budget", "kept", "reason"),
    [
        (KeepMass(0.1), 16, "floor"),
        (KeepMass(0.1, floor=3), 3, "floor"),
        (KeepMass(0.8, cap=20), 20, "cap"),
        (KeepMass(0.1, cap=5), 5, "floor"),
        (KeepMass(0.8, cap=200), None, "mass"),
        (KeepMass(1.0), 200, "all"),
        (KeepMass(0.1, floor=500), 200, "all"),
    ],
)
def test_floor_and_cap_bound_a_mass_and_say_so(
    budget: KeepMass, kept: int | None, reason: str
) -> None:
    selection = select(RANKING, VISION, budget)
    assert (selection.kept, selection.reason) == (kept or selection.need, reason)
    assert selection.cap == budget.cap


def test_a_frame_is_sure_of_four() -> None:
    vision = vision_tokens(*[(5, 8)] * 6)
    scores = np.zeros(240, np.float32)
    scores[7] = 1
    selection = select(ranked(scores), vision, KeepMass(0.9))
    assert (selection.kept, selection.need, selection.reason) == (24, 1, "floor")


def scored(name: str) -> bool:
    vision = shown_to(name)
    scores = np.ones(len(vision.where), np.float32)
    selector = SELECTORS[name].make(inputs(scores))
    ranking = selector(prompt_for(vision), vision, lambda: first_layer(vision, scores))
    return ranking.scores is not None


@pytest.mark.parametrize("budget", [KeepMass(0.9), Auto(500)])
def test_a_budget_of_relevance_needs_scores_and_names_who_has_them(budget: Budget) -> None:
    with pytest.raises(RequestInvalid, match=r"relevance-spread.*attention") as caught:
        select(Ranking(RANKING.take), VISION, budget, timing)
    named = set(re.split(r"[\s,]+", str(caught.value))) & set(SELECTORS)
    assert named == {name for name in SELECTORS if scored(name)}


def test_a_deadline_needs_no_scores() -> None:
    assert select(Ranking(RANKING.take), VISION, Deadline(90), timing).reason == "deadline"


def test_a_deadline_keeps_the_most_tokens_whose_p95_fits() -> None:
    selection = select(RANKING, VISION, Deadline(90), timing)
    k = selection.kept
    assert (selection.cap, selection.reason, selection.need) == (k, "deadline", None)
    assert BEFORE + after(k) * 1.1 <= 90 < BEFORE + after(k + 1) * 1.1


def test_a_deadline_that_is_far_keeps_all() -> None:
    selection = select(RANKING, VISION, Deadline(5000), timing)
    assert (selection.kept, selection.cap, selection.reason) == (TOTAL, TOTAL, "all")


def test_what_has_passed_counts() -> None:
    kept = [
        select(RANKING, VISION, Deadline(120), lambda e=e: timing(e)).kept for e in (40, 50, 60, 70)
    ]
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == 4


FLOOR = after(16)  # expected; its p95 is a tenth more


@pytest.mark.parametrize("kind", [Deadline, Auto])
def test_between_p50_and_p95_the_floor_is_kept(kind: type[Deadline] | type[Auto]) -> None:
    selection = select(RANKING, VISION, kind(100), lambda: timing(100 - 1.05 * FLOOR))
    assert (selection.kept, selection.reason) == (16, "floor")
    assert selection.cap is not None
    assert selection.cap < 16


@pytest.mark.parametrize("kind", [Deadline, Auto])
def test_where_the_floor_cannot_be_met_it_is_an_error_or_late(
    kind: type[Deadline] | type[Auto],
) -> None:
    with pytest.raises(BudgetImpossible, match=r"100 ms .* 16 vision tokens.* best_effort"):
        select(RANKING, VISION, kind(100), lambda: timing(100 - 0.95 * FLOOR))
    late = kind(100, best_effort=True)
    selection = select(RANKING, VISION, late, lambda: timing(100 - 0.95 * FLOOR))
    assert (selection.kept, selection.reason) == (16, "late")
    assert select(RANKING, VISION, late, lambda: timing(250)).reason == "late"


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Auto(90, p=0.99), "deadline"),
        (Auto(90, p=0.6), "mass"),
        (Auto(90, p=0.1), "floor"),
        (Auto(5000, p=1.0), "all"),
        (Auto(90, p=0.1, floor=30), "floor"),
        (Auto(90, p=0.99, floor=30), "deadline"),
    ],
)
def test_auto_keeps_the_need_between_floor_and_deadline(budget: Auto, reason: str) -> None:
    selection = select(RANKING, VISION, budget, timing)
    cap = select(RANKING, VISION, Deadline(budget.ttft_ms), timing).kept
    need = select(RANKING, VISION, KeepMass(budget.p, floor=1)).kept
    assert selection.reason == reason
    assert selection.need == need
    assert selection.kept == min(max(need, budget.floor or 16), cap)


def test_time_without_a_clock_says_what_to_do() -> None:
    for budget in (Deadline(300), Auto(300)):
        with pytest.raises(NotCalibrated, match="tokprune calibrate"):
            select(RANKING, VISION, budget)


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        (KeepRatio(1.0), True),
        (KeepRatio(0.99), False),
        (KeepCount(200), True),
        (KeepCount(199), False),
        (KeepMass(1.0), False),
        (Auto(5000), False),
        (Deadline(5000), True),
        (Deadline(90), False),
    ],
)
def test_budgets_that_keep_all_are_known_before_anything_is_scored(
    budget: Budget, *, told: bool
) -> None:
    assert keeps_all(budget, TOTAL, timing) is told


def test_what_choosing_would_cost_is_spared_where_all_fits_without_it() -> None:
    vision_ms = true_ms("vision", SIZES, 0)
    whole = vision_ms + 1.1 * true_ms("prefill", SIZES, TOTAL)
    assert keeps_all(Deadline(whole + 0.1), TOTAL, lambda: timing(vision_ms))
    assert not keeps_all(Deadline(whole - 0.1), TOTAL, lambda: timing(vision_ms))
    machine = Machine(SIZES, VISION, RANKING)
    kept, ttft_ms = machine.ask(Deadline(whole + 0.1))
    assert (kept.kept, kept.reason) == (TOTAL, "all")
    assert ttft_ms == pytest.approx(vision_ms + true_ms("prefill", SIZES, TOTAL))


def test_a_decision_to_keep_all_is_not_taken_back_by_a_clock_that_went_on() -> None:
    selection = select(keep_all(TOTAL), VISION, Deadline(90), timing)
    assert (selection.kept, selection.reason) == (TOTAL, "all")


def test_a_selector_is_skipped_exactly_where_all_is_kept() -> None:
    calls: list[str] = []

    def selector(prompt: Prompt, vision: VisionTokens, first: object) -> Ranking:
        calls.append("ran")
        return RANKING

    def first() -> FirstLayer:
        raise AssertionError("nothing reads it")

    prompt = prompt_for(VISION)
    for budget in (Deadline(5000), KeepRatio(1.0), KeepCount(999)):
        unless_all(selector, budget, timing)(prompt, VISION, first)
    assert not calls
    unless_all(selector, Deadline(90), timing)(prompt, VISION, first)
    assert calls == ["ran"]


def test_budgets_of_relevance_and_time_leave_no_region_blind() -> None:
    vision = vision_tokens((10, 10), (10, 10))
    scores: Scores = np.zeros(200, np.float32)
    scores[:100] = np.linspace(2, 1, 100)
    ranking = ranked(scores)
    for budget in (KeepMass(0.5), Deadline(60), Auto(60)):
        clock = lambda: timing(20, vision=vision)  # noqa: E731
        keep = select(ranking, vision, budget, clock).keep
        assert (keep >= 100).sum() >= 2, budget
    for budget in (KeepCount(40), KeepRatio(0.2)):  # spent as the ranking says
        assert (select(ranking, vision, budget).keep >= 100).sum() == 0


def test_tiles_are_encoded_as_far_as_time_is_left_for_what_follows() -> None:
    pixels, tokens, seen = 20_000, 49, 49

    def cost(count: int) -> float:
        again = sum(true_ms(stage, SIZES, 0) for stage in ("first_layer", "scorer"))
        tiles = replace(SIZES, patches=(pixels,) * count)
        encode = true_ms("vision", tiles, 0) if count else 0.0
        return again + encode + after((seen + count * tokens) // 4)

    for count in range(1, 7):
        room = units_in_time(
            Deadline(50.0 + cost(count) + 0.5), lambda: timing(50.0, spread=1.0), pixels, tokens,
            seen, 6,
        )  # fmt: skip
        assert room == count
    tight = lambda: timing(50.0, spread=1.0)  # noqa: E731
    assert units_in_time(Deadline(50.0 + cost(1) - 0.5), tight, pixels, tokens, seen, 6) == 0
    assert units_in_time(KeepCount(5), tight, pixels, tokens, seen, 6) == 6
