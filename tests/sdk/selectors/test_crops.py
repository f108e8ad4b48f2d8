from dataclasses import replace

import numpy as np
import pytest
from grids import film_tokens, never, prompt_for, salient, tiled_vision, vision_tokens

from tokprune import RequestInvalid
from tokprune.errors import SelectorUnavailable
from tokprune.selectors.crops import globalcom2, overlap
from tokprune.selectors.quotas import proportional, softmax
from tokprune.types import COLUMN, KIND, PATCH, ROW, TILE

TILED = salient(tiled_vision())  # 3 x 3, then 5 x 6: 2 x 2 crops
WHERE = TILED.where


def test_cells_on_an_edge_count_for_both_sides() -> None:
    assert overlap(2, 3).tolist() == [[1, 0.5, 0], [0, 0.5, 1]]
    assert overlap(1, 3).tolist() == [[1, 1, 1]]
    assert overlap(3, 2) == pytest.approx(np.asarray([[2 / 3, 0], [1 / 3, 1 / 3], [0, 2 / 3]]))


def crop_of(token: int) -> int:
    """0 is the whole; crops are rows 0-1 and 2-4, columns 0-2 and 3-5."""
    if WHERE[token, TILE] == 0:
        return 0
    return 1 + 2 * int(WHERE[token, ROW] >= 2) + int(WHERE[token, COLUMN] >= 3)


def test_each_crop_keeps_its_most_salient_by_a_quota_of_the_whole_pictures_saliency() -> None:
    values = TILED.saliency
    assert values is not None
    whole = values[:9].reshape(3, 3).astype(np.float64)
    halves = np.asarray([[1, 0.5, 0], [0, 0.5, 1]])
    mass = (halves @ whole @ halves.T).ravel()
    share = softmax(mass / mass.sum(), 0.1)
    sizes = [9, 6, 6, 9, 9]
    weights = np.asarray([1, *(1 + share - share.mean())]) * sizes
    patches = np.flatnonzero(WHERE[:, KIND] == PATCH)
    take = globalcom2(prompt_for(TILED), TILED, never).take
    for k in (5, 11, 20, 30, 39):
        taken = take(k)
        counts = np.bincount([crop_of(token) for token in taken], minlength=5)
        assert counts.tolist() == proportional(k, weights, sizes).tolist()
        for number, count in enumerate(counts):
            mine = [token for token in patches.tolist() if crop_of(token) == number]
            best = sorted(mine, key=lambda token: -values[token])[:count]
            assert set(best) == {int(token) for token in taken if crop_of(token) == number}


def test_a_crop_that_the_whole_picture_finds_salient_keeps_more() -> None:
    saliency = np.ones(len(WHERE), np.float32)
    saliency[[0, 1, 3]] = 50  # top left
    vision = replace(TILED, saliency=saliency)
    taken = globalcom2(prompt_for(vision), vision, never).take(20)
    counts = np.bincount([crop_of(token) for token in taken], minlength=5)
    assert counts[1] > counts[2]
    assert counts[1] >= 4


@pytest.mark.parametrize("vision", [vision_tokens((4, 4)), film_tokens(2, 3, 3)])
def test_pictures_without_crops_are_refused(vision: object) -> None:
    shown = salient(vision)  # type: ignore[arg-type]
    with pytest.raises(RequestInvalid, match="number 1 of what was given has none: give one pict"):
        globalcom2(prompt_for(shown), shown, never)


def test_saliency_is_needed() -> None:
    bare = replace(TILED, saliency=None)
    with pytest.raises(SelectorUnavailable, match="--saliency"):
        globalcom2(prompt_for(bare), bare, never)
