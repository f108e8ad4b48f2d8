from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from grids import first_layer, inputs, never, prompt_for, shown_to, vision_tokens

from tokprune.selectors import SELECTORS, Inputs, Selector
from tokprune.selectors.baselines import attention, random_tokens
from tokprune.selectors.coverage import coverage_order, farthest_point_order, lattice, shares
from tokprune.selectors.halves import mixed
from tokprune.selectors.relevance import (
    attention_coverage,
    attention_spread,
    relevance,
    relevance_coverage,
    relevance_spread,
)
from tokprune.selectors.scores import mean_attention
from tokprune.selectors.spread import Scale, points, spread
from tokprune.types import (
    COLUMN,
    FRAME,
    KIND,
    NEWLINE,
    PATCH,
    PICTURE,
    ROW,
    FirstLayer,
    Region,
    VisionTokens,
)

VISION = vision_tokens((6, 7), (3, 8))
TOTAL = 42 + 24
SCORES = np.random.default_rng(3).permutation(TOTAL).astype(np.float32)


def scorer(vision: VisionTokens, first: FirstLayer) -> np.ndarray:
    del vision, first
    return SCORES / SCORES.sum()


def ranked(selector: Selector) -> Callable[[int], np.ndarray]:
    first = first_layer(VISION, SCORES)
    return selector(prompt_for(VISION), VISION, lambda: first).take


NOT_NESTED = {
    "relevance-coverage", "attention-coverage", "uniform", "pool", "dart", "flashvlm",
    "globalcom2", "vidcom2", "ts-llava",
}  # fmt: skip


def named(name: str, vision: VisionTokens) -> Callable[[int], np.ndarray]:
    """What a selector of the table takes of these tokens, and no more than twice computed."""
    scores = np.random.default_rng(3).random(len(vision.where)).astype(np.float32)
    selector = SELECTORS[name].make(inputs(scores / scores.sum()))
    return selector(prompt_for(vision), vision, lambda: first_layer(vision, scores)).take


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_gives_exactly_k_different_tokens_and_newlines_last(name: str) -> None:
    vision = shown_to(name)
    total = len(vision.where)
    patches = int((vision.where[:, KIND] == PATCH).sum())
    take = named(name, vision)
    for k in range(1, total + 1):
        taken = take(k)
        assert len(set(taken.tolist())) == len(taken) == k
        assert set(taken.tolist()) <= set(range(total))
        assert (vision.where[taken, KIND] == PATCH).sum() == min(k, patches)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_is_deterministic(name: str) -> None:
    vision = shown_to(name)
    assert named(name, vision)(20).tolist() == named(name, vision)(20).tolist()


@pytest.mark.parametrize("name", sorted(SELECTORS.keys() - NOT_NESTED))
def test_nested_selectors_give_prefixes_of_one_order_in_whatever_turn_they_are_asked(
    name: str,
) -> None:
    vision = shown_to(name)
    take, again = named(name, vision), named(name, vision)
    head = take(11).tolist()
    assert head == take(50 if len(vision.where) > 50 else 40)[:11].tolist()
    assert head == again(40)[:11].tolist() == again(11).tolist()


@pytest.mark.parametrize("name", SELECTORS)
def test_only_those_that_say_so_read_the_question(name: str) -> None:
    if SELECTORS[name].reads_question:
        return
    vision = shown_to(name)
    prompt = prompt_for(vision)
    unread = Inputs(lambda *_: pytest.fail("scored"), lambda _: pytest.fail("embedded"))
    ranking = SELECTORS[name].make(unread)(prompt, vision, never)
    assert ranking.scores is None
    assert len(ranking.take(10)) == 10


def test_relevance_takes_the_highest_scores() -> None:
    assert ranked(relevance(scorer))(5).tolist() == np.argsort(-SCORES)[:5].tolist()


def test_ties_go_to_the_earlier_token() -> None:
    take = relevance(lambda *_: np.ones(TOTAL, np.float32))
    ranking = take(prompt_for(VISION), VISION, lambda: first_layer(VISION, SCORES))
    assert ranking.take(4).tolist() == [0, 1, 2, 3]


def test_random_differs_by_seed() -> None:
    draws = {tuple(ranked(random_tokens(seed))(10).tolist()) for seed in range(5)}
    assert len(draws) == 5


def test_attention_reads_the_question_rows_alone() -> None:
    scores = np.arange(TOTAL, dtype=np.float32)
    first = first_layer(VISION, scores)
    ranking = attention(prompt_for(VISION), VISION, lambda: first)
    assert ranking.take(3).tolist() == [TOTAL - 1, TOTAL - 2, TOTAL - 3]
    assert ranking.scores is not None
    assert ranking.scores.sum() == pytest.approx(1)


