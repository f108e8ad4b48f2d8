import numpy as np
import pytest
from grids import film_tokens, first_layer, inputs, prompt_for, salient, tiled_vision, vision_tokens

from tokprune import KeepCount, KeepRatio, Ranking
from tokprune.canvas import canvas, row_ends
from tokprune.selection import keep_all, select, size_bias
from tokprune.selectors import SELECTORS
from tokprune.types import KIND, NEWLINE, TILE, Region, Selection, VisionTokens

VISION = vision_tokens((2, 3))
ORDER = np.asarray([4, 1, 5, 0, 2, 3])
RANKING = Ranking(lambda k: ORDER[:k])


def test_kept_tokens_stand_in_the_llms_order() -> None:
    selection = select(RANKING, VISION, KeepCount(3))
    assert selection.keep.tolist() == [1, 4, 5]
    assert (selection.kept, selection.total, selection.cap) == (3, 6, 3)
    assert selection.reason == "count"
    assert selection.bias is None


def test_keeping_all_keeps_all() -> None:
    selection = select(keep_all(6), VISION, KeepRatio(1.0))
    assert selection.keep.tolist() == [0, 1, 2, 3, 4, 5]
    assert selection.reason == "all"


@pytest.mark.parametrize("tokens", [[1, 1, 2], [1, 2]])
def test_a_selector_that_gives_too_few_is_an_error(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="different tokens for k = 3"):
        select(Ranking(lambda _: np.asarray(tokens)), VISION, KeepCount(3))


TILED = tiled_vision()
ENDS = row_ends(TILED.where)
TOTAL = len(TILED.where)


def test_a_row_of_crops_ends_with_its_newline_and_the_whole_picture_has_none() -> None:
    assert ENDS[:9].tolist() == [-1] * 9
    assert ENDS[9:].reshape(5, 7).tolist() == [[15 + 7 * row] * 6 + [-1] for row in range(5)]


def kept(order: list[int] | np.ndarray, k: int) -> list[int]:
    """Select by an order of all tokens, and check what must always hold."""
    keep = select(Ranking(lambda k: np.asarray(order)[:k]), TILED, KeepCount(k)).keep
    assert len(keep) == len(set(keep.tolist())) == min(k, TOTAL)
    return keep.tolist()


def ends_of(keep: list[int]) -> set[int]:
    return {int(end) for end in ENDS[keep] if end >= 0}


def newlines_in(keep: list[int]) -> set[int]:
    return {token for token in keep if TILED.where[token, KIND] == NEWLINE}


def test_newlines_come_with_the_first_token_of_their_row_and_count() -> None:
    order = [10, 24, 11, *(token for token in range(TOTAL) if token not in (10, 24, 11))]
    assert kept(order, 2) == [10, 15]
    assert kept(order, 4) == [10, 15, 24, 29]
    assert kept(order, 5) == [10, 11, 15, 24, 29]


def test_a_place_that_is_too_small_for_a_row_goes_to_the_next_token_that_fits() -> None:
    order = [10, 24, 3, 11, *(token for token in range(TOTAL) if token not in (10, 24, 3, 11))]
    assert kept(order, 1) == [3]
    assert kept(order, 3) == [3, 10, 15]  # 24 would bring a newline


def test_where_newlines_are_ranked_does_not_matter() -> None:
    shuffled = np.random.default_rng(1).permutation(TOTAL)
    ends = TILED.where[shuffled, KIND] == NEWLINE
    last = [*shuffled[~ends], *shuffled[ends]]
    first = [*shuffled[ends], *shuffled[~ends]]
    for k in range(1, TOTAL + 1):
        assert kept(shuffled, k) == kept(last, k) == kept(first, k)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_keeps_exactly_k_and_a_newline_iff_a_token_of_its_row(name: str) -> None:
    film = "frames" in SELECTORS[name].needs
    vision = salient(film_tokens(3, 4, 5, newline=True) if film else TILED)
    ends, kinds = row_ends(vision.where), vision.where[:, KIND]
    scores = np.random.default_rng(2).random(len(ends)).astype(np.float32)
    selector = SELECTORS[name].make(inputs(scores))
    ranking = selector(prompt_for(vision), vision, lambda: first_layer(vision, scores))
    for k in range(2 if film else 1, len(ends) + 1):
        keep = select(ranking, vision, KeepCount(k)).keep
        assert len(keep) == k
        assert set(keep[kinds[keep] == NEWLINE]) == set(ends[keep][ends[keep] >= 0])


