from collections.abc import Callable

import numpy as np
import pytest
from grids import never, prompt_for, salient, tiled_vision, vision_tokens

from tokprune import KeepCount, Ranking
from tokprune.selection import select, select_each
from tokprune.selectors.merging import ROUNDS, by_clusters, by_looks, by_place, means, merged
from tokprune.selectors.selector import Selector
from tokprune.selectors.similarity import unit
from tokprune.types import KIND, NEWLINE, PICTURE, VisionTokens

VISION = vision_tokens((6, 7), (3, 8), hidden=5)
TILED = tiled_vision(hidden=5)
GROUPS = [by_place, by_looks, by_clusters]
Group = Callable[[VisionTokens, np.ndarray], np.ndarray]


def kept(vision: VisionTokens, count: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(len(vision.where))[:count])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vision", [VISION, TILED])
def test_where_all_are_kept_nothing_changes(group: Group, vision: VisionTokens) -> None:
    everything = np.arange(len(vision.where))
    found = means(vision, everything, group(vision, everything), median_position=True)
    assert (found.embeds == vision.embeds).all()
    assert found.at is not None
    assert (found.at == everything).all()
    assert (found.sizes == 1).all()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("vision", [VISION, TILED])
def test_kept_tokens_become_the_means_of_those_that_they_stand_for(
    group: Group, vision: VisionTokens
) -> None:
    keep = kept(vision, 12)
    by = group(vision, keep)
    assert (by[keep] == np.arange(12)).all()
    found = means(vision, keep, by, median_position=True)
    assert found.at is not None
    for number in range(12):
        members = np.flatnonzero(by == number)
        assert found.embeds[number] == pytest.approx(vision.embeds[members].mean(axis=0), abs=1e-5)
        assert found.sizes[number] == len(members)
        assert found.at[number] == members[(len(members) - 1) // 2]
        assert len(set(vision.where[members, PICTURE].tolist())) == 1
    newlines = vision.where[:, KIND] == NEWLINE
    assert (by[newlines & ~np.isin(np.arange(len(by)), keep)] == -1).all()


def test_nothing_is_merged_into_another_picture() -> None:
    keep = np.asarray([1, 20])  # the second picture keeps nothing
    for group in GROUPS:
        assert (group(VISION, keep)[42:] == -1).all()
        assert (group(VISION, keep)[:42] >= 0).all()


def test_looks_decide_by_cosine_and_place_by_distance() -> None:
    keep = kept(VISION, 9, seed=4)
    rows = unit(VISION.embeds)
    looks, place = by_looks(VISION, keep), by_place(VISION, keep)
    for token in set(range(66)) - set(keep.tolist()):
        same = VISION.where[keep, PICTURE] == VISION.where[token, PICTURE]
        cosine = np.where(same, rows[keep] @ rows[token], -np.inf)
        assert looks[token] == cosine.argmax()
        gaps = ((VISION.where[keep, 3:5] - VISION.where[token, 3:5]) ** 2).sum(axis=1)
        assert place[token] == np.where(same, gaps, 10**6).argmin()


def test_clusters_are_those_of_k_means_with_the_kept_held_where_they_are() -> None:
    vision = vision_tokens((8, 9), hidden=3)
    keep = kept(vision, 6, seed=2)
    rows = unit(vision.embeds).astype(np.float64)
    centres, by = rows[keep], np.zeros(len(rows), np.int64)
    for _ in range(ROUNDS + 1):
        by = (rows @ centres.T).argmax(axis=1)
        by[keep] = np.arange(6)
        sums = np.stack([rows[by == number].sum(axis=0) for number in range(6)])
        centres = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    assert by_clusters(vision, keep).tolist() == by.tolist()
    assert by.tolist() != by_looks(vision, keep).tolist()


def taking(order: np.ndarray) -> Selector:
    return lambda prompt, vision, first: Ranking(lambda k: order[order < len(vision.where)][:k])


def ranked(selector: Selector, vision: VisionTokens = VISION) -> Ranking:
    return selector(prompt_for(vision), vision, never)


ORDER = np.random.default_rng(1).permutation(66)


def test_a_selection_carries_means_and_its_switches_positions_and_sizes() -> None:
    plain = select(ranked(taking(ORDER)), VISION, KeepCount(10))
    own = select(ranked(merged(taking(ORDER), by_looks)), VISION, KeepCount(10))
    assert plain.embeds is None
    assert own.keep.tolist() == plain.keep.tolist()
    expected = means(VISION, own.keep, by_looks(VISION, own.keep), median_position=True)
    assert own.embeds is not None
    assert (own.embeds == expected.embeds).all()
    assert (own.at, own.bias) == (None, None)
    both = merged(taking(ORDER), by_looks, median_position=True, size_bias=True)
    switched = select(ranked(both), VISION, KeepCount(10))
    assert switched.at is not None
    assert switched.bias is not None
    assert expected.at is not None
    assert switched.at.tolist() == expected.at.tolist()
    assert np.exp(switched.bias).round().tolist() == expected.sizes.tolist()


def test_keeping_all_merges_nothing() -> None:
    both = merged(taking(ORDER), by_looks, median_position=True, size_bias=True)
    selection = select(ranked(both), VISION, KeepCount(66))
    assert (selection.embeds, selection.at, selection.bias) == (None, None, None)


def test_each_picture_alone_merges_within_itself() -> None:
    vision = salient(VISION)
    selector = merged(taking(ORDER), by_looks, median_position=True, size_bias=True)
    seen: list[VisionTokens] = []

    def rank(alone: VisionTokens) -> Ranking:
        seen.append(alone)
        return ranked(selector, alone)

    selection = select_each(rank, vision, KeepCount(5))
    assert [len(alone.where) for alone in seen] == [42, 24]
    assert vision.saliency is not None
    saliency = [alone.saliency for alone in seen if alone.saliency is not None]
    assert np.concatenate(saliency).tolist() == vision.saliency.tolist()
    expected = [select(ranked(selector, alone), alone, KeepCount(5)) for alone in seen]
    for name in ("embeds", "bias"):
        values = np.concatenate([getattr(part, name) for part in expected])
        assert (getattr(selection, name) == values).all()
    assert selection.at is not None
    first, second = (np.asarray(part.at) for part in expected)
    assert selection.at.tolist() == [*first, *(42 + second)]