def test_attention_reads_all_rows_when_the_question_stands_before_the_picture() -> None:
    values = np.zeros((1, 3, 4), np.float32)
    values[0, :, 2] = (0.1, 0.2, 0.3)
    scores = mean_attention(FirstLayer(values, np.zeros(3, np.bool_), np.zeros((3, 1), np.float32)))
    assert scores.tolist() == [0, 0, 1, 0]


def test_half_of_coverage_is_relevance_and_half_lies_far_apart() -> None:
    scores = np.zeros(TOTAL, np.float32)
    scores[:10] = np.arange(10, 0, -1)
    take = relevance_coverage(lambda *_: scores, attention_share=0.0, coverage_share=0.5)
    ranking = take(prompt_for(VISION), VISION, lambda: first_layer(VISION, SCORES))
    taken = ranking.take(20)
    assert set(range(10)) <= set(taken.tolist())
    assert (VISION.where[taken, 0] == 1).sum() >= 3  # the other picture is not left blind


def test_relevance_counts_alone_unless_told_otherwise() -> None:
    relevant = np.eye(TOTAL, dtype=np.float32)[3]
    attended = first_layer(VISION, np.eye(TOTAL, dtype=np.float32)[5])
    for share, expected in ((None, (1.0, 0.0)), (0.5, (0.5, 0.5)), (1.0, (0.0, 1.0))):
        given: dict[str, Any] = {} if share is None else {"attention_share": share}
        for make in (relevance_spread, relevance_coverage):
            made = make(lambda *_: relevant, **given)
            scores = made(prompt_for(VISION), VISION, lambda: attended).scores
            assert scores is not None
            assert (scores[3], scores[5]) == pytest.approx(expected)
            assert scores.sum() == pytest.approx(1)


@pytest.mark.parametrize("make", [lambda: relevance_coverage(scorer), lambda: attention_coverage])
def test_coverage_takes_half_and_a_quarter_where_little_is_kept(
    make: Callable[[], Selector],
) -> None:
    ranking = make()(prompt_for(VISION), VISION, lambda: first_layer(VISION, SCORES))
    best = np.argsort(-ranking.scores, kind="stable") if ranking.scores is not None else []
    for k, by_score in ((TOTAL // 2, 0.5), (8, 0.75)):
        taken = set(ranking.take(k).tolist())
        head = k - round(k * (1 - by_score))
        assert set(np.asarray(best)[:head].tolist()) <= taken
        assert not set(np.asarray(best)[: head + 4].tolist()) <= taken
    assert not ranking.size_bias(0.5)


def test_size_bias_is_asked_for_from_its_share_upwards() -> None:
    ranking = relevance_coverage(scorer, size_bias_from=0.2)(
        prompt_for(VISION), VISION, lambda: first_layer(VISION, SCORES)
    )
    assert [ranking.size_bias(share) for share in (0.1, 0.2, 0.5)] == [False, True, True]


def test_mixed_skips_what_is_taken() -> None:
    first, second = np.asarray([3, 1, 0, 2, 4]), np.asarray([1, 2, 3, 4, 0])
    assert mixed(first, second, 4, 0.5).tolist() == [3, 1, 2, 4]
    assert mixed(first, second, 3, 0.0).tolist() == [3, 1, 0]
    assert mixed(first, second, 3, 1.0).tolist() == [1, 2, 3]


def test_farthest_points_start_in_the_centre_and_then_go_to_the_corners() -> None:
    order = farthest_point_order(5, 5)
    assert order[0] == 12
    assert set(order[1:5].tolist()) == {0, 4, 20, 24}
    assert sorted(order.tolist()) == list(range(25))


def test_a_prefix_of_the_coverage_order_serves_each_picture_by_its_share() -> None:
    order = coverage_order(VISION.where, VISION.regions)
    assert sorted(order.tolist()) == list(range(TOTAL))
    first_half = order[:33]
    assert (VISION.where[first_half, 0] == 0).sum() == 21


@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (1, 9), (9, 1), (3, 8), (20, 3)])
def test_a_lattice_of_any_count_has_that_many_cells(rows: int, columns: int) -> None:
    for count in range(1, rows * columns + 1):
        cells = lattice(rows, columns, count)
        assert len(set(cells.tolist())) == count
        assert cells.min() >= 0
        assert cells.max() < rows * columns


def test_a_lattice_of_a_quarter_is_every_second_row_and_column() -> None:
    row, column = np.divmod(lattice(8, 8, 16), 8)
    assert set(row.tolist()) == {1, 3, 5, 7}
    assert set(column.tolist()) == {1, 3, 5, 7}