@pytest.mark.parametrize("seed", range(3))
def test_patches_of_a_nested_order_stay_when_the_budget_grows_but_for_the_filler(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(TOTAL)
    before: set[int] = set()
    for k in range(1, TOTAL + 1):
        keep = set(kept(order, k))
        assert len(before - keep) <= 1
        before = keep


def test_no_more_of_an_order_is_asked_for_than_is_needed() -> None:
    order, asked = np.random.default_rng(3).permutation(TOTAL), [0]

    def take(k: int) -> np.ndarray:
        asked.append(k)
        return order[:k]

    select(Ranking(take), TILED, KeepCount(8))
    assert max(asked) <= 16


def test_one_place_and_nothing_but_rows_with_newlines_keeps_a_token_all_the_same() -> None:
    where = TILED.where[9:]
    vision = VisionTokens(TILED.embeds[9:], where, TILED.regions[1:])
    assert select(keep_all(len(where)), vision, KeepCount(1)).keep.tolist() == [0]


def test_newlines_of_rows_without_a_token_are_kept_only_with_all() -> None:
    where = np.zeros((4, 7), np.int32)
    where[1:, TILE] = 1
    where[1:, KIND] = NEWLINE
    vision = VisionTokens(np.zeros((4, 2), np.float32), where, (Region(0, 0, 0, 1, 1),))
    backwards = Ranking(lambda k: np.arange(4)[::-1][:k])
    assert select(backwards, vision, KeepCount(1)).keep.tolist() == [0]
    assert select(backwards, vision, KeepCount(4)).keep.tolist() == [0, 1, 2, 3]


def test_size_bias_is_the_log_of_the_tokens_that_each_stands_for() -> None:
    vision = vision_tokens((1, 6))
    bias = size_bias(np.asarray([0, 4]), vision)
    # 0, 1 and (a tie, to the earlier) 2 are nearest to 0; 3, 4 and 5 to 4.
    assert np.exp(bias).round(5).tolist() == [3, 3]


def test_size_bias_counts_each_picture_for_itself() -> None:
    vision = vision_tokens((1, 3), (2, 2))
    bias = size_bias(np.asarray([0, 3, 6]), vision)
    assert np.exp(bias).round(5).tolist() == [3, 3, 1]


def test_size_bias_is_applied_only_where_the_ranking_asks() -> None:
    ranking = Ranking(RANKING.take, size_bias=lambda share: share >= 0.5)
    assert select(ranking, VISION, KeepCount(2)).bias is None
    assert select(ranking, VISION, KeepCount(3)).bias is not None
    assert select(ranking, VISION, KeepCount(6)).bias is None


def test_a_selection_must_ascend_within_the_total() -> None:
    def selection(*keep: int) -> Selection:
        return Selection(np.asarray(keep), 6, None, None, "count")

    with pytest.raises(ValueError, match="strictly ascending"):
        selection(3, 2)
    with pytest.raises(ValueError, match=r"0\.\.5"):
        selection(3, 6)


def test_vision_tokens_must_fit_into_their_regions() -> None:
    with pytest.raises(ValueError, match="must agree"):
        VisionTokens(VISION.embeds, VISION.where, (Region(0, 0, 0, 2, 2),))
    seen = VisionTokens(VISION.embeds[:5], VISION.where[:5], VISION.regions)
    assert canvas(seen.where, seen.regions).tokens.tolist() == [[[0, 1, 2], [3, 4, -1]]]


def test_a_canvas_holds_every_token_in_its_cell() -> None:
    vision = vision_tokens((2, 3), (3, 1))
    layout = canvas(vision.where, vision.regions)
    assert layout.tokens.tolist() == [
        [[0, 1, 2], [3, 4, 5], [-1, -1, -1]],
        [[6, -1, -1], [7, -1, -1], [8, -1, -1]],
    ]
    assert layout.tokens.ravel()[layout.cells].tolist() == list(range(9))
