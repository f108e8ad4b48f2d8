import numpy as np
import pytest
from grids import vision_tokens

from tokprune import KeepCount, KeepRatio, Ranking
from tokprune.canvas import canvas
from tokprune.selection import keep_all, select, size_bias
from tokprune.types import Selection, VisionTokens

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


def test_vision_tokens_must_fill_their_regions() -> None:
    with pytest.raises(ValueError, match="must agree"):
        VisionTokens(VISION.embeds[:5], VISION.where[:5], VISION.regions)


def test_a_canvas_holds_every_token_in_its_cell() -> None:
    vision = vision_tokens((2, 3), (3, 1))
    layout = canvas(vision.where, vision.regions)
    assert layout.tokens.tolist() == [
        [[0, 1, 2], [3, 4, 5], [-1, -1, -1]],
        [[6, -1, -1], [7, -1, -1], [8, -1, -1]],
    ]
    assert layout.tokens.ravel()[layout.cells].tolist() == list(range(9))