def test_shares_follow_sizes_and_add_up() -> None:
    assert shares([42, 24], 33) == [21, 12]
    assert shares([1, 1, 1], 2) == [1, 1, 0]
    assert sum(shares([196, 7, 64], 50)) == 50


def film(looks: np.ndarray, side: int) -> VisionTokens:
    """Frames of `side` x `side` tokens, which look like this."""
    frames = len(looks) // side**2
    where = np.zeros((len(looks), 7), np.int32)
    where[:, FRAME] = np.arange(len(looks)) // side**2
    where[:, ROW] = np.arange(len(looks)) % side**2 // side
    where[:, COLUMN] = np.arange(len(looks)) % side
    regions = tuple(Region(0, frame, 0, side, side) for frame in range(frames))
    return VisionTokens(looks.astype(np.float32), where, regions)


def by_definition(scores: np.ndarray, points: np.ndarray, k: int) -> list[int]:
    """The rule, naively: largest weight x squared distance to the nearest that was chosen."""
    weights = (scores.astype(np.float64) / scores.max() + 1e-4) ** 2
    chosen = [int(weights.argmax())]
    while len(chosen) < k:
        gaps = ((points[:, None] - points[None, chosen]) ** 2).sum(-1).min(1)
        gain = weights * np.minimum(gaps, 2.0**2)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
    return chosen


def test_the_spread_order_is_the_weighted_farthest_first_traversal() -> None:
    random = np.random.default_rng(0)
    vision = film(random.normal(size=(3 * 25, 16)), 5)
    scores = random.random(75).astype(np.float32)
    assert spread(scores, vision)(40).tolist() == by_definition(
        scores, points(vision).astype(np.float64), 40
    )


def test_looks_place_and_time_tell_tokens_apart() -> None:
    looks = np.tile([[1.0, 0.0]], (2 * 16, 1))
    looks[5] = (0.0, 3.0)
    found = points(film(looks, 4), Scale(place=1.0, time=1.5))
    apart = ((found[:, None] - found[None]) ** 2).sum(-1) ** 0.5
    assert apart[0, 5] == pytest.approx((2 + 2 * 0.25**2) ** 0.5)  # looks at right angles
    assert apart[0, 3] == pytest.approx(0.75)  # three quarters of the side
    assert apart[0, 16] == pytest.approx(1.5)  # the whole film
    assert np.isfinite(points(film(np.zeros((16, 2)), 4))).all()


def test_wide_embeddings_keep_their_distances_by_and_large() -> None:
    random = np.random.default_rng(1)
    looks = random.normal(size=(100, 12)) @ random.normal(size=(12, 2048))
    unit = looks / np.linalg.norm(looks, axis=1, keepdims=True)
    exact = ((unit[:, None] - unit[None]) ** 2).sum(-1)
    found = points(film(looks, 10))[:, :-3]
    near = ((found[:, None] - found[None]) ** 2).sum(-1)
    assert found.shape == (100, 32)
    apart = ~np.eye(100, dtype=bool)
    error = np.abs((near[apart] / exact[apart]) ** 0.5 - 1)
    assert error.mean() < 0.12
    assert np.corrcoef(exact[apart], near[apart])[0, 1] > 0.75


def even(*_: object) -> np.ndarray:
    return np.ones(128, np.float32)


@pytest.mark.parametrize("selector", [relevance_spread(even), attention_spread])
def test_what_stands_still_is_not_kept_again_and_again(selector: Selector) -> None:
    still = np.tile(np.random.default_rng(0).normal(size=(16, 32)), (8, 1))
    still[5 * 16 + 3] *= -1  # something new, in one frame
    vision = film(still, 4)
    first = first_layer(vision, even())
    taken = selector(prompt_for(vision), vision, lambda: first).take(24)
    assert 5 * 16 + 3 in taken
    cells = vision.where[taken][:, ROW] * 4 + vision.where[taken][:, COLUMN]
    assert len(set(cells.tolist())) == 16  # every place before any is shown a third time


def test_pictures_of_the_same_do_not_stand_for_each_other() -> None:
    embeds = np.ones((TOTAL, 4), np.float32)
    vision = VisionTokens(embeds, VISION.where, VISION.regions)
    taken = spread(np.ones(TOTAL, np.float32), vision)(12)
    assert set(vision.where[taken, PICTURE].tolist()) == {0, 1}


def test_tokens_that_are_all_alike_are_taken_in_their_order() -> None:
    where = np.zeros((3, 7), np.int32)
    where[:, KIND] = [PATCH, NEWLINE, NEWLINE]
    vision = VisionTokens(np.ones((3, 2)), where, (Region(0, 0, 0, 1, 1),))
    assert spread(np.zeros(3, np.float32), vision)(3).tolist() == [0, 1, 2]
