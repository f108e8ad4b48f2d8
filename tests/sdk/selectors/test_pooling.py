import numpy as np
import pytest
from grids import film_tokens, never, prompt_for, tiled_vision, vision_tokens

from tokprune import KeepCount
from tokprune.selection import select
from tokprune.selectors.pooling import even_blocks, pool
from tokprune.types import FRAME, PICTURE, Selection, VisionTokens


def pooled(vision: VisionTokens, k: int) -> Selection:
    return select(pool(prompt_for(vision), vision, never), vision, KeepCount(k))


@pytest.mark.parametrize(("rows", "columns"), [(14, 14), (1, 9), (9, 1), (3, 8), (20, 3)])
def test_a_grid_is_cut_into_exactly_as_many_blocks_as_asked(rows: int, columns: int) -> None:
    for count in range(1, rows * columns + 1):
        centres, block = even_blocks(rows, columns, count)
        assert len(set(centres.tolist())) == count
        assert set(block.tolist()) == set(range(count))
        for number, centre in enumerate(centres.tolist()):
            row, column = np.divmod(np.flatnonzero(block == number), columns)
            assert len(row) == len(set(row)) * len(set(column))  # a rectangle
            middle = np.asarray([(row.min() + row.max()) / 2, (column.min() + column.max()) / 2])
            assert np.abs(np.asarray(divmod(centre, columns)) - middle).max() <= 0.5
            assert block[centre] == number


def test_a_quarter_is_the_mean_of_two_by_two_at_their_first_cell() -> None:
    vision = vision_tokens((8, 6), hidden=5)
    selection = pooled(vision, 12)
    grid = vision.embeds.reshape(4, 2, 3, 2, 5)
    assert selection.embeds == pytest.approx(grid.mean(axis=(1, 3)).reshape(12, 5), abs=1e-6)
    cells = np.arange(48).reshape(8, 6)[::2, ::2]
    assert selection.keep.tolist() == cells.ravel().tolist()
    assert (selection.at, selection.bias) == (None, None)


def test_a_ninth_stands_in_the_middle_of_its_block() -> None:
    vision = vision_tokens((6, 9))
    assert (
        pooled(vision, 6).keep.tolist() == np.arange(54).reshape(6, 9)[1::3, 1::3].ravel().tolist()
    )


@pytest.mark.parametrize("k", range(1, 66))
def test_means_are_of_the_blocks_whatever_their_number(k: int) -> None:
    vision = vision_tokens((6, 7), (3, 8))
    selection = pooled(vision, k)
    assert selection.embeds is not None
    start = 0
    for picture, (rows, columns) in enumerate(((6, 7), (3, 8))):
        mine = vision.where[selection.keep, PICTURE] == picture
        if mine.any():
            centres, block = even_blocks(rows, columns, int(mine.sum()))
            own = vision.embeds[start : start + rows * columns]
            order = np.argsort(centres)
            assert (selection.keep[mine] - start).tolist() == centres[order].tolist()
            expected = [own[block == number].mean(axis=0) for number in order]
            assert selection.embeds[mine] == pytest.approx(np.asarray(expected), abs=1e-5)
        start += rows * columns


def test_pictures_and_frames_have_their_share_and_all_kept_changes_nothing() -> None:
    film = film_tokens(3, 4, 5)
    assert np.bincount(film.where[pooled(film, 18).keep, FRAME]).tolist() == [6, 6, 6]
    assert pooled(film, 60).embeds is None
    take = pool(prompt_for(film), film, never)
    assert take.merge is not None
    assert (take.merge(np.arange(60)).embeds == film.embeds).all()


def test_with_newlines_every_patch_is_in_one_mean_still() -> None:
    vision = tiled_vision()
    for k in range(2, 44):
        selection = pooled(vision, k)
        ranking = pool(prompt_for(vision), vision, never)
        assert ranking.merge is not None
        assert len(selection.keep) == k
        found = ranking.merge(selection.keep)
        assert (found.embeds == selection.embeds).all()
        regions = [range(9), range(9, 44)]
        patches = [9, 30]
        for tokens, count in zip(regions, patches, strict=True):
            mine = np.isin(selection.keep, tokens) & (vision.where[selection.keep, 6] == 0)
            assert not mine.any() or found.sizes[mine].sum() == count
