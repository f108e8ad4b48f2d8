import numpy as np
import pytest
from grids import tiled_vision, vision_tokens

from tokprune import Ranking
from tokprune.allocation import fair, least_kept
from tokprune.budgets import KeepMass
from tokprune.canvas import members
from tokprune.selection import select, with_newlines
from tokprune.selectors.coverage import farthest_point_order
from tokprune.types import VisionTokens

FRAMES = vision_tokens(*[(4, 5)] * 6)


def counts(vision: VisionTokens, tokens: np.ndarray) -> list[int]:
    return [int(np.isin(members(vision.where, region), tokens).sum()) for region in vision.regions]


def one_sided(vision: VisionTokens) -> Ranking:
    """All of the relevance is in the first region; within each, later tokens have more."""
    first = len(members(vision.where, vision.regions[0]))
    scores = np.linspace(0, 1, len(vision.where), dtype=np.float32)
    scores[:first] += 10
    order = np.argsort(-scores, kind="stable")
    return Ranking(lambda k: order[:k], scores)


@pytest.mark.parametrize(
    ("k", "regions", "least"),
    [
        (5, 6, 0),
        (11, 6, 0),
        (12, 6, 1),
        (24, 6, 1),
        (48, 6, 2),
        (96, 6, 4),
        (9999, 6, 4),
        (1, 1, 0),
    ],
)
def test_each_region_is_sure_of_a_few_where_there_are_enough(
    k: int, regions: int, least: int
) -> None:
    assert least_kept(k, regions) == least
    assert least * regions <= k


@pytest.mark.parametrize("k", range(1, 121))
def test_exactly_k_are_taken_and_no_region_goes_blind(k: int) -> None:
    tokens = fair(one_sided(FRAMES), FRAMES)(k)(k)
    assert len(tokens) == len(set(tokens.tolist())) == k
    assert min(counts(FRAMES, tokens)) >= least_kept(k, 6)


def test_what_is_given_out_is_the_best_of_each_region_and_taken_from_the_tail() -> None:
    ranking = one_sided(FRAMES)
    kept = fair(ranking, FRAMES)(16)(16)
    assert ranking.scores is not None
    for region in FRAMES.regions[1:]:
        inside = members(FRAMES.where, region)
        best = inside[ranking.scores[inside].argmax()]
        assert kept[np.isin(kept, inside)].tolist() == [best]
    assert set(kept.tolist()) >= set(ranking.take(11).tolist())  # 16 less five for the others


def test_without_scores_a_region_gets_what_covers_its_grid() -> None:
    ranking = Ranking(one_sided(FRAMES).take)
    kept = fair(ranking, FRAMES)(16)(16)
    inside = members(FRAMES.where, FRAMES.regions[3])
    assert kept[np.isin(kept, inside)].tolist() == [inside[farthest_point_order(4, 5)[0]]]


def test_a_fair_choice_is_left_as_it_is() -> None:
    order = np.random.default_rng(0).permutation(120)
    ranking = Ranking(lambda k: order[:k])
    assert min(counts(FRAMES, order[:60])) >= least_kept(60, 6)
    assert fair(ranking, FRAMES)(60) is ranking.take


@pytest.mark.parametrize("k", [1, 30, 200])
def test_one_region_or_all_tokens_leave_nothing_to_split(k: int) -> None:
    one = vision_tokens((10, 20))
    ranking = one_sided(one)
    assert fair(ranking, one)(k) is ranking.take


def test_a_region_smaller_than_its_share_gives_what_it_has() -> None:
    vision = vision_tokens((1, 1), (10, 10))
    scores = np.arange(101, dtype=np.float32)
    order = np.argsort(-scores)
    kept = fair(Ranking(lambda k: order[:k], scores), vision)(64)(64)
    assert counts(vision, kept) == [1, 63]


@pytest.mark.parametrize("seed", range(5))
def test_fewer_tokens_are_a_prefix_so_that_newlines_find_their_number(seed: int) -> None:
    vision = tiled_vision()
    order = np.random.default_rng(seed).permutation(len(vision.where))
    order = np.concatenate([order[vision.where[order, 2] == 1], order[vision.where[order, 2] == 0]])
    ranking = Ranking(lambda k: order[:k])
    for k in range(1, len(order) + 1):
        take = fair(ranking, vision)(k)
        keep = with_newlines(take, vision.where, k)
        assert len(keep) == k
        if least_kept(k, 2):
            assert min(counts(vision, keep)) >= 1
        whole = take(k)
        for fewer in range(k):
            assert set(take(fewer).tolist()) <= set(whole.tolist())


def test_the_relevance_that_was_asked_for_is_still_held() -> None:
    ranking = one_sided(FRAMES)
    assert ranking.scores is not None
    selection = select(ranking, FRAMES, KeepMass(0.5))
    assert selection.need is not None
    assert ranking.scores[selection.keep].sum() >= 0.5 * ranking.scores.sum()
    assert min(counts(FRAMES, selection.keep)) >= 1
