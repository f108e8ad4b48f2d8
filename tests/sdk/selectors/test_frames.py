from dataclasses import replace

import numpy as np
import pytest
from grids import film_tokens, inputs, never, prompt_for, tiled_vision, vision_tokens

from tokprune import RequestInvalid
from tokprune.selectors import SELECTORS
from tokprune.selectors.frames import (
    SCALES,
    evs,
    temporal_dissimilarity,
    ts_llava,
    uniqueness,
    vidcom2,
)
from tokprune.selectors.quotas import proportional, softmax
from tokprune.types import COLUMN, FRAME, KIND, NEWLINE, PATCH, PICTURE, ROW, VisionTokens

FILM = film_tokens(4, 3, 5, hidden=8)
CELLS = 15


def two_films() -> VisionTokens:
    first, second = film_tokens(3, 2, 3, hidden=8), film_tokens(2, 4, 4, hidden=8)
    where = second.where.copy()
    where[:, PICTURE] = 1
    regions = tuple(region._replace(picture=1) for region in second.regions)
    return VisionTokens(
        np.concatenate([first.embeds, second.embeds]),
        np.concatenate([first.where, where]),
        (*first.regions, *regions),
    )


def turned(vision: VisionTokens, order: np.ndarray) -> VisionTokens:
    """The same, its tokens in another order."""
    return VisionTokens(vision.embeds[order], vision.where[order], vision.regions)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_what_is_new_is_told_cell_by_cell_from_the_frame_before() -> None:
    new = temporal_dissimilarity(FILM)
    assert np.isinf(new[:CELLS]).all()
    for token in range(CELLS, 60):
        expected = 1 - cosine(FILM.embeds[token], FILM.embeds[token - CELLS])
        assert new[token] == pytest.approx(expected, abs=1e-5)
    columns_first = np.lexsort((FILM.where[:, ROW], FILM.where[:, COLUMN], FILM.where[:, FRAME]))
    assert temporal_dissimilarity(turned(FILM, columns_first)) == pytest.approx(new[columns_first])


def test_evs_keeps_the_first_frame_and_then_what_is_newest() -> None:
    take = evs(prompt_for(FILM), FILM, never).take
    assert sorted(take(CELLS).tolist()) == list(range(CELLS))
    new = temporal_dissimilarity(FILM)
    rest = sorted(range(CELLS, 60), key=lambda token: (-new[token], token))
    assert take(60)[CELLS:].tolist() == rest
    corners = FILM.where[take(5)][:, [ROW, COLUMN]].tolist()
    assert [1, 2] in corners  # fewer than a frame cover it
    assert len({row for row, _ in corners}) == 3


def test_evs_keeps_the_first_frame_of_each_video() -> None:
    vision = two_films()
    taken = evs(prompt_for(vision), vision, never).take(6 + 16)
    assert (vision.where[taken, FRAME] == 0).all()
    half = evs(prompt_for(vision), vision, never).take(11)
    assert np.bincount(vision.where[half, PICTURE]).tolist() == [3, 8]


def test_uniqueness_is_the_kernels_to_both_means_in_the_calm_channels() -> None:
    rows = FILM.embeds.astype(np.float64)
    calm = np.sort(np.argsort(rows.var(axis=0))[:4])
    own = rows[:, calm] / np.linalg.norm(rows[:, calm], axis=1, keepdims=True)

    def like(row: np.ndarray, mean: np.ndarray) -> float:
        return sum(np.exp(-((row - mean) ** 2).sum() / (2 * scale)) for scale in SCALES)

    frames = np.split(np.arange(60), 4)
    found = uniqueness(FILM.embeds, frames)
    video = np.asarray([-like(row, own.mean(axis=0)) for row in own])
    assert found.frames == pytest.approx([video[frame].mean() for frame in frames], abs=1e-4)
    for frame in frames:
        expected = [video[token] - like(own[token], own[frame].mean(axis=0)) for token in frame]
        assert found.tokens[frame] == pytest.approx(expected, abs=1e-4)


def test_vidcom2_gives_unusual_frames_more_and_keeps_the_most_unlike_of_each() -> None:
    embeds = np.tile(FILM.embeds[:CELLS], (4, 1))
    embeds[2 * CELLS : 3 * CELLS] = -embeds[:CELLS]
    vision = VisionTokens(embeds, FILM.where, FILM.regions)
    found = uniqueness(embeds, np.split(np.arange(60), 4))
    share = softmax(found.frames, 0.01)
    counts = proportional(20, (1 + share - share.mean()) * CELLS, [CELLS] * 4)
    taken = vidcom2(prompt_for(vision), vision, never).take(20)
    assert np.bincount(vision.where[taken, FRAME]).tolist() == counts.tolist()
    assert counts.argmax() == 2
    for frame in range(4):
        mine = np.arange(frame * CELLS, (frame + 1) * CELLS)
        best = mine[np.argsort(-found.tokens[mine], kind="stable")][: counts[frame]]
        assert set(best.tolist()) == set(taken[vision.where[taken, FRAME] == frame].tolist())


def test_ts_llava_keeps_even_steps_beside_small_pictures_of_a_sixth() -> None:
    take = ts_llava(prompt_for(FILM), FILM, never).take
    taken = take(24)
    small, steps = taken[:4], taken[4:]
    assert FILM.where[small, FRAME].tolist() == [0, 1, 2, 3]  # one in the middle of each
    assert (FILM.where[small][:, [ROW, COLUMN]] == [1, 2]).all()
    rest = np.delete(np.arange(60), small)
    assert steps.tolist() == rest[((np.arange(20) + 0.5) * 56 / 20).astype(int)].tolist()


def test_small_pictures_are_of_six_frames_that_are_evenly_apart() -> None:
    film = film_tokens(12, 2, 2)
    taken = ts_llava(prompt_for(film), film, never).take(36)[:6]
    assert film.where[taken, FRAME].tolist() == [1, 3, 5, 7, 9, 11]


@pytest.mark.parametrize("name", ["evs", "vidcom2", "ts-llava"])
def test_what_is_no_video_is_refused(name: str) -> None:
    selector = SELECTORS[name].make(inputs(np.zeros(0, np.float32)))
    for vision in (vision_tokens((4, 4)), tiled_vision(), film_tokens(1, 3, 3)):
        with pytest.raises(RequestInvalid, match=f"'{name}' compares the frames of a video, and"):
            selector(prompt_for(vision), vision, never)
    mixed = two_films()
    beside = vision_tokens((2, 2), hidden=8)
    where = beside.where.copy()
    where[:, PICTURE] = 2
    both = VisionTokens(
        np.concatenate([mixed.embeds, beside.embeds]),
        np.concatenate([mixed.where, where]),
        (*mixed.regions, beside.regions[0]._replace(picture=2)),
    )
    with pytest.raises(RequestInvalid, match="number 3 of what was given has 1"):
        selector(prompt_for(both), both, never)


@pytest.mark.parametrize("name", ["evs", "vidcom2", "ts-llava"])
def test_two_videos_and_a_newline_after_everything(name: str) -> None:
    vision = two_films()
    where = np.concatenate([vision.where, vision.where[-1:]])
    where[-1, KIND] = NEWLINE
    embeds = np.concatenate([vision.embeds, vision.embeds[-1:]])
    vision = replace(vision, embeds=embeds, where=where)
    take = (
        SELECTORS[name]
        .make(inputs(np.zeros(0, np.float32)))(prompt_for(vision), vision, never)
        .take
    )
    for k in range(1, 51):
        assert (where[take(k), KIND] == PATCH).all()
        assert len(set(take(k).tolist())) == k
    assert len(take(51)) == 51
